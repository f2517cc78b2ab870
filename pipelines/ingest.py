#!/usr/bin/env python3
"""Ingest: URL lists and dumps in, raw shards with the original bytes and the samples table out."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import sample
from curate.config import CurationConfig
from curate.image import UnreadableImage, read_header
from curate.takedown import NOTHING_TAKEN_DOWN, TakenDown
from curate.tar import TarShard
from pipelines import crawl_report
from pipelines.command import run_step
from pipelines.ingest_crawls import FETCH_SETTINGS, counts_of, crawled, fetch_crawls, fetched, url_fragment, url_step
from pipelines.ingest_dumps import dump_fragments, dumped, listing_fragment, listing_step, parts_of
from pipelines.preflight import check_sources
from pipelines.runner import Fragment, Made, Report, Runner, Step, say
from pipelines.store import MANIFEST, Root, scratch_file
from pipelines.taken_down import read_taken_down
from schemas import fetches, samples


def ingest(runner: Runner) -> list[Report]:
    """Bring in every source; publish urls and fetches (crawls only), listings (dumps only) and samples."""
    config = runner.config
    check_sources(config)
    step = Step(table="samples", settings=[], build=_build)
    parts = parts_of(config)
    wanted: list[Fragment] = []
    reports = []
    if parts or _is_published(runner.root, "listings"):
        reports.append(runner.run(listing_step(config), [listing_fragment(part) for part in parts]))
        wanted += dump_fragments(runner.root, parts)
    if config.web or _is_published(runner.root, "urls"):
        reports.append(runner.run(url_step(config), [url_fragment(source) for source in config.web]))
        report, web = fetch_crawls(runner, _fetch_step(config))
        reports.append(report)
        wanted += web
        if report.made:
            say("\n".join(crawl_report.lines(crawl_report.crawl_report(runner.root))))
    if not wanted:
        say("samples: the sources have no rows")
    report = runner.run(step, sorted(wanted, key=lambda fragment: fragment.name))
    return [*reports, report]


def _is_published(root: Root, table: str) -> bool:
    """Return whether an earlier run had such sources: what the last of them brought goes with it."""
    return root.exists(f"tables/{table}/{MANIFEST}")


def _fetch_step(config: CurationConfig) -> Step:
    settings = {name: getattr(config.ingest, name) for name in FETCH_SETTINGS}
    return Step(table="fetches", settings=settings, build=_build_fetches)


def _build_fetches(config: CurationConfig) -> Any:
    root = Root(config.root)

    def keep(source: str, chunk: str, number: int, stem: str | None) -> Made:
        rows = fetched(root, config.ingest, chunk, number, stem)
        return _shard(f"{chunk}-r{number:02d}", rows, fetches.SCHEMA, read_taken_down(root))

    return keep


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)

    def bring_in(kind: str, *arguments: Any) -> Made:
        if kind == "web":
            return crawled(root, config.ingest, *arguments)
        taken_down = read_taken_down(root)
        rows = (found for found in dumped(root, *arguments) if not taken_down.has(found[0]["uid"], found[0]["url"]))
        return _shard(arguments[1], rows, samples.SCHEMA, taken_down)

    return bring_in


def _shard(
    name: str,
    rows: Iterator[tuple[dict[str, Any], bytes | None]],
    schema: pa.Schema,
    taken_down: TakenDown = NOTHING_TAKEN_DOWN,
) -> Made:
    """Write the images to a tar, by uid, and return it with the rows of the table.

    What was taken down is not stored, whatever it is called now: by its bytes, or by where redirects led.
    """
    path = scratch_file(".tar")
    with path.open("wb") as file:
        shard = TarShard(file)
        done = [_stored(row, data, shard, f"raw/{name}.tar", taken_down) for row, data in rows]
        shard.close()
    done.sort(key=lambda row: row["uid"])
    table = pa.Table.from_pylist(done, schema=schema)
    return Made(rows=table, files={f"raw/{name}.tar": path}, counts=counts_of(done))


def _stored(
    row: dict[str, Any], data: bytes | None, shard: TarShard, shard_name: str, taken_down: TakenDown
) -> dict[str, Any]:
    if data is None:
        return row
    known = row.get("sha256") or hashlib.sha256(data).hexdigest()
    if known in taken_down.sha256:
        return row | {"sha256": known, "status": sample.TAKEN_DOWN, "error": "these bytes were taken down"}
    if taken_down.has_url(row.get("final_url")):
        said = {"final_url": None, "status": sample.TAKEN_DOWN, "error": "redirected to a URL that was taken down"}
        return row | said
    row = row | {"num_bytes": len(data), "sha256": known}
    try:
        header = read_header(data)
    except UnreadableImage as error:
        return row | {"status": error.status, "error": str(error)}
    offset = shard.add(f"{row['uid']}.{header.format.lower()}", data)
    return row | {"shard": shard_name, "offset": offset, "status": sample.OK} | vars(header)


if __name__ == "__main__":
    run_step("ingest", ingest, __doc__)
