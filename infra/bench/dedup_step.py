"""The whole dedup step, from parquet to parquet, on hashes like a crawl's. One JSON line for each number of samples.

Ray's own start is apart: it is up before the clock starts. Embeddings are left out (`infra/bench/semantic.py`).

    python infra/bench/dedup_step.py [--count 1000000 10000000] [--radius 4]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from near_duplicates import crawl_hashes  # noqa: E402

from curate.config import CurationConfig, DedupConfig  # noqa: E402
from pipelines.dedup import dedup  # noqa: E402
from pipelines.runner import Runner  # noqa: E402
from pipelines.store import Root, commit, parquet_bytes, publish, table_file  # noqa: E402

ROWS_PER_FRAGMENT = 250_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--rows-per-block", type=int, default=10_000_000)
    parser.add_argument("--folder", help="where the tables are written (a temporary folder)")
    arguments = parser.parse_args()
    for count in arguments.count:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            settings = DedupConfig(
                radius_bits=arguments.radius, semantic_eps=None, rows_per_block=arguments.rows_per_block
            )
            print(json.dumps(measure(CurationConfig(root=folder, dedup=settings), count)), flush=True)


def measure(config: CurationConfig, count: int) -> dict[str, object]:
    write_tables(Root(config.root), count)
    os.sync()  # what was written is on the disk before the clock starts
    with Runner(config) as runner:
        ray = runner.ray()
        ray.get(ray.remote(lambda: None).remote())
        started = time.perf_counter()
        report = dedup(runner)[0]
        seconds = time.perf_counter() - started
    return {
        "bench": "dedup_step",
        "count": count,
        "radius_bits": config.dedup.radius_bits,
        "rows_per_block": config.dedup.rows_per_block,
        "seconds": round(seconds, 2),
        "counts": report.counts,
        "driver_peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def write_tables(root: Root, count: int) -> None:
    """Write the tables that dedup reads: samples whose hashes and bytes repeat as a crawl's do."""
    hashes = crawl_hashes(count, seed=0)
    receipts: dict[str, list] = {"samples": [], "captions": [], "features": []}
    for number, first in enumerate(range(0, count, ROWS_PER_FRAGMENT)):
        name = f"crawl-{number:05d}"
        part = hashes[first : first + ROWS_PER_FRAGMENT]
        for table, columns in _columns(part, first).items():
            files = {table_file(table, name): parquet_bytes(pa.table(columns))}
            receipts[table].append(commit(root, table, name, "generated", files, len(part), {}))
    for table, made in receipts.items():
        publish(root, table, made, {"counts": {}, "models": []})


def _columns(hashes: np.ndarray, first: int) -> dict[str, dict[str, pa.Array]]:
    count, rng = len(hashes), np.random.default_rng(first)
    uid = pa.array([rng.bytes(16).hex() for _ in range(count)])
    same_bytes = rng.random(count) < 0.8  # of equal hashes, most are equal bytes
    salt = np.where(same_bytes, 0, np.arange(first, first + count))
    mixed = hashes * np.uint64(0x9E3779B97F4A7C15)  # as even as a SHA-256 is
    sha256 = pa.array(
        [f"{value:016x}{more:016x}{0:032x}" for value, more in zip(mixed.tolist(), salt.tolist(), strict=True)]
    )
    numbers = {
        "width_px": pa.array(rng.integers(200, 2000, count), pa.int32()),
        "height_px": pa.array(rng.integers(200, 2000, count), pa.int32()),
        "entropy_bits": pa.array(rng.uniform(1.9, 8, count), pa.float32()),
        "sharpness": pa.array(rng.uniform(0, 5000, count), pa.float32()),
        "text_share": pa.array(np.zeros(count), pa.float32()),
        "jpeg_quality": pa.array(rng.integers(30, 101, count), pa.int32()),
    }
    text = pa.array([f"a caption of some words {at}" for at in range(first, first + count)])
    constant = {"source": pa.array(["crawl"] * count), "status": pa.array(["ok"] * count)}
    return {
        "samples": {"uid": uid, "url": text, "source": constant["source"], "sha256": sha256, "caption": text},
        "captions": {"uid": uid, "caption_reason": pa.nulls(count, pa.string())},
        "features": {"uid": uid, "status": constant["status"], "phash64": pa.array(hashes), **numbers},
    }


if __name__ == "__main__":
    main()
