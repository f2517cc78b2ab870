"""Technical quality of one decoded picture."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def entropy_bits(grey: np.ndarray) -> float:
    """Return the Shannon entropy of the histogram of uint8 grey values, 0..8 bits."""
    counts = np.bincount(grey.ravel(), minlength=256)
    share = counts[counts > 0] / grey.size
    return float(abs(-(share * np.log2(share)).sum()))


def sharpness(grey: np.ndarray) -> float:
    """Return the variance of the Laplacian of the uint8 grey picture (Pech-Pacheco et al., 2000)."""
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def grey_256(image: Image.Image) -> np.ndarray:
    """Return the uint8 grey picture with its longer side at most 256 px, so that sizes compare."""
    grey = image.convert("L")
    grey.thumbnail((256, 256), Image.Resampling.BOX)
    return np.asarray(grey)
