"""Text columns as words, beside Python's own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from curate.dedup.text_columns import hashes_of_text, hex_of_words, words_of_hex


def column(values: list, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Return the values in two chunks, the second one cut out of a longer array."""
    kind = kind or pa.string()
    half = len(values) // 2
    return pa.chunked_array([pa.array(values[:half], kind), pa.array([*values, "x"], kind)[half:-1]])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_hex_is_read_and_written(kind):
    texts = [np.random.default_rng(at).bytes(32).hex() for at in range(7)] + ["ABCDEF0123456789" * 4]
    words = words_of_hex(column(texts, kind), 64)
    assert words.tolist() == [[int(text[at : at + 16], 16) for at in range(0, 64, 16)] for text in texts]
    assert words_of_hex(column(texts, kind), 64, 2).tolist() == words[:, :2].tolist()
    assert hex_of_words(words).tolist() == [text.lower() for text in texts]
    assert words_of_hex(column([]), 32).shape == (0, 2)


def test_what_is_no_hex_is_refused():
    with pytest.raises(ValueError, match="must be 32 hex digits"):
        words_of_hex(column(["ab", "a" * 32]), 32)
    with pytest.raises(ValueError, match="1 nulls: every value must be 32 hex digits"):
        words_of_hex(column(["a" * 32, None]), 32)
    with pytest.raises(ValueError, match="'g.*must be hex digits"):
        words_of_hex(column(["a" * 32, "g" * 32]), 32)


def test_hashes_are_fnv_1a():
    """The folded 64-bit hash, by its definition in Python's whole numbers."""
    texts = ["", "a", "caption", "caption ", "Grüße, 世界", None]

    def fnv(text: str) -> int:
        mixed = 0xCBF29CE484222325
        for byte in text.encode():
            mixed = (mixed ^ byte) * 0x100000001B3 % 2**64
        return (mixed ^ mixed >> 32) % 2**32

    assert hashes_of_text(column(texts)).tolist() == [fnv(text or "") for text in texts]
