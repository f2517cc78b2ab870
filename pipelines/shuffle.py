"""Records on their way between tasks: each writer sorts its own by part, each reader takes its part of every file."""

from __future__ import annotations

from collections.abc import Sequence
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
    ordered = records[np.argsort(part, kind="stable")] if parts > 1 else np.ascontiguousarray(records)
    root.write(path, ordered.tobytes(), durable=False)
    starts = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=parts))])
    return Parts(path=path, dtype=records.dtype, starts=starts)


def read_part(root: Root, files: Sequence[Parts], part: int) -> np.ndarray:
    """Return one part of all files, in their order."""
    pieces = []
    for file in files:
        first, last = (int(file.starts[at]) * file.dtype.itemsize for at in (part, part + 1))
        data = root.read(file.path, first, last - first) if last > first else b""
        pieces.append(np.frombuffer(data, file.dtype))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
