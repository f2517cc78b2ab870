"""Technical quality of one decoded picture."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

SIDE_PX = 256
"""Pictures are compared at this longer side."""
SHADOW_LUMA = 5
"""Luma up to here is black without detail."""
HIGHLIGHT_LUMA = 250
"""Luma from here is white without detail."""


class Quality(NamedTuple):
    """What is measured on the luma at 256 px; the fields are columns of the features table."""

    entropy_bits: float
    sharpness: float
    luma_mean: float
    shadows_clipped: float
    highlights_clipped: float


def technical_quality(luma_HW: np.ndarray) -> Quality:
    """Return entropy, sharpness and exposure of a picture's uint8 luma."""
    small = luma_256(luma_HW)
    counts = histogram(small)
    return Quality(
        entropy_bits=entropy_bits(counts),
        sharpness=sharpness(small),
        luma_mean=float(counts @ np.arange(256)) / small.size,
        shadows_clipped=float(counts[: SHADOW_LUMA + 1].sum()) / small.size,
        highlights_clipped=float(counts[HIGHLIGHT_LUMA:].sum()) / small.size,
    )


def histogram(luma_HW: np.ndarray) -> np.ndarray:
    """Return how many pixels of uint8 luma have each value, float64 (256,), exact up to 2^24 pixels of a value."""
    return cv2.calcHist([luma_HW], [0], None, [256], [0, 256])[:, 0].astype(np.float64)


def entropy_bits(counts: np.ndarray) -> float:
    """Return the Shannon entropy of a histogram of 256 values, 0..8 bits."""
    share = counts[counts > 0] / counts.sum()
    return float(abs(-(share * np.log2(share)).sum()))


def sharpness(luma_HW: np.ndarray) -> float:
    """Return the variance of the Laplacian of uint8 luma (Pech-Pacheco et al., 2000)."""
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma_HW, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)


def luma_256(luma_HW: np.ndarray) -> np.ndarray:
    """Return the luma averaged down to a longer side of 256 px at most, so that sizes compare."""
    height_px, width_px = luma_HW.shape
    scale = SIDE_PX / max(height_px, width_px)
    if scale >= 1:
        return luma_HW
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    return cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA)
