"""Aspect buckets: the (height, width) pairs that training images are resized and cropped to.

The 1024 px ladder is the published list of SDXL's multi-aspect training (40 shapes, multiples of 64,
each close to 1024 x 1024 pixels). Other resolutions scale it.
"""

from __future__ import annotations

import functools
import math

SDXL_1024 = tuple(
    (height, width)
    for height, widths in (
        (512, (2048, 1984, 1920, 1856)),
        (576, (1792, 1728, 1664)),
        (640, (1600, 1536)),
        (704, (1472, 1408, 1344)),
        (768, (1344, 1280)),
        (832, (1216, 1152)),
        (896, (1152, 1088)),
        (960, (1088, 1024)),
        (1024, (1024, 960)),
        (1088, (960, 896)),
        (1152, (896, 832)),
        (1216, (832,)),
        (1280, (768,)),
        (1344, (768,)),
        (1408, (704,)),
        (1472, (704,)),
        (1536, (640,)),
        (1600, (640,)),
        (1664, (576,)),
        (1728, (576,)),
        (1792, (576,)),
        (1856, (512,)),
        (1920, (512,)),
        (1984, (512,)),
        (2048, (512,)),
    )
    for width in widths
)
"""(height_px, width_px) of the 40 buckets at 1024 px."""


@functools.cache
def ladder(resolution_px: int, multiple_px: int = 64) -> tuple[tuple[int, int], ...]:
    """Return the buckets for a square resolution: the 40 at 1024 px, scaled and rounded elsewhere.

    Below 1024 px several of the 40 fall on the same shape and are kept once. Raises ValueError
    where the resolution is not a multiple of `multiple_px`.
    """
    if resolution_px <= 0 or resolution_px % multiple_px:
        raise ValueError(f"resolution_px = {resolution_px}: must be a positive multiple of {multiple_px}")
    if (resolution_px, multiple_px) == (1024, 64):
        return SDXL_1024

    def scaled(side_px: int) -> int:
        return max(multiple_px, round(side_px * resolution_px / 1024 / multiple_px) * multiple_px)

    return tuple(dict.fromkeys((scaled(h), scaled(w)) for h, w in SDXL_1024))


def nearest(height_px: int, width_px: int, buckets: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Return the bucket whose aspect ratio is nearest in log space; ties go to the larger area, then the first."""
    aspect = math.log(height_px / width_px)
    return min(buckets, key=lambda hw: (abs(math.log(hw[0] / hw[1]) - aspect), -hw[0] * hw[1]))
