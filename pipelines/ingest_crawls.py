"""Ingest of crawls: URL lists are cut into chunks, img2dataset downloads them, every listed row comes back."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from curate import crawl, sample
from curate.config import CurationConfig, WebSource
from pipelines.progress import Progress
from pipelines.runner import Fragment, Made, Runner, Step, say
from pipelines.store import Root, digest, fragments, parquet_bytes, scratch_file, table_file


def url_step(config: CurationConfig) -> Step:
    return Step(table="urls", settings=[config.ingest.rows_per_shard], build=_build_urls)


def url_fragment(source: WebSource) -> Fragment:
    files = crawl.list_files(source)
    fs, _ = fsspec.core.url_to_fs(files[0])
    made_from = [asdict(source), {file: str(fs.ukey(fs._strip_protocol(file))) for file in files}]
    return Fragment(name=source.name, made_from=made_from, arguments=(source, files))


def _build_urls(config: CurationConfig) -> Any:
    def split(source: WebSource, files: list[str]) -> Made:
        chunks, lists = [], {}
        for rows in crawl.read_lists(source, files, config.ingest.rows_per_shard):
            name = rows["chunk"][0].as_py()
            path = scratch_file(".parquet")
            path.write_bytes(parquet_bytes(rows))
            lists[_list_file(name)] = path
            chunks.append({"source": source.name, "chunk": name, "rows": len(rows)})
        schema = pa.schema([("source", pa.string()), ("chunk", pa.string()), ("rows", pa.int64())])
        return Made(rows=pa.Table.from_pylist(chunks, schema=schema), files=lists)

    return split


def web_fragments(root: Root) -> list[Fragment]:
    found = []
    for source, receipt in fragments(root, "urls").items():
        for chunk in root.read_table(table_file("urls", source))["chunk"].to_pylist():
            found.append(Fragment(name=chunk, made_from=[receipt, chunk], arguments=("web", source, chunk)))
    return found


def download_missing(runner: Runner, missing: list[Fragment]) -> dict[str, str]:
    """Download the chunks whose samples are missing, unless an interrupted run has; return their shards by chunk."""
    stems: dict[str, str] = {}
    for source in sorted({fragment.arguments[1] for fragment in missing}):
        folder = runner.root.fs.unstrip_protocol(runner.root.path(download_folder(source)))
        wanted = {fragment.name for fragment in missing if fragment.arguments[1] == source}
        crawl.discard_cut_off(folder)
        if wanted - crawl.finished(folder).keys():
            _download(runner, source, sorted(wanted - crawl.finished(folder).keys()))
        stems |= crawl.finished(folder)
        if wanted - stems.keys():
            raise RuntimeError(f"img2dataset did not finish shard {min(wanted - stems.keys())}: run the command again")
    return stems


def _download(runner: Runner, source: str, chunks: list[str]) -> None:
    work = f"{download_folder(source)}/{digest(chunks)}"
    for chunk in chunks:
        runner.root.write(f"{work}-lists/{chunk}.parquet", runner.root.read(_list_file(chunk)))
    runner.ray()
    folder = runner.root.fs.unstrip_protocol(runner.root.path(work))
    log = Path(tempfile.gettempdir()) / f"darkroom-img2dataset-{source}.log"
    say(f"download {source}: {len(chunks)} shards; img2dataset's own output is in {log}")
    with Progress(f"download {source}", len(chunks), 0) as progress, _Watch(folder, progress):
        crawl.download(f"{folder}-lists", folder, runner.config.ingest, log)


class _Watch:
    """Advances the live line as img2dataset finishes shards."""

    def __init__(self, folder: str, progress: Progress) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(folder, use_listings_cache=False)
        self._progress, self._stop = progress, threading.Event()
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _poll(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        for stats in set(self._fs.glob(f"{self._path}/*_stats.json")) - self._seen:
            self._seen.add(stats)
            self._progress.advance(_count_of(self._fs.cat_file(stats)))


def _count_of(stats: bytes) -> int:
    try:
        return int(json.loads(stats)["count"])
    except json.JSONDecodeError:  # looked at while it is being written
        return 0


def crawled(root: Root, source: str, chunk: str, stem: str) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Yield every listed row with its bytes, or with the status of what went wrong."""
    listed = {row["uid"]: row for row in root.read_table(_list_file(chunk)).to_pylist()}
    records, images = crawl.read_download(root.fs, stem)
    for uid, data in images:
        row = _row(uid, source, listed.pop(uid))
        if hashlib.sha256(data).hexdigest() == records[uid]["sha256"]:
            yield row, data
        else:
            yield row | {"status": sample.DOWNLOAD_ERROR, "error": "bytes differ from the recorded sha256"}, None
    for uid, listing in listed.items():
        message = records[uid]["error_message"] if uid in records else "the downloader gave no result"
        status = sample.download_status(message) if listing["url"] else sample.MISSING_URL
        yield _row(uid, source, listing) | {"status": status, "error": message}, None


def _row(uid: str, source: str, listing: dict[str, Any]) -> dict[str, Any]:
    return {"uid": uid, "source": source, **{name: listing[name] for name in ("url", "caption", "license")}}


def _list_file(chunk: str) -> str:
    return f"raw/urls/{chunk}.parquet"


def download_folder(source: str) -> str:
    return f"raw/download/{source}"
