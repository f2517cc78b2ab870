"""JPEG files: which of them decode the short way, at what size, and the quality they were saved with.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import simplejpeg
from PIL import Image, ImageCms

REDUCTIONS = (8, 4, 2)
"""By how much the inverse DCT can reduce at no cost; the steps between them are slower than the full size."""
SRGB_TOLERANCE = 2
"""A profile that moves no colour by more than this, of 255, counts as sRGB."""
IJG_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""The luminance table of ITU-T T.81, annex K.1, which libjpeg scales."""


def is_plain(image: Image.Image, data: bytes) -> bool:
    """Return whether an opened file is an 8-bit grey or YCbCr JPEG in sRGB, which needs no colour management."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return False
    profile = image.info.get("icc_profile")
    if profile and (image.mode != "RGB" or not is_srgb(profile)):
        return False
    try:
        height_px, width_px, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: a subsampling that it has no name for
        return False
    wanted = {"RGB": "YCbCr", "L": "Gray"}[image.mode]
    return colorspace == wanted and (width_px, height_px) == image.size


def reduction(width_px: int, height_px: int, min_side_px: int | None) -> int:
    """Return 1, 2, 4 or 8: the largest reduction whose shorter side is still `min_side_px`; 1 where that is None."""
    if min_side_px is None:
        return 1
    shorter_px = min(width_px, height_px)
    return next((by for by in REDUCTIONS if -(-shorter_px // by) >= min_side_px), 1)


def decode_plain(data: bytes, width_px: int, height_px: int, by: int, is_grey: bool) -> np.ndarray:
    """Return the pixels reduced `by` 1, 2, 4 or 8, sides rounded up, uint8 HWC (C is 1 for grey).

    Raises ValueError for whatever libjpeg-turbo has to say of the file, warnings too.
    """
    return simplejpeg.decode_jpeg(
        data,
        colorspace="GRAY" if is_grey else "RGB",
        min_width=-(-width_px // by) if by > 1 else 0,
        min_height=-(-height_px // by) if by > 1 else 0,
        strict=True,
    )


def quality_of(tables: Mapping[int, Sequence[int]]) -> int | None:
    """Return the libjpeg quality, 1..100, whose luminance table is nearest to a file's; None without tables.

    libjpeg (jcparam.c, jpeg_quality_scaling and jpeg_add_quant_table) scales each entry of annex K by
    s = 5000 / q below 50 and 200 - 2 q from there: (entry * s + 50) / 100, held to 1..255.
    """
    if 0 not in tables:
        return None
    return _nearest_quality(tuple(tables[0]))


@lru_cache(maxsize=1024)
def _nearest_quality(table: tuple[int, ...]) -> int:
    return int(np.abs(_ijg_tables() - np.array(table)).sum(axis=1).argmin()) + 1


@lru_cache(maxsize=1)
def _ijg_tables() -> np.ndarray:
    """Return libjpeg's luminance table at each quality from 1 to 100, int64 (100, 64), row-major."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((IJG_LUMINANCE.ravel() * scale[:, None] + 50) // 100, 1, 255)


@lru_cache(maxsize=256)
def is_srgb(profile: bytes) -> bool:
    """Return whether an ICC profile leaves a 9 x 9 x 9 grid of colours where sRGB has them."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        moved = ImageCms.profileToProfile(Image.fromarray(grid), own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return True  # the exact path leaves the colours as they are, too
    assert moved is not None  # inPlace is off
    return int(np.abs(np.asarray(moved).astype(int) - grid).max()) <= SRGB_TOLERANCE
