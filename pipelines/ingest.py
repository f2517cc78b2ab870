#!/usr/bin/env python3
"""Ingest: URL lists and dumps in, raw shards with the original bytes and the samples table out."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import sample
from curate.config import CurationConfig
from curate.image import UnreadableImage, read_header
from curate.tar import TarShard
from pipelines.command import run_step
from pipelines.ingest_crawls import crawled, download_folder, download_missing, url_fragment, url_step, web_fragments
from pipelines.ingest_dumps import dump_fragments, dumped, listing_fragment, listing_step, parts_of
from pipelines.runner import Fragment, Made, Report, Runner, Step, say, shaping
from pipelines.store import Root, scratch_file
from schemas import samples

SPEED = ("download_threads", "timeout_s", "retries")
"""Settings that change no row that came in."""


def ingest(runner: Runner) -> list[Report]:
    """Bring in every source; publish urls (crawls only), listings (dumps only) and samples."""
    config = runner.config
    step = Step(table="samples", settings=shaping(config.ingest, *SPEED), build=_build)
    parts = parts_of(config)
    wanted: list[Fragment] = []
    reports = []
    if parts:
        reports.append(runner.run(listing_step(config), [listing_fragment(part) for part in parts]))
        wanted += dump_fragments(runner.root, parts)
    if config.web:
        reports.append(runner.run(url_step(config), [url_fragment(source) for source in config.web]))
        web = web_fragments(runner.root)
        stems = download_missing(runner, runner.missing(step, web))
        wanted += [replace(f, arguments=(*f.arguments, stems.get(f.name))) for f in web]
    if not wanted:
        say("samples: the sources have no rows")
    report = runner.run(step, sorted(wanted, key=lambda fragment: fragment.name))
    for source in config.web:
        runner.root.remove(download_folder(source.name), recursive=True)
    return [*reports, report]


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)

    def bring_in(kind: str, *arguments: Any) -> Made:
        rows = crawled(root, *arguments) if kind == "web" else dumped(root, *arguments)
        return _shard(arguments[1], rows)

    return bring_in


def _shard(name: str, rows: Iterator[tuple[dict[str, Any], bytes | None]]) -> Made:
    """Write the images to a tar, by uid, and return it with the rows of samples."""
    path = scratch_file(".tar")
    with path.open("wb") as file:
        shard = TarShard(file)
        done = [_stored(row, data, shard, f"raw/{name}.tar") for row, data in rows]
        shard.close()
    done.sort(key=lambda row: row["uid"])
    counts: dict[str, int] = {}
    for row in done:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    table = pa.Table.from_pylist(done, schema=samples.SCHEMA)
    return Made(rows=table, files={f"raw/{name}.tar": path}, counts=counts)


def _stored(row: dict[str, Any], data: bytes | None, shard: TarShard, shard_name: str) -> dict[str, Any]:
    if data is None:
        return row
    row = row | {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        header = read_header(data)
    except UnreadableImage as error:
        return row | {"status": error.status, "error": str(error)}
    offset = shard.add(f"{row['uid']}.{header.format.lower()}", data)
    return row | {"shard": shard_name, "offset": offset, "status": sample.OK} | vars(header)


if __name__ == "__main__":
    run_step("ingest", ingest, __doc__)
