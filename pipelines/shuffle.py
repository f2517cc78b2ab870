"""Records on their way between tasks: each writer sorts its own by part, each reader takes its part of every file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipelines.store import Root


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One file of records sorted by part."""

    path: str
    dtype: np.dtype
    starts: np.ndarray
    """int64 (parts + 1,): first record of each part."""


def write_parts(root: Root, path: str, records: np.ndarray, part: np.ndarray, parts: int) -> Parts:
    """Write structured records (N,) by their part, int (N,) in 0..parts - 1."""
    if parts > 1:
        short = part.astype(np.uint16) if parts <= 1 << 16 else part  # sorted by radix
        records = gather(records, np.argsort(short, kind="stable"))
    root.write(path, np.ascontiguousarray(records).view(np.uint8).data, durable=False)
    starts = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=parts))])
    return Parts(path=path, dtype=records.dtype, starts=starts)


def gather(records: np.ndarray, rows: np.ndarray, threads: int = 1) -> np.ndarray:
    """Return some records; whole records are moved, which is much faster than field by field."""
    width = records.dtype.itemsize
    raw, out = np.ascontiguousarray(records).view(np.uint8).reshape(-1, width), np.empty((len(rows), width), np.uint8)
    edges = [len(rows) * at // threads for at in range(threads + 1)]

    def move(first: int, last: int) -> None:
        np.take(raw, rows[first:last], axis=0, out=out[first:last], mode="clip")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(move, edges[:-1], edges[1:]))
    return out.reshape(-1).view(records.dtype)


def read_part(root: Root, files: Sequence[Parts], part: int) -> np.ndarray:
    """Return one part of all files, in their order."""
    counts = [int(file.starts[part + 1] - file.starts[part]) for file in files]
    records = np.empty(sum(counts), files[0].dtype)
    first = 0
    for file, count in zip(files, counts, strict=True):
        if count:
            room = records[first : first + count].view(np.uint8).data
            root.read_into(file.path, int(file.starts[part]) * file.dtype.itemsize, room)
            first += count
    return records
