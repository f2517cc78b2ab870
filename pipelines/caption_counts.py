"""Counts of equal and nearly equal captions over the corpus: keys go to the part they belong to, counts come back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curate.config import CurationConfig
from pipelines.runner import Made
from pipelines.shuffle import Parts, read_part, write_parts
from pipelines.store import Root, Written, parquet_bytes, table_file
from schemas.captions import COUNTS
from schemas.column import conform

SCRATCH = "scratch/captions"
ROWS_A_PART = 8_000_000
"""Keys that one task counts at a time: 128 MB, and as much again to sort them."""
KEY = np.dtype([("key", "<u8"), ("row", "<u4"), ("near", "u1")])
FOUND = np.dtype([("row", "<u4"), ("near", "u1"), ("count", "<i8")])


def count(config: CurationConfig, pool: Any, names: Sequence[str], rows: int) -> Made:
    """Return the table's files, one for each fragment of texts."""
    root = Root(config.root)
    root.remove(SCRATCH, recursive=True)
    parts = max(1, -(-2 * rows // ROWS_A_PART))
    sent = pool.share(list(pool.map(send, [(config, name, parts) for name in names])))
    found = pool.share(list(pool.map(count_part, [(config, sent, part, len(names)) for part in range(parts)])))
    files, repeated = {}, 0
    for path, file, of_fragment in pool.map(write, [(config, at, name, found) for at, name in enumerate(names)]):
        files[path] = file
        repeated += of_fragment
    root.remove(SCRATCH, recursive=True)
    return Made(rows=None, files=files, counts={"repeated": repeated}, num_rows=rows)


def send(config: CurationConfig, name: str, parts: int) -> Parts:
    """Write a fragment's keys, sorted by the part that counts them."""
    root = Root(config.root)
    rows = root.read_table(table_file("texts", name), ["equal_key", "near_key"])
    there = np.flatnonzero(rows["equal_key"].is_valid().to_numpy())
    records = np.empty(2 * len(there), KEY)
    for near, column in enumerate(("equal_key", "near_key")):
        half = records[near * len(there) : (near + 1) * len(there)]
        half["key"], half["row"], half["near"] = rows[column].drop_null().to_numpy(), there, near
    part = (records["key"] % np.uint64(parts)).astype(np.int64)
    return write_parts(root, f"{SCRATCH}/keys/{name}", records, part, parts)


def count_part(config: CurationConfig, sent: Sequence[Parts], part: int, fragments: int) -> Parts:
    """Count one part's keys, and write what each fragment is to be told."""
    root = Root(config.root)
    of_fragment = np.repeat(np.arange(fragments), [int(file.starts[part + 1] - file.starts[part]) for file in sent])
    records = read_part(root, sent, part)
    found = np.empty(len(records), FOUND)
    found["row"], found["near"] = records["row"], records["near"]
    for near in (0, 1):
        at = np.flatnonzero(records["near"] == near)
        _, inverse, counts = np.unique(records["key"][at], return_inverse=True, return_counts=True)
        found["count"][at] = counts[inverse]
    return write_parts(root, f"{SCRATCH}/counts/{part:05d}", found, of_fragment, fragments)


def write(config: CurationConfig, number: int, name: str, found: Sequence[Parts]) -> tuple[str, Written, int]:
    """Write one fragment of the table; returns path, file, and how many of its captions are not the only one."""
    root = Root(config.root)
    uid = root.read_table(table_file("texts", name), ["uid"])["uid"]
    told = read_part(root, found, number)
    counts = np.ones((2, len(uid)), np.int64)
    counts[told["near"], told["row"]] = told["count"]
    table = pa.table({"uid": uid, "caption_count": counts[0], "near_caption_count": counts[1]})
    data, path = parquet_bytes(conform(table, COUNTS)), table_file("caption_counts", name)
    root.write(path, data)
    written = Written(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return path, written, int((counts[0] > 1).sum())
