"""From a picture's file to its bucket: one decode, one resize, one centre crop, all of it recorded.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image

from curate import image, jpeg
from curate.buckets import enlargement
from curate.picture import upright


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """A picture's pixels, upright and in sRGB, perhaps reduced."""

    rgb_HWC: np.ndarray
    """uint8, C is 3."""
    height_px: int
    """True height."""
    width_px: int
    """True width."""
    reduced_by: int = 1
    """1, 2, 4 or 8; the last row and column are then partly outside of the picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """A picture that covers its bucket, and where the bucket lies in it."""

    rgb_HWC: np.ndarray
    """uint8, C is 3."""
    crop_top_px: int
    """Rows above the bucket."""
    crop_left_px: int
    """Columns left of the bucket."""

    def cropped(self, bucket: tuple[int, int]) -> np.ndarray:
        """Return the bucket's pixels, uint8 (height, width, 3)."""
        rows = slice(self.crop_top_px, self.crop_top_px + bucket[0])
        return np.ascontiguousarray(self.rgb_HWC[rows, self.crop_left_px : self.crop_left_px + bucket[1]])


def decode_for(opened: Image.Image, data: bytes, bucket: tuple[int, int] | None) -> Decoded:
    """Return the pixels of an opened image, reduced as far as the bucket allows; None decodes at full size.

    Raises UnreadableImage as `curate.image.decode` does.
    """
    if jpeg.is_plain(opened, data):
        try:
            return _decode_plain(opened, data, bucket)
        except ValueError:
            pass  # whether a damaged file counts as a picture is Pillow's decision
    rgb_HWC = np.asarray(image.decode_opened(opened))
    return Decoded(rgb_HWC=rgb_HWC, height_px=rgb_HWC.shape[0], width_px=rgb_HWC.shape[1])


def _decode_plain(opened: Image.Image, data: bytes, bucket: tuple[int, int] | None) -> Decoded:
    turn = image.orientation(opened)
    width_px, height_px = opened.size if turn < 5 else opened.size[::-1]
    shorter_px = None if bucket is None else min(scaled_size(height_px, width_px, bucket))
    by = jpeg.reduction(width_px, height_px, shorter_px)
    if turn != 1 and (width_px % by or height_px % by):
        by = 1  # turned, the partial pixels of the last row and column would come first
    pixels_HWC = jpeg.decode_plain(data, opened.width, opened.height, by, is_grey=opened.mode == "L")
    rgb_HWC = upright(np.broadcast_to(pixels_HWC, (*pixels_HWC.shape[:2], 3)), turn)
    return Decoded(rgb_HWC=rgb_HWC, height_px=height_px, width_px=width_px, reduced_by=by)


def scaled_size(height_px: int, width_px: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the picture scaled to cover the bucket."""
    factor = enlargement(height_px, width_px, bucket)
    return max(bucket[0], round(height_px * factor)), max(bucket[1], round(width_px * factor))


def scale(picture: Decoded, bucket: tuple[int, int], downscale: Literal["lanczos", "area"] = "lanczos") -> Scaled:
    """Return the picture scaled to cover the bucket (height, width).

    The crop is at the centre and counted in pixels of the scaled picture, as SDXL's crop conditioning wants it.
    """
    height_px, width_px = scaled_size(picture.height_px, picture.width_px, bucket)
    top, left = (height_px - bucket[0]) // 2, (width_px - bucket[1]) // 2
    if picture.rgb_HWC.shape[:2] == (height_px, width_px):
        rgb_HWC = picture.rgb_HWC
    elif downscale == "area" and height_px <= picture.height_px and width_px <= picture.width_px:
        rgb_HWC = cv2.resize(np.ascontiguousarray(picture.rgb_HWC), (width_px, height_px), interpolation=cv2.INTER_AREA)
    else:
        rgb_HWC = _lanczos(picture, height_px, width_px)
    return Scaled(rgb_HWC=rgb_HWC, crop_top_px=top, crop_left_px=left)


def _lanczos(picture: Decoded, height_px: int, width_px: int) -> np.ndarray:
    """Return the picture resized with the kernel of 3 lobes, widened where it shrinks, as Pillow defines it."""
    writable_HWC = np.require(picture.rgb_HWC, requirements=["C", "W"])  # torch warns of arrays that are not
    pixels_1CHW = torch.from_numpy(writable_HWC)[None].permute(0, 3, 1, 2)  # channels last
    by = picture.reduced_by
    if picture.height_px % by or picture.width_px % by:  # the picture ends within the last row or column
        factors = (height_px * by / picture.height_px * _UP, width_px * by / picture.width_px * _UP)
        resized = torch.nn.functional.interpolate(pixels_1CHW, scale_factor=factors, mode="lanczos", antialias=True)
        resized = resized[:, :, :height_px, :width_px]
    else:
        size = (height_px, width_px)
        resized = torch.nn.functional.interpolate(pixels_1CHW, size, mode="lanczos", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


_UP = 1 + 1e-9
"""So that a product that falls short by rounding does not cost a row."""
