"""Every head on ten million embeddings of 768 float16, beside reading them from parquet, in turns on the same machine.

    python infra/bench/scores.py [--rows 10000000] [--on-disk 1000000] [--threads 1] [--heads FOLDER]

One JSON line. `--on-disk` rows are written as the embed step writes them and read as often as it takes: the disk holds
1.5 GB for a million. Reading and scoring take the same number of threads. `--heads` has the published files
(../shared/data/heads); without it, heads of the same layers with random weights are timed, and the line says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from curate import heads  # noqa: E402
from curate.weights import registry  # noqa: E402
from pipelines.score import head_columns  # noqa: E402
from pipelines.store import parquet_bytes  # noqa: E402

DIM, ROWS_A_FRAGMENT = 768, 50_000
NAMES = ("aesthetic_v1", "aesthetic_v2", "nsfw_vit_l14", "watermark_vit_l14", "violence_vit_l14", "porn_vit_l14")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--on-disk", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", type=Path, default=PROJECT.parent / "shared" / "data" / "heads")
    parser.add_argument("--folder", help="where the embeddings are written (a temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pa.set_cpu_count(arguments.threads)
    published = arguments.heads.is_dir()
    scorer = heads.Scorer([head_of(name, arguments.heads if published else None) for name in NAMES])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        paths = write(Path(folder), arguments.on_disk)
        num_bytes = sum(path.stat().st_size for path in paths)
        found = measure(paths, arguments.rows, scorer, arguments.threads)
    told = {"bench": "scores", "rows": arguments.rows, "on_disk": arguments.on_disk, "bytes_on_disk": num_bytes}
    told |= {"heads": NAMES, "weights": "published" if published else "random", "threads": arguments.threads}
    print(json.dumps(told | found))


def head_of(name: str, folder: Path | None) -> heads.Head:
    """Return a head from its published file, found by its checksum, or one of the same layers."""
    network = heads.network_of(name)
    if folder is None:
        return random_head(name, network)
    wanted = registry()[name].sha256
    (path,) = (p for p in folder.rglob("*.*") if p.is_file() and sha256(p.read_bytes()).hexdigest() == wanted)
    return heads.read_head(path, network, name, DIM)


def random_head(name: str, network: heads.Network) -> heads.Head:
    rng = np.random.default_rng(0)
    widths = network.layers if network.hidden == "relu" else (DIM, 1)
    layers = tuple(
        heads.Layer(weight=rng.standard_normal((a, b), np.float32) / a, bias=np.zeros(b, np.float32))
        for a, b in zip(widths, widths[1:], strict=False)
    )
    return heads.Head(
        column=name, layers=layers, probability=network.output != "none", low=network.low, high=network.high
    )


def write(folder: Path, rows: int) -> list[Path]:
    """Write unit embeddings, and return their files."""
    rng, paths = np.random.default_rng(0), []
    for first in range(0, rows, ROWS_A_FRAGMENT):
        count = min(ROWS_A_FRAGMENT, rows - first)
        vectors = rng.standard_normal((count, DIM), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        flat = pa.array(vectors.astype(np.float16).ravel())
        paths.append(folder / f"{first:09d}.parquet")
        paths[-1].write_bytes(parquet_bytes(pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, DIM)})))
    return paths


def fragments(paths: list[Path], rows: int) -> Iterator[Path]:
    given = 0
    while given < rows:
        for path in paths:
            if given < rows:
                given += pq.ParquetFile(path).metadata.num_rows
                yield path


def measure(paths: list[Path], rows: int, scorer: heads.Scorer, threads: int) -> dict[str, object]:
    """Read, and read and score, fragment by fragment in turns; the time of scoring is apart."""
    reading, scoring, done, first = 0.0, 0.0, 0, True
    for path in fragments(paths, rows):
        seconds, embedding = timed(lambda path=path: read(path, threads))
        count = len(embedding)
        hit = np.zeros(count, bool)
        if first:  # threads start, and kernels are chosen
            head_columns(embedding, scorer, hit)
            first = False
        more, scored = timed(lambda embedding=embedding, hit=hit: head_columns(embedding, scorer, hit))
        assert len(scored) == len(NAMES) and all(column.null_count == 0 for column in scored.values())
        reading, scoring, done = reading + seconds, scoring + more, done + count
    assert done == rows
    return {
        "read_rows_per_s": round(rows / reading),
        "score_rows_per_s": round(rows / scoring),
        "score_over_read": round(reading / scoring, 2),
        "seconds": round(reading + scoring, 1),
    }


def read(path: Path, threads: int) -> pa.ChunkedArray:
    return pq.ParquetFile(path, memory_map=True).read(columns=["embedding"], use_threads=threads > 1)["embedding"]


def timed(function: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    value = function()
    return time.perf_counter() - started, value


if __name__ == "__main__":
    main()
