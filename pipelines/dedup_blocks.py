"""Near by hash over blocks: rows are places in the ranking, cut into blocks of which a task holds two at most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.config import CurationConfig, DedupConfig
from curate.dedup.hamming import Confirm
from curate.dedup.records import dtype
from curate.dedup.relations import NearByHash
from pipelines.store import Root

SCRATCH = "dedup_scratch"
COPY = np.dtype([("of", "i8"), ("key", "u8"), ("fragment", "i4"), ("row", "i4")])
"""A sample for which a row of a block stands, since its bytes are the same."""
END = np.dtype([("pair", "i8"), ("is_ahead", "?"), ("place", "i8")], align=True)
"""One end of a pair with the same bytes, of which one is ahead; its place is its origin before it has one."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The rows of a corpus in files below the root, best first."""

    root: str
    config: DedupConfig
    starts: np.ndarray
    """int64 (blocks + 1,): first row of each block."""
    threads: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each block that holds any of the ascending rows, with them."""
        cuts = np.searchsorted(rows, self.starts)
        for block, (first, last) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            if last > first:
                yield block, rows[first:last]

    def between(self, block: int, first: int, last: int) -> np.ndarray:
        """Return the rows of a block that are in first..last - 1."""
        return np.arange(max(first, self.starts[block]), min(last, self.starts[block + 1]))

    def load(self, name: str, parts: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """Return a column at given rows of given blocks, one after the other."""
        root = Root(self.root)
        kind = dtype(self.config)[name]
        columns = []
        for block, rows in parts:
            column = np.frombuffer(root.view(column_file(block, name)), kind.base).reshape(-1, *kind.shape)
            columns.append(column if len(rows) == len(column) else column[rows - self.starts[block]])
        return columns[0] if len(columns) == 1 else np.concatenate([np.empty((0, *kind.shape), kind.base), *columns])

    def near_by(self, parts: Sequence[tuple[int, np.ndarray]]) -> NearByHash:
        """Return the relation over the given rows of blocks, counted from 0."""
        turned = confirm = turned_second = None
        if self.config.turns != "none":
            turned = np.ascontiguousarray(self.load("turned", parts).T)
        if self.config.confirm_pdq_bits is not None:
            words = np.ascontiguousarray(self.load("pdq", parts).T)
            confirm = Confirm(words_4N=words, radius=self.config.confirm_pdq_bits)
        if turned is not None and confirm is not None:
            turned_second = np.ascontiguousarray(self.load("turned_pdq", parts).transpose(1, 2, 0))
        return NearByHash(
            words_WN=self.load("phash", parts)[None],
            radius=self.config.radius_bits,
            has_hash=self.load("has_hash", parts),
            turned_TN=turned,
            confirm=confirm,
            turned_second_T4N=turned_second,
            threads=self.threads,
        )


def column_file(block: int, name: str) -> str:
    return f"{SCRATCH}/blocks/{block:05d}/{name}.bin"


def copies_file(block: int) -> str:
    return f"{SCRATCH}/blocks/{block:05d}-copies.bin"


def write_block(config: CurationConfig, block: int, records: np.ndarray) -> None:
    """Write the columns of one block's records, which are in the order of their rank."""
    root = Root(config.root)
    for name in records.dtype.names or ():
        column = np.ascontiguousarray(records[name]).reshape(-1).view(np.uint8)
        root.write(column_file(block, name), column.data, durable=False)


@dataclass(frozen=True, kw_only=True)
class NearInBlocks:
    """The relation over all rows; each pair of blocks is a task."""

    blocks: Blocks
    pool: Any

    def near_any(self, first: int, last: int) -> np.ndarray:
        is_near, blocks = np.zeros(last - first, bool), range(len(self.blocks))
        calls = [(self.blocks, first, last, i, j) for i in blocks for j in blocks if j >= i]
        for near in self.pool.map(_met, calls, self.blocks.threads):
            is_near[near - first] = True
        return first + np.flatnonzero(is_near)

    def near_fixed(self, fixed: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = range(len(self.blocks))
        calls = [(self.blocks, fixed, last, i, j) for i in blocks for j in blocks
                 if self.blocks.starts[i + 1] > fixed > self.blocks.starts[j]]  # fmt: skip
        return best_of(self.pool.map(_near_fixed, calls, self.blocks.threads))

    def pairs(self, rows: np.ndarray, limit: int) -> np.ndarray | None:
        if len(rows) > self.blocks.config.rows_per_block:
            return None
        calls = [(self.blocks, list(self.blocks.of(rows)), limit)] if len(rows) else []
        found = list(self.pool.map(_pairs, calls, self.blocks.threads))
        return found[0] if found else np.empty((0, 2), np.int32)

    def nearest(self, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls = [(self.blocks, left, right)
                 for left in self.blocks.of(of) for right in self.blocks.of(among)]  # fmt: skip
        return best_of(self.pool.map(_nearest, calls, self.blocks.threads))


def best_of(found: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return each row that was found, once and ascending, with the smallest row near it."""
    pieces = [(np.empty(0, np.int64), np.empty(0, np.int64)), *found]
    row, near = (np.concatenate([piece[side] for piece in pieces]) for side in (0, 1))
    order = np.lexsort((near, row))
    once = order[np.r_[True, row[order][1:] != row[order][:-1]][: len(order)]]
    return row[once], near[once]


def _met(blocks: Blocks, first: int, last: int, i: int, j: int) -> np.ndarray:
    """Return the rows in first..last - 1 that may be near another one: of one block among themselves, or of two."""
    left, right = blocks.between(i, first, last), blocks.between(j, first, last)
    relation = blocks.near_by([(i, left)] if i == j else [(i, left), (j, right)])
    if i == j:
        return left[relation.marked(np.arange(len(left)))]
    return np.concatenate([left, right])[relation.met(np.arange(len(left)), len(left) + np.arange(len(right)))]


def _near_fixed(blocks: Blocks, fixed: int, last: int, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
    return _nearest(blocks, (i, blocks.between(i, fixed, last)), (j, blocks.between(j, 0, fixed)))


def _pairs(blocks: Blocks, parts: list[tuple[int, np.ndarray]], limit: int) -> np.ndarray | None:
    relation = blocks.near_by(parts)
    return relation.pairs(np.arange(sum(len(rows) for _, rows in parts)), limit)


def _nearest(blocks: Blocks, left: tuple[int, np.ndarray], right: tuple[int, np.ndarray]) -> Any:
    """Return the rows of the left block that are near one of the right, and the best one for each."""
    relation = blocks.near_by([left, right])
    count = len(left[1])
    near, best = relation.nearest(np.arange(count), count + np.arange(len(right[1])))
    return left[1][near], right[1][best - count]
