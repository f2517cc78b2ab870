"""Perceptual hashes of one decoded picture: phash64, as it is and turned, and PDQ.

Shape legend: H height, W width.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
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
PDQ_MIN_SIDE_PX = 5
"""PDQ gives smaller pictures the hash 0 and the quality 0."""
UNDECIDED = 10.0
"""Distance of a coefficient from the median: 4 of 244 reduced photographs have three below 0.4, all others above 15."""
_ROWS_AT_ONCE = 256


def phash64(image: Image.Image) -> int:
    """Return imagehash's pHash as an integer, its first bit (row-major) the highest.

    Grey, Lanczos to 32 x 32, unnormalised DCT-II along axis 0 then 1, the top-left 8 x 8 with DC,
    bit = coefficient above the median of the 64.
    """
    return phash64_and_turned(image)[0]


def phash64_and_turned(image: Image.Image) -> tuple[int, list[int]]:
    """Return phash64 of the picture, and of the picture after each of TURNS."""
    return phashes(np.asarray(image.convert("L")))


def phashes(luma_HW: np.ndarray, extent_HW: tuple[float, float] | None = None) -> tuple[int, list[int]]:
    """Return phash64 of uint8 luma, and of the picture after each of TURNS, from one DCT.

    Of a reduced decode, the picture covers `extent_HW` pixels from the array's corner on: a side may have
    been rounded up. Without it Pillow itself resizes, so that the hash is imagehash's to the bit.
    """
    return phashes_of(low_frequencies(luma_HW, extent_HW))


def low_frequencies(luma_HW: np.ndarray, extent_HW: tuple[float, float] | None = None) -> np.ndarray:
    """Return the first 8 x 8 DCT coefficients of a picture's luma at 32 x 32, float64."""
    return dct(dct(_luma_32(luma_HW, extent_HW), axis=0), axis=1)[:8, :8]


def phashes_of(low: np.ndarray) -> tuple[int, list[int]]:
    """Return phash64 of a picture by its first 8 x 8 coefficients, and of the picture after each of TURNS."""
    own, *others = _hashes(np.concatenate([low[None], turned(low)]))
    return own, others


def is_undecided(low: np.ndarray) -> bool:
    """Return whether rounding may turn more than two bits of a hash, by the first 8 x 8 coefficients.

    Half of the coefficients of a picture that is its own mirror image are 0, and so is their median.
    """
    away = np.abs(low.ravel() - np.median(low))
    return bool(np.partition(away, 2)[2] < UNDECIDED)


def _luma_32(luma_HW: np.ndarray, extent_HW: tuple[float, float] | None) -> np.ndarray:
    """Return the luma resized to 32 x 32 by Lanczos, float: Pillow, or two products in half its time."""
    if extent_HW is None:
        small = Image.fromarray(luma_HW).resize((32, 32), Image.Resampling.LANCZOS)
        return np.asarray(small, np.float64)
    down, across = (_lanczos_weights(n, extent) for n, extent in zip(luma_HW.shape, extent_HW, strict=True))
    return (down @ (luma_HW.astype(np.float32) @ across.T)).astype(np.float64)


@lru_cache(maxsize=256)
def _lanczos_weights(side_px: int, extent_px: float) -> np.ndarray:
    """Return what each of 32 pixels takes from `extent_px` of a side, float32 (32, side_px).

    Pillow's antialiasing (Resample.c): a window of three lobes, as wide as the scale asks for.
    """
    scale = extent_px / 32
    centre = (np.arange(32)[:, None] + 0.5) * scale
    x = (np.arange(side_px) + 0.5 - centre) / max(scale, 1.0)
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def turned(low: np.ndarray, signs: np.ndarray | None = None) -> np.ndarray:
    """Return a block of DCT coefficients, float (N, N), after each of TURNS, (7, N, N).

    cos(pi (2 (31 - x) + 1) v / 64) = (-1)^v cos(pi (2x + 1) v / 64): a horizontal flip changes the
    sign of odd columns, a vertical one of odd rows; a transpose transposes.
    """
    signs = _SIGNS if signs is None else signs
    columns, rows = signs[None, :], signs[:, None]
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
_PDQ_SIGNS = np.array([-1.0, 1.0] * 8, np.float32)
"""PDQ leaves coefficient 0 out."""


