"""Selection over synthetic tables of a curated corpus: seconds and peak memory of the whole step. One JSON line a case.

The tables have the columns and fragments of a real run; features lack the embeddings, which selection does not read.
Each case runs in a process of its own: it reads five tables, judges, and writes and commits the selection table.
`duckdb` is the plain cut-offs as one join of the same files in DuckDB, written as one parquet file.

    python infra/bench/selection.py [--rows 10000000] [--rows_per_fragment 10000]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from curate.config import CurationConfig, DiversityConfig, Quantile, Quota, SelectionConfig, TopFraction  # noqa: E402
from pipelines.selection import choose  # noqa: E402
from pipelines.store import commit, parquet_bytes, table_file  # noqa: E402

PLAIN = SelectionConfig()
ALL = SelectionConfig(
    preset="datacomp_basic",
    min_aesthetic=3.0,
    quantiles=(Quantile(column="sharpness", low=0.05),),
    top_fractions=(TopFraction(column="clip_similarity", fraction=0.5),),
    quotas=(
        Quota(by="domain", max_samples=5_000, rank_by="aesthetic"),
        Quota(by="source", max_share=0.4),
        Quota(by="language", max_share=0.9),
        Quota(by="license", max_share=0.9),
    ),
    diversity=DiversityConfig(max_per_cluster=400, rank_by="aesthetic"),
)
CASES = {"cut_offs": PLAIN, "everything": ALL}


def tables(number: int, rows: int) -> dict[str, pa.Table]:
    """Return one fragment of five tables, in the order of uids, as the steps write them."""
    rng = np.random.default_rng(number)
    words = np.sort(rng.integers(0, 2**63, (rows, 2), dtype=np.uint64), axis=0)
    uids = pa.array([words[at].astype(">u8").tobytes().hex() for at in range(rows)])
    hosts = (rng.zipf(1.3, rows) % 50_000).astype(str)
    url = np.char.add(np.char.add("https://www.site", hosts), np.char.add(".example/", np.arange(rows).astype(str)))
    ok, kinds = rng.random(rows) < 0.9, np.array(["exact", "perceptual", "semantic"])
    survives = rng.random(rows) < 0.7
    sides = rng.integers(120, 3000, (2, rows)).astype(np.int32)
    pick = rng.choice
    return {
        "samples": pa.table(
            {
                "uid": uids,
                "source": pick(["crawl", "archive", "museum"], rows),
                "url": url,
                "license": pick(["CC0", "CC-BY", "CC-BY-SA"], rows),
                "status": np.where(ok, "ok", "http_gone"),
            }
        ),
        "features": pa.table(
            {
                "uid": uids,
                "status": np.where(ok, "ok", "http_gone"),
                "width_px": sides[0],
                "height_px": sides[1],
                "entropy_bits": rng.normal(6.5, 1, rows).clip(0, 8).astype(np.float32),
                "sharpness": rng.exponential(300, rows).astype(np.float32),
            }
        ),
        "captions": pa.table(
            {
                "uid": uids,
                "caption_clean": np.char.add("a picture of a thing, number ", np.arange(rows).astype(str)),
                "language": pick(["en", "de", "fr"], rows, p=[0.8, 0.1, 0.1]),
                "num_words": rng.integers(1, 30, rows).astype(np.int32),
                "caption_reason": pa.array(np.where(rng.random(rows) < 0.1, "caption_too_short", None), pa.string()),
            }
        ),
        "scores": pa.table(
            {
                "uid": uids,
                "aesthetic": rng.normal(5, 1, rows).clip(1, 10).astype(np.float32),
                "nsfw_prob": rng.beta(1, 10, rows).astype(np.float32),
                "watermark_prob": rng.beta(1, 4, rows).astype(np.float32),
                "clip_similarity": rng.normal(0.22, 0.05, rows).astype(np.float32),
                "blocklist_hit": rng.random(rows) < 1e-5,
            }
        ),
        "duplicates": pa.table(
            {
                "uid": uids,
                "is_survivor": survives,
                "kind": pa.array(np.where(survives, None, pick(kinds, rows)), pa.string()),
                "semantic_cluster": pa.array(rng.zipf(1.5, rows) % 5_000, pa.int32()),
            }
        ),
    }


def write(root: str, rows: int, number: int) -> None:
    for table, made in tables(number, rows).items():
        path = Path(root) / table_file(table, f"{number:05d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet_bytes(made))


def ours(root: str, settings: SelectionConfig, names: list[str]) -> dict[str, Any]:
    from pipelines.store import Root

    made = choose(CurationConfig(root=root, selection=settings), names)
    commit(Root(root), "selection", "all", "bench", made.files, made.num_rows, made.counts)
    for file in made.files.values():
        if isinstance(file, Path):
            file.unlink()
    return {"kept": made.counts["kept"], "reasons": len(made.counts) - 1}


def duckdb_join(root: str, _: SelectionConfig, __: list[str]) -> dict[str, Any]:
    import duckdb

    with tempfile.TemporaryDirectory() as spill, duckdb.connect(config={"temp_directory": spill}) as database:
        database.execute("SET memory_limit = '2GB'")
        read = {letter: f"'{root}/tables/{name}/*.parquet'" for letter, name in zip("sfcrd", TABLES, strict=True)}
        database.execute(
            f"""COPY (SELECT uid, CASE WHEN s.status <> 'ok' THEN s.status WHEN f.status <> 'ok' THEN f.status
                WHEN r.blocklist_hit THEN 'blocklist' WHEN NOT d.is_survivor THEN 'duplicate_' || d.kind
                WHEN c.caption_reason IS NOT NULL THEN c.caption_reason
                WHEN least(f.width_px, f.height_px) < 200 THEN 'too_small'
                WHEN greatest(f.width_px, f.height_px)::DOUBLE / least(f.width_px, f.height_px) > 3
                    THEN 'extreme_aspect'
                WHEN f.entropy_bits < 2 THEN 'low_entropy' WHEN r.nsfw_prob > 0.5 THEN 'unsafe'
                WHEN r.watermark_prob > 0.8 THEN 'watermark' END AS reject_reason
            FROM {read["s"]} s JOIN {read["f"]} f USING (uid) JOIN {read["c"]} c USING (uid)
                JOIN {read["r"]} r USING (uid) JOIN {read["d"]} d USING (uid)) TO '{spill}/out.parquet'"""
        )
        count = database.sql(f"SELECT count(*) FROM '{spill}/out.parquet' WHERE reject_reason IS NULL").fetchall()
        return {"kept": count[0][0]}


TABLES = ("samples", "features", "captions", "scores", "duplicates")


def alone(case: str, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process and report its time and peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"bench": "selection", "case": case} | pool.apply(_measured, (work, *arguments))


def _measured(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    started = time.perf_counter()
    said = work(*arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak_mb = used.ru_maxrss * 1024 / 1e6
    return said | {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(peak_mb),
        "imports_mb": round(before_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rows_per_fragment", type=int, default=10_000)
    parser.add_argument("--cases", nargs="+", default=[*CASES, "duckdb"], choices=[*CASES, "duckdb"])
    arguments = parser.parse_args()
    numbers = range(arguments.rows // arguments.rows_per_fragment)
    names = [f"{number:05d}" for number in numbers]
    said = {"rows": arguments.rows, "fragments": len(names), "cpus": os.cpu_count(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as root:
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write, root, arguments.rows_per_fragment), numbers))
        assert pq.read_metadata(Path(root) / table_file("scores", names[0])).num_rows == arguments.rows_per_fragment
        for case in arguments.cases:
            work = duckdb_join if case == "duckdb" else ours
            print(json.dumps(alone(case, work, root, CASES.get(case, PLAIN), names) | said), flush=True)


if __name__ == "__main__":
    main()
