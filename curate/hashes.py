"""Perceptual hashes of one decoded picture: phash64, as it is and turned, and PDQ."""

from __future__ import annotations

import numpy as np
import pdqhash
from PIL import Image
from scipy.fft import dct

TURNS = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
)
"""The order of a picture's seven turned hashes; rotations are counter-clockwise, as Pillow's."""


def phash64(image: Image.Image) -> int:
    """Return imagehash's pHash as an integer, its first bit (row-major) the highest.

    Grey, Lanczos to 32 x 32, unnormalised DCT-II along axis 0 then 1, the top-left 8 x 8 with DC,
    bit = coefficient above the median of the 64.
    """
    return _hashes(_low(image)[None])[0]


def phash64_and_turned(image: Image.Image) -> tuple[int, list[int]]:
    """Return phash64 of the picture, and of the picture after each of TURNS, from one DCT."""
    low = _low(image)
    own, *others = _hashes(np.concatenate([low[None], turned(low)]))
    return own, others


def turned(low: np.ndarray) -> np.ndarray:
    """Return a block of DCT coefficients, float64 (8, 8), after each of TURNS, (7, 8, 8).

    cos(pi (2 (31 - x) + 1) v / 64) = (-1)^v cos(pi (2x + 1) v / 64): a horizontal flip changes the
    sign of odd columns, a vertical one of odd rows; a transpose transposes.
    """
    columns, rows = _SIGNS[None, :], _SIGNS[:, None]
    across = low.T
    return np.stack(
        [
            low * columns,
            low * rows,
            low * rows * columns,
            across,
            across * rows * columns,
            across * rows,
            across * columns,
        ]
    )


_SIGNS = np.array([1.0, -1.0] * 4)


def _low(image: Image.Image) -> np.ndarray:
    """Return the 8 x 8 lowest DCT coefficients of the grey picture."""
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    return dct(dct(grey, axis=0), axis=1)[:8, :8]


def _hashes(blocks: np.ndarray) -> list[int]:
    """Return the hash of each block, (N, 8, 8), against its own median."""
    coefficients = blocks.reshape(len(blocks), 64)
    bits = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].tolist()


def pdq256(image: Image.Image) -> tuple[bytes, int]:
    """Return the PDQ hash (32 bytes) and its quality, 0..100."""
    bits, quality = pdqhash.compute(np.asarray(image.convert("RGB")))
    return np.packbits(bits.astype(bool)).tobytes(), int(quality)
