#!/usr/bin/env python3
"""The dashboard on made tables: time until they are read, peak memory, and how long each question takes.

    python infra/bench/dashboard.py --rows 10000000

makes the tables below a temporary folder (numbers at random, a tenth of the samples duplicates, no pictures,
embeddings in the first fragments: "more like this" reads no others), starts `pipelines/dashboard.py` on them as a
process of its own and asks it over HTTP. Prints JSON lines: one for the reading, one for each question with the median
and the slowest of its turns, every turn with other values where it has any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parents[2]
TURNS = 7
EMBEDDED_ROWS, EMBEDDING_DIM = 300_000, 768
TABLES = {
    "samples": """uid, CASE WHEN n % 5 = 0 THEN 'archive' ELSE 'crawl' END AS source,
        'https://site' || (n * 7919 % 50000) || '.example/pictures/' || n || '.jpg' AS url, caption,
        CASE WHEN n % 50 > 0 THEN 'raw/made.tar' END AS shard, n * 100 AS "offset", 100::BIGINT AS num_bytes,
        'JPEG' AS format, CASE WHEN n % 3 = 0 THEN 'CC-BY-4.0' END AS license,
        CASE WHEN n % 50 > 0 THEN 'ok' ELSE 'http_gone' END AS status""",
    "captions": """uid, caption AS caption_clean, CASE WHEN n % 11 = 0 THEN 'de' ELSE 'en' END AS language,
        random()::FLOAT AS language_prob, 9 AS num_words, 12 AS num_clip_tokens, 1::BIGINT AS caption_count,
        CASE WHEN n % 11 = 0 THEN 'caption_language' END AS caption_reason""",
    "features": """uid, CASE WHEN n % 50 > 0 THEN 'ok' END AS status, (150 + random() * 2000)::INTEGER AS width_px,
        (150 + random() * 2000)::INTEGER AS height_px, (8 * sqrt(random()))::FLOAT AS entropy_bits,
        (1000 * random() * random())::FLOAT AS sharpness, random()::FLOAT AS text_share,
        (255 * random())::FLOAT AS luma_mean, (100 * random())::INTEGER AS jpeg_quality""",
    "duplicates": """uid, md5((n - CASE WHEN n % 10 = 3 THEN n % 7 ELSE 0 END)::VARCHAR) AS cluster_id,
        cluster_id AS survivor_uid, CASE WHEN is_copy THEN 'perceptual' END AS kind,
        CASE WHEN is_copy THEN 2.0::FLOAT END AS distance, NOT is_copy AS is_survivor,
        CASE WHEN is_copy THEN 'resolution' END AS won_by, (n % 1000)::INTEGER AS semantic_cluster""",
    "scores": """uid, (1 + 9 * random() * sqrt(random()))::FLOAT AS aesthetic, (random() ** 4)::FLOAT AS nsfw_prob,
        (random() ** 3)::FLOAT AS watermark_prob, (0.35 * random())::FLOAT AS clip_similarity,
        n % 100000 = 17 AS blocklist_hit""",
}
WHOLE_CORPUS = {
    "top_fractions": [{"column": "aesthetic", "fraction": 0.8, "of": "measured"}],
    "quotas": [{"by": "domain", "max_samples": 100, "rank_by": "aesthetic"}],
}
"""Rules over the whole corpus, as selection's settings name them."""
CUT_OFFS = [
    {"min_side_px": 200 + 20 * t, "min_aesthetic": 3 + 0.3 * t, "max_nsfw_prob": 0.5, "max_watermark_prob": 0.8}
    | {"min_clip_similarity": 0.05, "max_aspect": 3, "min_entropy_bits": 2}
    for t in range(TURNS)
]
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "counts": CUT_OFFS,
    "whole-counts": CUT_OFFS[:3],
    "near": [{"setting": "min_aesthetic", "value": 3 + 0.3 * t} for t in range(TURNS)],
    "funnel": [{}] * TURNS,
    "split": [{"by": "source"}, {"by": "language"}, {"by": "host"}],
    "histogram": [{"name": name} for name in ("aesthetic", "nsfw_prob", "sharpness", "entropy_bits", "width_px")],
    "most-frequent": [{"name": name} for name in ("bucket", "language", "host", "license")],
    "sliders": [{}] * 3,
    "samples": [{"stage": "dedup", "first": 100_000 * t, "count": 60} for t in range(TURNS)],
    "samples, another list": [
        {"score": "aesthetic", "low": 5 + 0.2 * t, "high": 8, "first": 5000, "count": 60} for t in range(TURNS)
    ],
    "samples, search": [{"text": f"thing {1234 + t} ", "count": 60} for t in range(TURNS)],
    "samples, sorted": [{"sort": "aesthetic", "descending": "yes", "first": t * 1000, "count": 60} for t in range(3)],
    "like": [{"uid": hashlib.md5(str(n).encode()).hexdigest()} for n in (1, 2, 4, 5, 6)],
    "clusters": [{"order": order} for order in ("largest", "smallest", "farthest")],
    "label-queue": [{"score": "aesthetic", "count": 30 + t} for t in range(3)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="samples")
    parser.add_argument("--fragment_rows", type=int, default=100_000, help="samples in each file")
    parser.add_argument("--folder", default=None, help="where the tables are made; made once, and used again")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(settings.folder or scratch)
        if not (root / "tables/selection/_run.json").exists():
            make_tables(root, settings.rows, settings.fragment_rows)
        for line in measure(root, settings.rows):
            print(json.dumps(line), flush=True)


