"""Aspect buckets: the (height, width) pairs that training images are resized and cropped to.

The 1024 px ladder is the published list of SDXL's multi-aspect training (40 shapes, multiples of 64,
each close to 1024 x 1024 pixels). Other resolutions scale it.
"""

from __future__ import annotations

import functools
import math

from curate.bad_input import BadInput

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
        raise BadInput(f"resolution_px = {resolution_px}: must be a positive multiple of {multiple_px}")
    if (resolution_px, multiple_px) == (1024, 64):
        return SDXL_1024

    def scaled(side_px: int) -> int:
        return max(multiple_px, round(side_px * resolution_px / 1024 / multiple_px) * multiple_px)

    return tuple(dict.fromkeys((scaled(h), scaled(w)) for h, w in SDXL_1024))


@functools.cache
def ladders(resolution_px: int, multiple_px: int = 64) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return the buckets of a resolution, of half of it, of a quarter, ..., as far as they are multiples."""
    found = [ladder(resolution_px, multiple_px)]
    while resolution_px % (2 * multiple_px) == 0:
        resolution_px //= 2
        found.append(ladder(resolution_px, multiple_px))
    return tuple(found)


def enlargement(height_px: int, width_px: int, bucket: tuple[int, int]) -> float:
    """Return the factor by which covering the bucket scales the picture; above 1 enlarges."""
    return max(bucket[0] / height_px, bucket[1] / width_px)


@functools.lru_cache(maxsize=1 << 16)
def bucket_of(
    height_px: int, width_px: int, resolution_px: int, multiple_px: int, max_enlargement: float
) -> tuple[int, int] | None:
    """Return the nearest bucket of the largest resolution that enlarges by no more than `max_enlargement`.

    None where even the smallest resolution enlarges further.
    """
    for buckets in ladders(resolution_px, multiple_px):
        found = nearest(height_px, width_px, buckets)
        if enlargement(height_px, width_px, found) <= max_enlargement:
            return found
    return None


def nearest(height_px: int, width_px: int, buckets: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Return the bucket whose aspect ratio is nearest in log space; ties go to the larger area, then the first."""
    aspect = math.log(height_px / width_px)
    return min(buckets, key=lambda hw: (abs(math.log(hw[0] / hw[1]) - aspect), -hw[0] * hw[1]))
