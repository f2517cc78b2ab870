"""Blocklists: hashes of pictures that are never exported. Only hashes are read, kept or shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

_HEX_256 = re.compile(r"[0-9a-fA-F]{64}")
PDQ_MIN_QUALITY = 50
"""PDQ hashes of lower quality are not matched."""


def parse(lines: Iterable[str], where: str) -> frozenset[bytes]:
    """Return the 256-bit hashes of a list: one in hex at the start of each line, # for comments.

    Raises ValueError naming file and line for anything else.
    """
    hashes = set()
    for number, line in enumerate(lines, start=1):
        word = re.split(r"[\s,;#]", line.strip(), maxsplit=1)[0]
        if not word:
            continue
        if not _HEX_256.fullmatch(word):
            raise ValueError(f"{where}, line {number}: {word[:80]!r} is not a hash of 64 hex characters")
        hashes.add(bytes.fromhex(word))
    return frozenset(hashes)


def pdq_hits(hashes: np.ndarray, quality: np.ndarray, listed: frozenset[bytes], radius_bits: int) -> np.ndarray:
    """Return bool (N,): uint8 PDQ hashes (N, 32) of quality >= 50 within the radius of a listed one."""
    hits = np.zeros(len(hashes), bool)
    usable = np.flatnonzero(quality >= PDQ_MIN_QUALITY)
    for entry in sorted(listed):
        difference = hashes[usable] ^ np.frombuffer(entry, np.uint8)
        hits[usable] |= np.bitwise_count(difference).sum(axis=1) <= radius_bits
    return hits
