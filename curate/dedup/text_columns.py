"""Columns of text as words of 64 bits, without a Python object for each value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

_VALUES = np.full(256, 255, np.uint8)
"""The value of each character as a hex digit, 255 for all others."""
for _digit, _character in enumerate("0123456789abcdef"):
    _VALUES[[ord(_character), ord(_character.upper())]] = _digit


def words_of_hex(column: pa.ChunkedArray, digits: int, words: int | None = None) -> np.ndarray:
    """Return strings of `digits` hex digits as uint64 (N, words), the first digits first; the rest is left out.

    Raises ValueError for nulls, other lengths and other characters.
    """
    if column.null_count:
        raise ValueError(f"column with {column.null_count} nulls: every value must be {digits} hex digits")
    lengths = pc.min_max(pc.binary_length(column)).as_py()
    if len(column) and lengths != {"min": digits, "max": digits}:
        raise ValueError(f"column of lengths {lengths}: every value must be {digits} hex digits")
    made = np.empty((len(column), words or digits // 16), np.uint64)
    offsets, text = _buffers(column)
    wrong = _hex_words(text, offsets, made)
    if wrong >= 0:
        raise ValueError(f"{column[wrong].as_py()!r}: every value must be hex digits")
    return made


def hex_of_words(words: np.ndarray) -> pa.Array:
    """Return uint64 (N, W) as strings of 16 W hex digits."""
    digits = words.shape[1] * 16
    text = np.ascontiguousarray(words).astype(">u8").tobytes().hex().encode()
    ends = np.arange(0, len(text) + 1, digits, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(words), pa.py_buffer(ends), pa.py_buffer(text)).cast(pa.string())


def hashes_of_text(column: pa.ChunkedArray) -> np.ndarray:
    """Return a 32-bit hash of each value, uint32 (N,); null counts as empty."""
    made = np.empty(len(column), np.uint32)
    offsets, text = _buffers(column.fill_null(""))
    _hash_text(text, offsets, made)
    return made


def _buffers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets, int64 (N + 1,), and the bytes, uint8, of a column without nulls."""
    whole = pa.chunked_array(column).combine_chunks().cast(pa.large_string())
    if len(whole) == 0:
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    offsets = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
    return offsets, np.frombuffer(whole.buffers()[2] or b"", np.uint8)


@njit(nogil=True, cache=True)
def _hex_words(text, offsets, words_NW):
    """Fill in the words; return the first row with another character, -1 without one."""
    for row in range(len(words_NW)):
        at = offsets[row]
        for word in range(words_NW.shape[1]):
            value = np.uint64(0)
            for _ in range(16):
                digit = _VALUES[text[at]]
                if digit > 15:
                    return row
                value = value << np.uint64(4) | np.uint64(digit)
                at += 1
            words_NW[row, word] = value
    return -1


@njit(nogil=True, cache=True)
def _hash_text(text, offsets, hashes):
    """FNV-1a (Fowler, Noll and Vo) of 64 bits, folded to 32 as its authors do."""
    for row in range(len(hashes)):
        mixed = np.uint64(0xCBF29CE484222325)
        for at in range(offsets[row], offsets[row + 1]):
            mixed = (mixed ^ np.uint64(text[at])) * np.uint64(0x100000001B3)
        hashes[row] = np.uint32((mixed ^ mixed >> np.uint64(32)) & np.uint64(0xFFFFFFFF))