def _hashes(blocks: np.ndarray) -> list[int]:
    """Return the hash of each block, (N, 8, 8), against its own median."""
    coefficients = blocks.reshape(len(blocks), 64)
    bits = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].tolist()


def pdq256(image: Image.Image) -> tuple[bytes, int]:
    """Return the PDQ hash (32 bytes) and its quality, 0..100, of a picture at its full size."""
    return pdq(np.asarray(image.convert("L")))


def pdq(luma_HW: np.ndarray) -> tuple[bytes, int]:
    """Return the PDQ hash (32 bytes) and its quality, 0..100, of uint8 luma.

    Facebook, "The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm" (2019): a tent
    filter and every n-th pixel give 64 x 64; coefficients 1..16 x 1..16 of its DCT against their median.
    Filter and decimation are linear and separable: two products with matrices that depend on a side alone.
    """
    hashes, quality = pdq_and_turned(luma_HW)
    return hashes[0], quality


def pdq_and_turned(luma_HW: np.ndarray) -> tuple[list[bytes], int]:
    """Return the PDQ hashes of uint8 luma as it is and after each of TURNS, from one DCT, and the quality."""
    if min(luma_HW.shape) < PDQ_MIN_SIDE_PX:
        return [bytes(32)] * (1 + len(TURNS)), 0
    down, across = _pdq_weights(luma_HW.shape[0]), _pdq_weights(luma_HW.shape[1])
    if luma_HW.shape == (64, 64):
        down = across = np.eye(64, dtype=np.float32)
    rows = [
        luma_HW[at : at + _ROWS_AT_ONCE].astype(np.float32) @ across.T for at in range(0, len(luma_HW), _ROWS_AT_ONCE)
    ]
    small = down @ np.concatenate(rows)
    low = _PDQ_DCT @ small @ _PDQ_DCT.T
    blocks = np.concatenate([low[None], turned(low, _PDQ_SIGNS)]).reshape(-1, 256)
    bits = blocks > np.partition(blocks, 127, axis=1)[:, 127:128]  # the reference's median is the lower one
    return [row.tobytes() for row in np.packbits(bits[:, ::-1], axis=1)], _pdq_quality(small)


def _pdq_quality(small: np.ndarray) -> int:
    """Return PDQ's image-domain quality of the 64 x 64 picture: the sum of its gradients of 1 % and more."""
    gradients = sum(np.abs(np.trunc(np.diff(small, axis=axis) * 100 / 255)).sum() for axis in (0, 1))
    return min(100, int(gradients) // 90)


_PDQ_DCT = (np.sqrt(2 / 64) * np.cos(np.pi / 128 * np.outer(np.arange(1, 17), 2 * np.arange(64) + 1))).astype(
    np.float32
)


@lru_cache(maxsize=256)
def _pdq_weights(side_px: int) -> np.ndarray:
    """Return what each of 64 pixels takes from a side, float32 (64, side_px): two box filters, then decimation.

    The box is side_px / 128 wide, rounded up, and narrower at the ends (Jarosz, SIGGRAPH 2001).
    """
    width = -(-side_px // 128)
    ahead = (width + 2) // 2
    at = np.arange(side_px)
    first, last = np.maximum(at - (width - ahead), 0), np.minimum(at + ahead, side_px)
    weights = np.zeros((64, side_px))
    for pixel, centre in enumerate(((np.arange(64) + 0.5) * side_px / 64).astype(int)):
        window = range(first[centre], last[centre])
        for inner in window:
            weights[pixel, first[inner] : last[inner]] += 1 / (len(window) * (last[inner] - first[inner]))
    return weights.astype(np.float32)
