"""Micro-conditioning: the numbers about size, crop and score that the U-Net is told, free of heavy imports."""

from __future__ import annotations

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""What the refiner is told of a picture that is wanted, and of one to be guided away from."""


def time_ids(
    model: str,
    original_hw: tuple[int, int],
    crop_top_left: tuple[int, int],
    target_hw: tuple[int, int],
    aesthetic: float,
) -> tuple[float, ...]:
    """Return the base's (original, crop, target) or the refiner's (original, crop, aesthetic score)."""
    tail = target_hw if model == "base" else (aesthetic,)
    return tuple(float(value) for value in (*original_hw, *crop_top_left, *tail))


def mirrored_crop_left_px(original_hw: tuple[int, int], bucket_hw: tuple[int, int], crop_left_px: int) -> int:
    """Return the crop's left edge in the mirrored picture: what was cut off at the right."""
    scale = max(bucket / original for bucket, original in zip(bucket_hw, original_hw, strict=True))
    return max(0, round(original_hw[1] * scale) - bucket_hw[1] - crop_left_px)