def make_tables(root: Path, rows: int, fragment_rows: int) -> None:
    """Write every table in fragments, with the manifests that readers use."""
    spans = [(first, min(rows, first + fragment_rows)) for first in range(0, rows, fragment_rows)]
    with duckdb.connect() as database:
        for number, (first, last) in enumerate(spans):
            database.execute(
                """CREATE OR REPLACE TABLE base AS SELECT range AS n, md5(range::VARCHAR) AS uid,
                range % 10 = 3 AND range % 7 > 0 AS is_copy,
                'A picture of thing ' || range || ' beside a house in the morning light' AS caption
                FROM range(?, ?)""",
                [first, last],
            )
            for table, columns in TABLES.items():
                database.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT {columns} FROM base ORDER BY n")
                _copy(database, root, table, number)
            if first < EMBEDDED_ROWS:
                _embed(root / f"tables/features/made-{number:05d}.parquet")
            database.execute(f"CREATE OR REPLACE TABLE selection AS {_selection()}")
            _copy(database, root, "selection", number)
    for table in (*TABLES, "selection"):
        files = {
            f"made-{n:05d}": {"rows": b - a, "receipt": "", "files": _said(table, n)} for n, (a, b) in enumerate(spans)
        }
        settings = WHOLE_CORPUS if table == "selection" else {}
        said = {"rows": rows, "fragments": files, "settings": settings, "models": []}
        (root / "tables" / table / "_run.json").write_text(json.dumps(said))


def _copy(database: Any, root: Path, table: str, number: int) -> None:
    folder = root / "tables" / table
    folder.mkdir(parents=True, exist_ok=True)
    database.execute(f"COPY {table} TO '{folder}/made-{number:05d}.parquet' (COMPRESSION zstd)")


def _embed(file: Path) -> None:
    """Add unit vectors at random as float16, as embed writes them."""
    rows = pq.read_table(file)
    vectors_ND = np.random.default_rng(0).standard_normal((len(rows), EMBEDDING_DIM), np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    flat = pa.array(vectors_ND.astype(np.float16).ravel())
    embedding = pa.FixedSizeListArray.from_arrays(flat, EMBEDDING_DIM)
    pq.write_table(rows.append_column("embedding", embedding), file, compression="zstd", use_dictionary=["uid"])


def _said(table: str, number: int) -> dict[str, Any]:
    return {f"tables/{table}/made-{number:05d}.parquet": {"num_bytes": 0, "sha256": f"{table} {number}"}}


def _selection() -> str:
    """Return selection's rows with two cut-offs, enough for kept and dropped ones."""
    reason = """CASE WHEN s.status <> 'ok' THEN s.status WHEN r.blocklist_hit THEN 'blocklist'
        WHEN NOT d.is_survivor THEN 'duplicate_perceptual' WHEN c.caption_reason IS NOT NULL THEN c.caption_reason
        WHEN r.nsfw_prob > 0.5 THEN 'unsafe' WHEN r.watermark_prob > 0.8 THEN 'watermark' END"""
    stage = """CASE reason WHEN 'http_gone' THEN 'ingest' WHEN 'blocklist' THEN 'score'
        WHEN 'duplicate_perceptual' THEN 'dedup' WHEN 'caption_language' THEN 'captions'
        WHEN 'unsafe' THEN 'selection' WHEN 'watermark' THEN 'selection' END"""
    return f"""SELECT uid, {reason} AS reason, reason IS NULL AS keep, {stage} AS reject_stage, reason AS reject_reason
        FROM samples s JOIN captions c USING (uid) JOIN duplicates d USING (uid) JOIN scores r USING (uid)"""


def measure(root: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Yield what reading took and what each question takes, over HTTP."""
    command = [sys.executable, "pipelines/dashboard.py", "--root", str(root), "--port", "0"]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        while (said := ask(address, "progress", {}))["fragments_read"] < said["fragments"] or not said["fragments"]:
            time.sleep(2)
        seconds = time.monotonic() - started
        there = ask(address, "overview", {})["rows"]
        assert there == rows, there
        yield {"what": "tables read", "rows": rows, "seconds": round(seconds, 1), "peak_mb": peak_mb(process.pid)}
        for name, turns in QUESTIONS.items():
            took = []
            for asked in turns:
                begun = time.monotonic()
                ask(address, name.split(",")[0], asked)
                took.append(1000 * (time.monotonic() - begun))
            told = {"median_ms": round(statistics.median(took)), "slowest_ms": round(max(took)), "turns": len(took)}
            yield {"what": name, "rows": rows} | told | {"peak_mb": peak_mb(process.pid)}
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(address: str, name: str, asked: dict[str, Any]) -> Any:
    with urlopen(f"{address}api/{name}?{urlencode(asked)}", timeout=120) as answer:
        return json.loads(answer.read())


def peak_mb(pid: int) -> int:
    """Return the largest resident memory of a process so far, as Linux counts it."""
    said = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in said.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
