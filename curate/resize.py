"""From a picture to its aspect bucket: one resize, one centre crop, all of it recorded."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A picture of exactly its bucket's size, and how it came about."""

    image: Image.Image
    crop_top_px: int
    crop_left_px: int


def enlargement(height_px: int, width_px: int, bucket: tuple[int, int]) -> float:
    """Return the factor by which covering the bucket scales the picture; above 1 enlarges."""
    return max(bucket[0] / height_px, bucket[1] / width_px)


def fit(image: Image.Image, bucket: tuple[int, int]) -> Fitted:
    """Return the picture scaled to cover the bucket (height, width) with Lanczos, then cropped at the centre.

    The crop is counted in pixels of the scaled picture, as SDXL's crop conditioning wants it.
    """
    height_px, width_px = bucket
    factor = enlargement(image.height, image.width, bucket)
    scaled_width, scaled_height = (
        max(width_px, round(image.width * factor)),
        max(height_px, round(image.height * factor)),
    )
    left, top = (scaled_width - width_px) // 2, (scaled_height - height_px) // 2
    scaled = image.resize((scaled_width, scaled_height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Fitted(image=scaled.crop((left, top, left + width_px, top + height_px)), crop_top_px=top, crop_left_px=left)


def jpeg_bytes(image: Image.Image, quality: int) -> bytes:
    """Return the picture as JPEG without chroma subsampling and without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
