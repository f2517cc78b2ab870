"""Dumps into raw shards, beside a plain `tarfile` read and write of the same images. One JSON line for each kind.

Every kind holds the same pictures and captions. Darkroom lists the dump, reads it chunk by chunk, hashes each image,
reads its header, and writes the raw shards with the rows of the samples table. `tarfile` copies the members of the tar
one by one into another tar, and does nothing else. Both run on one core in a process of their own, in turns; the median
of the repetitions counts.

    python infra/bench/dump_ingest.py [--count 4000] [--side_px 256] [--kinds tar zip parquet arrow folder] [--repeat 3]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

DISTINCT = 64
ROWS_PER_SHARD = 1000
ROW_GROUP = 500


def pictures(count: int, side_px: int) -> Iterator[tuple[str, bytes, str]]:
    """Yield name, JPEG and caption; the pictures repeat, the bytes do not."""
    rng, files = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (side_px // 4, side_px // 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side_px, side_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    for number in range(count):
        yield f"{number:08d}", files[number % DISTINCT] + number.to_bytes(8, "big"), f"A picture of shapes, {number}"


def write_tar(folder: Path, samples: Iterator[tuple[str, bytes, str]]) -> None:
    with tarfile.open(folder / "dump.tar", "w") as archive:
        for name, data, caption in samples:
            for ending, content in (("jpg", data), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_zip(folder: Path, samples: Iterator[tuple[str, bytes, str]]) -> None:
    with zipfile.ZipFile(folder / "dump.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, caption in samples:
            archive.writestr(f"{name}.jpg", data)
            archive.writestr(f"{name}.txt", caption)


def write_folder(folder: Path, samples: Iterator[tuple[str, bytes, str]]) -> None:
    for name, data, caption in samples:
        (folder / f"{name}.jpg").write_bytes(data)
        (folder / f"{name}.txt").write_text(caption)


def table_of(samples: Iterator[tuple[str, bytes, str]]) -> Any:
    import pyarrow as pa

    rows = list(samples)
    images = [{"bytes": data, "path": f"{name}.jpg"} for name, data, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(images, kind), "caption": [caption for *_, caption in rows]})


def write_parquet(folder: Path, samples: Iterator[tuple[str, bytes, str]]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table_of(samples), folder / "dump.parquet", row_group_size=ROW_GROUP)


def write_arrow(folder: Path, samples: Iterator[tuple[str, bytes, str]]) -> None:
    import pyarrow as pa

    table = table_of(samples)
    with pa.OSFile(str(folder / "dump.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=ROW_GROUP)


KINDS: dict[str, Callable[[Path, Iterator[tuple[str, bytes, str]]], None]] = {
    "tar": write_tar,
    "zip": write_zip,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "folder": write_folder,
}


def write(kind: str, folder: Path, count: int, side_px: int) -> int:
    """Write a dump and return its bytes."""
    folder.mkdir()
    KINDS[kind](folder, pictures(count, side_px))
    return sum(path.stat().st_size for path in folder.iterdir())


def ours(folder: Path, kind: str, count: int) -> dict[str, float]:
    from curate.config import DumpSource
    from curate.dump.entries import shown
    from curate.dump.kinds import dump_parts, list_part, read_listing
    from curate.sample import sample_uid
    from pipelines.ingest import _shard
    from schemas import samples

    def rows(source: Any, listing: Any) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        for found in read_listing(source, listing):
            uid = sample_uid(source.name, found.key, found.caption)
            yield {"uid": uid, "source": source.name, "url": shown(found.key), "caption": found.caption}, found.data

    started = time.perf_counter()
    parts = dump_parts(DumpSource(name="d", folder=str(folder), kind=kind))
    listings = [(part.source, listing.rows) for part in parts for listing in list_part(part, ROWS_PER_SHARD)]
    listed = time.perf_counter()
    done = 0
    for number, (source, listing) in enumerate(listings):
        made = _shard(f"{number:05d}", rows(source, listing), samples.SCHEMA)
        done += made.counts["ok"]
        for path in made.files.values():
            path.unlink()
    assert done == count, f"{kind}: {done} of {count} images"
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"seconds": ended - started, "listing_seconds": listed - started, "peak_mb": peak}


def plain(folder: Path, _: str, count: int) -> dict[str, float]:
    """Copy the images of the tar with tarfile, member by member."""
    started, done = time.perf_counter(), 0
    with (
        tempfile.NamedTemporaryFile(suffix=".tar") as target,
        tarfile.open(folder / "dump.tar") as archive,
        tarfile.open(fileobj=target, mode="w") as copy,
    ):
        for member in archive:
            data = archive.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".jpg"):
                copy.addfile(member, io.BytesIO(data))
                done += 1
    assert done == count
    ended = time.perf_counter()
    return {"seconds": ended - started, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure(kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    dump_bytes = alone(write, kind, folder / kind, arguments.count, arguments.side_px)
    runs = [
        (alone(ours, folder / kind, kind, arguments.count), alone(plain, folder / "plain", kind, arguments.count))
        for _ in range(arguments.repeat)
    ]
    seconds, listing, plain_seconds = (
        median(run[who][what] for run in runs) for who, what in ((0, "seconds"), (0, "listing_seconds"), (1, "seconds"))
    )
    return {
        "bench": "dump_ingest",
        "kind": kind,
        "count": arguments.count,
        "mean_kb": round(dump_bytes / arguments.count / 1e3, 1),
        "darkroom_images_per_s": round(arguments.count / seconds),
        "listing_images_per_s": round(arguments.count / listing),
        "tarfile_images_per_s": round(arguments.count / plain_seconds),
        "times_as_fast": round(plain_seconds / seconds, 2),
        "peak_mb": {"darkroom": round(max(run[0]["peak_mb"] for run in runs)), "tarfile": round(runs[0][1]["peak_mb"])},
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--side_px", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(write, "tar", folder / "plain", arguments.count, arguments.side_px)
        for kind in arguments.kinds:
            print(json.dumps(measure(kind, folder, arguments)), flush=True)


if __name__ == "__main__":
    main()
