#!/usr/bin/env python3
"""The data order over an index of 100 million rows: start, memory, resume; one JSON line for each measurement.

    python infra/bench/data_order.py [--rows 100000000] [--rate_rows 4000000] [--folder TEMPORARY]

Writes an index of that many rows in 40 aspect buckets (128 bytes each with its caption), starts a fresh process on it,
and measures the time to the first batch and the memory after 100 batches, from step 0 and from step 1 million. The
same again over a file of 2 billion rows that is sparse: its rows are zeros, its order and its arithmetic are not. Last,
the rate at which an index is built from parquet, by one process and by one for each core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

GLOBAL_BATCH = 2048
CAPTION_BYTES = 40
CHUNK = 1_000_000
BATCHES = 100
FRAGMENT_ROWS = 250_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--sparse_rows", type=int, default=2_000_000_000)
    parser.add_argument("--rate_rows", type=int, default=4_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where the index is written, and removed")
    parser.add_argument("--measure", type=Path, default=None, help="(internal) measure this index and print")
    parser.add_argument("--step", type=int, default=0)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.step)), flush=True)
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="data_order-"))
    try:
        for rows, sparse in ((args.rows, False), (args.sparse_rows, True)):
            started = time.perf_counter()
            write_index(folder / "index", rows, sparse)
            seconds = time.perf_counter() - started
            for step in (0, 1_000_000):
                line = fresh_process(folder / "index", step)
                said = {"rows": rows, "sparse": sparse, "index_gb": size_gb(folder / "index"), "written_s": seconds}
                print(json.dumps({"bench": "data_order", **said, **line}), flush=True)
            shutil.rmtree(folder / "index")
        print(json.dumps({"bench": "index_build", **build_rate(folder / "root", args.rate_rows)}), flush=True)
    finally:
        shutil.rmtree(folder)


def fresh_process(index: Path, step: int) -> dict[str, float]:
    started = time.perf_counter()
    command = [sys.executable, __file__, "--measure", str(index), "--step", str(step)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) | {"process_s": time.perf_counter() - started}


def measure(folder: Path, step: int) -> dict[str, float]:
    """Return seconds to the first batch with all its rows read, for each later batch, and the peak of memory."""
    started = time.perf_counter()
    from train.index.reader import open_index
    from train.order import Order

    index = open_index(folder)
    groups = index.order_groups(None)
    order = Order(groups=groups, global_batch=GLOBAL_BATCH, seed=0, piece_rows=512, window_pieces=64)
    samples = [index.sample(row) for row in order.batch(step).rows.tolist()]
    first_s = time.perf_counter() - started
    started, pieces = time.perf_counter(), 0
    for later in range(step + 1, step + 1 + BATCHES):
        rows = order.batch(later).rows
        pieces += 1 + int((np.diff(rows) > 512).sum())
        samples = [index.sample(row) for row in rows.tolist()]
    assert len(samples) == GLOBAL_BATCH
    return {
        "step": step,
        "first_batch_s": first_s,
        "batch_ms": 1000 * (time.perf_counter() - started) / BATCHES,
        "pieces_a_batch": pieces / BATCHES,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def write_index(folder: Path, num_rows: int, sparse: bool) -> None:
    from curate.buckets import SDXL_1024
    from train.index.reader import ROW, VERSION

    folder.mkdir()
    counts = [num_rows // 40 + (number < num_rows % 40) for number in range(40)]
    with (folder / "rows.bin").open("wb") as rows, (folder / "captions.bin").open("wb") as captions:
        if sparse:
            rows.truncate(num_rows * ROW.itemsize)
        for first in range(0, 0 if sparse else num_rows, CHUNK):
            chunk = np.zeros(min(CHUNK, num_rows - first), ROW)
            numbers = np.arange(first, first + len(chunk))
            chunk["shard"] = numbers // 5000 % 1000
            chunk["offset"], chunk["num_bytes"] = numbers % 5000 * 300_000, 262_272
            chunk["caption_offset"], chunk["caption_bytes"] = numbers * CAPTION_BYTES, CAPTION_BYTES
            rows.write(chunk.tobytes())
            captions.write(b"a caption of a picture, forty bytes long" * len(chunk))
    (folder / "shards.txt").write_bytes(b"".join(b"shards/%05d.tar" % number for number in range(1000)))
    firsts = np.cumsum([0, *counts])[:-1].tolist()
    groups = [
        {"bucket_hw": bucket, "source": "web", "weight": 1.0, "first_row": first, "num_rows": count}
        for bucket, first, count in zip(SDXL_1024, firsts, counts, strict=True)
    ]
    said = {"version": VERSION, "digest": "bench", "shard_name_bytes": 16, "missing_aesthetic": 0, "left_out": 0}
    said |= {"rows_found": num_rows, "missing_latents": [0, 0]}
    (folder / "index.json").write_text(json.dumps(said | {"resolution_px": 1024, "groups": groups}))


def build_rate(root: Path, num_rows: int) -> dict[str, float]:
    """Build an index from parquet, in fragments of 250,000 rows in 40 buckets, in one process and in all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from curate.buckets import SDXL_1024
    from schemas.shards import SCHEMA
    from train.index.build import IndexOf, build_index
    from train.index.fragments import TABLE_COLUMNS

    rng = np.random.default_rng(0)
    (root / "tables/shards").mkdir(parents=True)
    names = [f"part-{first:09d}" for first in range(0, num_rows, FRAGMENT_ROWS)]
    for name in names:
        sizes = {
            field.name: rng.integers(0, 1000, FRAGMENT_ROWS) for field in SCHEMA if pa.types.is_integer(field.type)
        }
        buckets = np.array(SDXL_1024)[rng.integers(0, 40, FRAGMENT_ROWS)]
        sizes |= {"bucket_height_px": buckets[:, 0], "bucket_width_px": buckets[:, 1]}
        sizes |= {
            "offset": np.arange(FRAGMENT_ROWS) * 1000,
            "aesthetic": rng.random(FRAGMENT_ROWS),
            "weight": np.ones(FRAGMENT_ROWS),
        }
        letters = rng.bytes(16 * FRAGMENT_ROWS).hex()
        uids = [letters[at : at + 32] for at in range(0, len(letters), 32)]
        texts = {"source": "web", "split": "train", "caption": "a picture " * 4}
        columns = sizes | {"uid": uids, "shard": [f"shards/train/{name}-{n // 5000}.tar" for n in range(FRAGMENT_ROWS)]}
        columns |= {column: [text] * FRAGMENT_ROWS for column, text in texts.items()}
        table = pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in TABLE_COLUMNS})
        pq.write_table(table, root / f"tables/shards/{name}.parquet")
    (root / "tables/shards/_run.json").write_text(
        json.dumps({"fragments": {name: {"receipt": name} for name in names}})
    )
    rates = {}
    for processes in (1, None):
        started = time.perf_counter()
        build_index(IndexOf(root=str(root), split="train"), root / "index/train", processes)
        rates[f"rows_per_s_{processes or 'all'}"] = num_rows / (time.perf_counter() - started)
    return {"rows": num_rows, **rates, "processes": os.cpu_count() or 1}


def size_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e9


if __name__ == "__main__":
    main()
