"""The policy that ranks samples: which of several equal pictures survives.

What was kept before, or must not be trained on, is ahead of everything. Then resolution first,
then technical quality, then caption, then uid. Larger is better in every term but the last.
"""

from __future__ import annotations

import numpy as np

TERMS = ("earlier", "resolution", "technical quality", "caption", "uid")
QUALITY_BITS = 24
JPEG_STEP = 10
"""JPEG qualities are compared in steps of this, so that the estimate's noise does not decide."""
SHARPNESS_BITS = 20
MAX_AREA_PX = (1 << 39) - 1


def keys(
    ahead: np.ndarray,
    area_px: np.ndarray,
    jpeg_quality: np.ndarray,
    sharpness: np.ndarray,
    caption_is_fine: np.ndarray,
) -> np.ndarray:
    """Return the policy without the uid, uint64 (N, 2), smaller is better, compared from left to right.

    The first word holds whether it is ahead (1 bit), the area (39) and the technical quality (24); the
    second the caption.
    """
    worse_quality = np.uint64((1 << QUALITY_BITS) - 1) - technical_quality(jpeg_quality, sharpness)
    worse_area = np.uint64(MAX_AREA_PX) - np.clip(area_px, 0, MAX_AREA_PX).astype(np.uint64)
    first = (~ahead).astype(np.uint64) << np.uint64(63) | worse_area << np.uint64(QUALITY_BITS) | worse_quality
    return np.stack([first, (~caption_is_fine).astype(np.uint64)], axis=1)


def technical_quality(jpeg_quality: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Return the technical quality, uint64 (N,), larger is better: JPEG quality in steps, then sharpness.

    `jpeg_quality` is 1..100, or NaN for other formats, which count as lossless. JPEG artefacts raise the
    sharpness, so it comes second, in tenths, so that rounding noise does not decide.
    """
    lossless = np.isnan(jpeg_quality)
    step = np.where(lossless, 100 // JPEG_STEP + 1, np.nan_to_num(jpeg_quality) // JPEG_STEP).astype(np.uint64)
    tenths = np.clip(np.round(np.nan_to_num(sharpness) * 10), 0, (1 << SHARPNESS_BITS) - 1).astype(np.uint64)
    return step << np.uint64(SHARPNESS_BITS) | tenths


def order(keys_N2: np.ndarray, uid_N2: np.ndarray) -> np.ndarray:
    """Return the positions from best to worst, int64 (N,); `uid_N2` is uint64 (N, 2), the uid's 128 bits."""
    by_first = np.argsort(keys_N2[:, 0])
    ordered = keys_N2[by_first, 0]
    same = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False]) if len(ordered) else np.empty(0, np.int64)
    rows = by_first[tied]
    ties = (uid_N2[rows, 1], uid_N2[rows, 0], keys_N2[rows, 1], keys_N2[rows, 0])
    by_first[tied] = rows[np.lexsort(ties)]
    return by_first


def won_by(winner_N2: np.ndarray, loser_N2: np.ndarray) -> np.ndarray:
    """Return the place in TERMS of the first term by which each winner is ahead of its loser, int8 (N,)."""
    difference = winner_N2[:, 0] ^ loser_N2[:, 0]
    first = np.select(
        [difference >> np.uint64(63) > 0, difference >> np.uint64(QUALITY_BITS) > 0, difference > 0], [0, 1, 2], 4
    )
    return np.where((first == 4) & (winner_N2[:, 1] != loser_N2[:, 1]), 3, first).astype(np.int8)
