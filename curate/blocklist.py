"""Blocklists: hashes of pictures that are never exported. Only hashes are read, kept or shown."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
from numba import njit

from curate.bad_input import BadInput
from curate.config import ScoreConfig
from curate.dedup.bands import popcount

BITS = {"pdq": 256, "md5": 128, "sha1": 160, "sha256": 256}
"""Kinds of hashes; all but PDQ are of the file's bytes."""
PDQ_MIN_QUALITY = 50
"""PDQ hashes of lower quality are not matched."""
MAX_RADIUS_BITS = 31
"""What the index finds without loss: of 16 bands of 16 bits, one then differs in one bit at most."""
_BANDS, _VALUES = 16, 1 << 16
_COMMENT = ("#", "//", ";")
_HEADER_MARK = "%%%% "


def lists_of(config: ScoreConfig) -> dict[str, tuple[str, ...]]:
    """Return the lists' URLs by kind of hash."""
    return {kind: getattr(config, f"blocklists_{kind}") for kind in BITS}


def read(path: str) -> bytes:
    """Return a list's bytes."""
    with fsspec.open(path, "rb") as file:
        return file.read()


def load(config: ScoreConfig) -> dict[str, frozenset[bytes]]:
    """Return the listed hashes by kind; raises FileNotFoundError, or ValueError naming file and line."""
    return {
        kind: frozenset().union(
            *(parse(read(path).decode("utf-8", "replace").splitlines(), path, kind) for path in paths)
        )
        for kind, paths in lists_of(config).items()
    }


def parse(lines: Iterable[str], where: str, kind: str) -> frozenset[bytes]:
    """Return the hashes of a list; raises ValueError naming file and line, never what stands there.

    Read are: one hash in hex a line, perhaps with more behind it (md5sum, sha256sum); CSV, TSV and semicolons, with or
    without a header line, in which the hash is the first column or the one called `hash` or like its kind (PDQ's
    hash,quality,file; NSRL's "SHA-1","MD5",...); hashdeep's files. # starts a comment.
    """
    wanted = re.compile(rf"(?:{kind}:|0x|\\)?([0-9a-f]{{{BITS[kind] // 4}}})", re.IGNORECASE)
    hashes, column, width = set(), 0, 0
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix("\ufeff").strip(" \r\n")
        if not text or text.startswith(_COMMENT) or re.fullmatch(r"%%%% HASHDEEP-[\d.]+", text):
            continue
        cells = _cells(text.removeprefix(_HEADER_MARK))
        if width == 0 or text.startswith(_HEADER_MARK):
            named = _column(cells, kind)
            if named is not None:
                column, width = named, len(cells)
                continue
            width = 1
        cell = cells[column] if column < len(cells) else ""
        if not cell and width > 1:
            continue  # a table of several kinds, without this one here
        found = wanted.fullmatch(cell)
        if not found:
            raise BadInput(f"{where}, line {number}: has no {kind} hash of {BITS[kind] // 4} hex characters")
        hashes.add(bytes.fromhex(found[1]))
    return frozenset(hashes)


def _cells(text: str) -> list[str]:
    delimiter = next((mark for mark in ",;\t" if mark in text), None)
    if delimiter is None:
        return text.split()
    return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]


def _column(cells: Sequence[str], kind: str) -> int | None:
    """Return the place of the hash where the cells are a header line."""
    names = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in cells]
    known = (kind, f"{kind}hash", f"hash{kind}", "hash", "hashvalue", "value")
    return next((names.index(name) for name in known if name in names), None)


@dataclass(frozen=True, kw_only=True)
class PdqList:
    """Listed PDQ hashes, sorted for search by each band of 16 bits."""

    words: np.ndarray
    """uint64 (L, 4)."""
    order: np.ndarray
    """int32 (16, L): the hashes in the order of each band's value."""
    starts: np.ndarray
    """int32 (16, 65537): where each value begins in that order."""


def pdq_list(listed: frozenset[bytes]) -> PdqList:
    """Return the index of listed hashes of 32 bytes."""
    raw = np.frombuffer(b"".join(sorted(listed)), np.uint8).reshape(-1, 32)
    bands = np.ascontiguousarray(raw.view("<u2").T)
    counts = np.stack([np.bincount(band, minlength=_VALUES) for band in bands])
    starts = np.concatenate([np.zeros((_BANDS, 1), np.int64), np.cumsum(counts, axis=1)], axis=1)
    order = np.argsort(bands, axis=1, kind="stable")
    return PdqList(words=raw.view("<u8"), order=order.astype(np.int32), starts=starts.astype(np.int32))


def pdq_matches(hashes: np.ndarray, quality: np.ndarray, listed: PdqList, radius_bits: int) -> np.ndarray:
    """Return int32 (N,): a listed hash within the radius of one of a picture's turns, or -1.

    hashes: uint8 (N, T, 32), the picture's PDQ hash as it is and turned. quality: int (N,), 0..100; below 50 nothing is
    matched, as the reference asks. The nearest listed hash is returned, of several the first in order.
    """
    assert 0 <= radius_bits <= MAX_RADIUS_BITS
    found = np.full(len(hashes), -1, np.int32)
    usable = np.flatnonzero(quality >= PDQ_MIN_QUALITY)
    if len(listed.words) and len(usable):
        words = np.ascontiguousarray(hashes[usable]).view("<u8")
        found[usable] = _search(words, listed.words, listed.order, listed.starts, radius_bits)
    return found


@njit(cache=True, nogil=True)
def _search(words, listed, order, starts, radius):  # type: ignore[no-untyped-def]  # pragma: no cover
    found = np.full(len(words), -1, np.int32)
    for row in range(len(words)):
        best, at = np.int64(radius + 1), np.int32(-1)
        for turn in range(words.shape[1]):
            for band in range(16):
                value = (words[row, turn, band // 4] >> np.uint64(16 * (band % 4))) & np.uint64(0xFFFF)
                for bit in range(17):
                    near = value if bit == 16 else value ^ (np.uint64(1) << np.uint64(bit))
                    for place in range(starts[band, near], starts[band, near + np.uint64(1)]):
                        entry = order[band, place]
                        distance = np.int64(0)
                        for word in range(4):
                            distance += np.int64(popcount(words[row, turn, word] ^ listed[entry, word]))
                        if distance < best or (distance == best and entry < at):
                            best, at = distance, entry
        found[row] = at
    return found
