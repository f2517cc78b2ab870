"""Perceptual hashes of one decoded picture: phash64 and PDQ."""

from __future__ import annotations

import numpy as np
import pdqhash
from PIL import Image
from scipy.fft import dct


def phash64(image: Image.Image) -> int:
    """Return imagehash's pHash as an integer, its first bit (row-major) the highest.

    Grey, Lanczos to 32 x 32, unnormalised DCT-II along axis 0 then 1, the top-left 8 x 8 with DC,
    bit = coefficient above the median of the 64.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dct(dct(grey, axis=0), axis=1)[:8, :8]
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def pdq256(image: Image.Image) -> tuple[bytes, int]:
    """Return the PDQ hash (32 bytes) and its quality, 0..100."""
    bits, quality = pdqhash.compute(np.asarray(image.convert("RGB")))
    return np.packbits(bits.astype(bool)).tobytes(), int(quality)
