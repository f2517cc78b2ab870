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
AREA_BITS = 38
MAX_AREA_PX = (1 << AREA_BITS) - 1


def keys(
    ahead: np.ndarray,
    area_px: np.ndarray,
    jpeg_quality: np.ndarray,
    sharpness: np.ndarray,
    caption_is_fine: np.ndarray,
) -> np.ndarray:
    """Return the policy without the uid, uint64 (N,), smaller is better.

    From the highest bit: whether it is ahead (1 bit), the area (38), the technical quality (24) and
    the caption (1).
    """
    worse_quality = np.uint64((1 << QUALITY_BITS) - 1) - technical_quality(jpeg_quality, sharpness)
    worse_area = np.uint64(MAX_AREA_PX) - np.clip(area_px, 0, MAX_AREA_PX).astype(np.uint64)
    made = (~ahead).astype(np.uint64) << np.uint64(AREA_BITS) | worse_area
    made = made << np.uint64(QUALITY_BITS) | worse_quality
    return made << np.uint64(1) | (~caption_is_fine).astype(np.uint64)


def is_ahead(keys: np.ndarray) -> np.ndarray:
    """Return which keys are of samples ahead of everything, bool (N,)."""
    return keys >> np.uint64(63) == 0


def technical_quality(jpeg_quality: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Return the technical quality, uint64 (N,), larger is better: JPEG quality in steps, then sharpness.

    `jpeg_quality` is 1..100, or NaN for other formats, which count as lossless. JPEG artefacts raise the
    sharpness, so it comes second, in tenths, so that rounding noise does not decide.
    """
    lossless = np.isnan(jpeg_quality)
    step = np.where(lossless, 100 // JPEG_STEP + 1, np.nan_to_num(jpeg_quality) // JPEG_STEP).astype(np.uint64)
    tenths = np.clip(np.round(np.nan_to_num(sharpness) * 10), 0, (1 << SHARPNESS_BITS) - 1).astype(np.uint64)
    return step << np.uint64(SHARPNESS_BITS) | tenths


def order(keys: np.ndarray, uid_N2: np.ndarray) -> np.ndarray:
    """Return the positions from best to worst, int64 (N,); `uid_N2` is uint64 (N, 2), the uid's 128 bits."""
    by_key = np.argsort(keys)
    ordered = keys[by_key]
    same = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False]) if len(ordered) else np.empty(0, np.int64)
    rows = by_key[tied]
    by_key[tied] = rows[np.lexsort((uid_N2[rows, 1], uid_N2[rows, 0], keys[rows]))]
    return by_key


def won_by(winner: np.ndarray, loser: np.ndarray) -> np.ndarray:
    """Return the place in TERMS of the first term by which each winner's key is ahead of its loser's, int8 (N,)."""
    difference = winner ^ loser
    differs = [difference >> np.uint64(bits) > 0 for bits in (63, 1 + QUALITY_BITS, 1, 0)]
    return np.select(differs, range(len(differs)), len(differs)).astype(np.int8)
