"""Downloads of crawls: img2dataset on Ray cuts and spreads; each request is made by this package's fetcher.

img2dataset asks any address, follows any redirect, looks at opt-outs after the GET, retries at once
or never, and takes a shard for done when its statistics exist. So the function in its workers that
fetches one URL is replaced (`GuardedDownloader`), and its writer by one without its overhead; what
became of each row is written beside each shard, and a shard counts as done when all of its files
are whole.
"""

from __future__ import annotations

import io
import os
import posixpath
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curate import sample
from curate.config import IngestConfig
from curate.crawl.alarm import ALARMING, Alarm
from curate.crawl.fetcher import SIGNALS, Fetcher, Outcome
from curate.crawl.limits import Exchange
from curate.tar import TarShard

OUTCOMES = pa.schema(
    [
        ("uid", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("host", pa.string()),
        ("http_status", pa.int16()),
        ("final_url", pa.string()),
        *((signal_name, pa.string()) for signal_name in SIGNALS),
        ("retry_after_s", pa.float64()),
        ("requests", pa.int16()),
        ("seconds", pa.float32()),
        ("fetched_at", pa.timestamp("us", tz="UTC")),
        ("counted", pa.bool_()),
    ]
)
WRITTEN = pa.schema(
    [
        ("uid", pa.string()),
        ("chunk", pa.string()),
        ("sha256", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
    ]
)


def download(input_folder: str, output_folder: str, config: IngestConfig, exchange: Exchange, log: Path) -> None:
    """Download every list (uid, url, chunk) in a folder with img2dataset's Ray distributor; one shard for each.

    Bytes are kept as they came. `exchange` goes to every process and leads to the limits of the
    hosts. Ray must be running in this process. Shards that an interrupted call finished are kept.
    What img2dataset and its processes print goes to `log`. Where the alarm went off,
    `alarm(output_folder)` says why.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network for its newest version
    import img2dataset

    program = sys.modules["img2dataset.main"]  # as an attribute, the name is a function
    theirs = program.Downloader, program.LoggerProcess  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGINT)
    guarded = partial(_guarded, theirs[0], config, exchange)
    program.Downloader, program.LoggerProcess = guarded, _NoLogger  # type: ignore[attr-defined]
    try:
        with _stdout_to(log):
            img2dataset.download(
                url_list=input_folder,
                input_format="parquet",
                url_col="url",
                save_additional_columns=["uid", "chunk"],
                output_folder=output_folder,
                output_format="webdataset",
                number_sample_per_shard=config.rows_per_shard,
                disable_all_reencoding=True,
                extract_exif=False,
                compute_hash="sha256",
                thread_count=config.download_threads,
                distributor="ray",
            )
    finally:
        program.Downloader, program.LoggerProcess = theirs  # type: ignore[attr-defined]
        signal.signal(signal.SIGINT, before)


def _guarded(theirs: Any, settings: IngestConfig, exchange: Exchange, **options: Any) -> GuardedDownloader:
    return GuardedDownloader(theirs(**options | {"sample_writer_class": _Writer}), settings, exchange)


class GuardedDownloader:
    """img2dataset's shard worker with another fetch: it runs in Ray's processes in its place."""

    def __init__(self, inner: Any, settings: IngestConfig, exchange: Exchange) -> None:
        self._inner, self._settings, self._exchange = inner, settings, exchange

    def __call__(self, task: tuple[int, str]) -> Any:
        """Download one shard (number, Arrow file of its rows); returns img2dataset's (success, task)."""
        fs, path = fsspec.core.url_to_fs(task[1])
        with fs.open(path, "rb") as file:
            uids = pa.ipc.open_file(file).read_all()["uid"].to_pylist()
        shard = _Shard(_fetcher(self._settings, self._exchange), self._settings, self._inner.output_folder)
        module = sys.modules[type(self._inner).__module__]
        theirs = module.download_image_with_retry  # type: ignore[attr-defined]
        module.download_image_with_retry = shard.fetch  # type: ignore[attr-defined]
        try:
            done = self._inner(task)
        finally:
            module.download_image_with_retry = theirs  # type: ignore[attr-defined]
        if done[0]:
            name = f"{task[0]:0{self._inner.oom_shard_count}d}_outcomes.parquet"
            shard.write(f"{self._inner.output_folder}/{name}", uids)
        return done


@cache
def _fetcher(settings: IngestConfig, exchange: Exchange) -> Fetcher:
    """One for each process: what it knows of hosts outlives a shard."""
    return Fetcher(settings, exchange)


class _Writer:
    """Takes the place of img2dataset's WebDataset writer: bytes to a tar, their place and sha256 to a table.

    It writes no captions, no JSON and no extended headers, which cost more than the bytes.
    """

    def __init__(self, number: int, folder: str, _: bool, digits: int, *__: Any) -> None:
        fs, path = fsspec.core.url_to_fs(f"{folder}/{number:0{digits}d}")
        self._fs, self._path, self._rows = fs, path, []  # type: ignore[var-annotated]
        self._file = fs.open(path + ".tar", "wb")
        self._tar = TarShard(self._file)

    def write(self, image: bytes | None, key: str, _: str | None, meta: dict[str, Any]) -> None:
        """Keep one row, with its image where one came in."""
        row = {name: meta[name] for name in ("uid", "chunk", "sha256")}
        if image is not None:
            row |= {"offset": self._tar.add(key, image), "num_bytes": len(image)}
        self._rows.append(row)

    def close(self) -> None:
        """End both files; the table comes second."""
        self._tar.close()
        self._file.close()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=WRITTEN), buffer)
        self._fs.pipe_file(self._path + ".parquet", buffer.getvalue())


class _NoLogger:
    """Stands for img2dataset's process that prints statistics: it takes seconds to start, and nobody reads them."""

    def __init__(self, *_: Any) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None:
        return

    join = terminate = start


class _Shard:
    """The rows of one shard on their way, with the alarm that watches them."""

    def __init__(self, fetcher: Fetcher, settings: IngestConfig, folder: str) -> None:
        self._fetcher, self._folder = fetcher, folder
        self._alarm = Alarm(settings.alarm_share, settings.alarm_requests)
        self._alarm.raised = alarm(folder)
        self._went_off_here = False
        self._outcomes: dict[int, Outcome] = {}

    def fetch(self, row: tuple[int, str | None], **_: Any) -> tuple[int, io.BytesIO | None, str | None]:
        """Take the place of img2dataset's function for one row (number in the shard, URL)."""
        number, url = row
        if self._alarm.raised is not None:
            outcome = Outcome(status=sample.NOT_REQUESTED, error="the alarm had stopped the run", counted=False)
            self._outcomes[number] = outcome
            return number, None, outcome.status
        data, outcome = self._fetcher.fetch(url or "", lambda: self._alarm.raised is not None)
        self._outcomes[number] = outcome
        self._alarm.count(outcome.status, outcome.host)
        if self._alarm.raised is not None and not self._went_off_here:
            self._went_off_here = True
            _raise_alarm(self._folder, self._alarm.raised)
        return number, None if data is None else io.BytesIO(data), None if data is not None else outcome.status

    def write(self, url: str, uids: list[str]) -> None:
        """Write what became of each row, whole or not at all; what failed under an alarm counts as not tried."""
        rows = []
        for number, outcome in self._outcomes.items():
            said = asdict(outcome)
            said |= said.pop("signals") | {"uid": uids[number]}
            said["counted"] &= self._alarm.raised is None or outcome.status not in ALARMING
            rows.append(said)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=OUTCOMES), buffer)
        fs, path = fsspec.core.url_to_fs(url)
        fs.pipe_file(path, buffer.getvalue())


def _raise_alarm(folder: str, words: str) -> None:
    fs, path = fsspec.core.url_to_fs(_alarm_file(folder))
    fs.pipe_file(path, words.encode())


def alarm(folder: str) -> str | None:
    """Return why a download stopped, None where it did not."""
    fs, path = fsspec.core.url_to_fs(_alarm_file(folder), use_listings_cache=False)
    return fs.cat_file(path).decode() if fs.exists(path) else None


def _alarm_file(folder: str) -> str:
    return folder.rstrip("/") + "-alarm.txt"  # not inside: img2dataset reads numbers from the names there


@contextmanager
def _stdout_to(log: Path) -> Iterator[None]:
    """Send this process's and its children's standard output to a file for a while."""
    sys.stdout.flush()
    kept = os.dup(1)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def finished(folder: str) -> dict[str, str]:
    """Return the complete shards below a folder by chunk, as paths without ending; no cut-off ones."""
    fs, path = fsspec.core.url_to_fs(folder, use_listings_cache=False)
    found: dict[str, str] = {}
    for stats in sorted(fs.glob(posixpath.join(path, "*", "*_stats.json"))):
        stem = stats.removesuffix("_stats.json")
        if _is_whole(fs, stem):
            rows = pq.read_table(io.BytesIO(fs.cat_file(stem + ".parquet")), columns=["chunk"])
            found.update({chunk: stem for chunk in set(rows["chunk"].to_pylist())})
    return found


def discard_cut_off(folder: str) -> None:
    """Remove the statistics of cut-off shards, which img2dataset would otherwise take for done."""
    fs, path = fsspec.core.url_to_fs(folder, use_listings_cache=False)
    for stats in fs.glob(posixpath.join(path, "*", "*_stats.json")):
        if not _is_whole(fs, stats.removesuffix("_stats.json")):
            fs.rm(stats)


def _is_whole(fs: fsspec.AbstractFileSystem, stem: str) -> bool:
    """A closed tar ends with two empty blocks, a closed parquet file with its mark; the statistics prove neither."""
    ends = {".tar": bytes(1024), ".parquet": b"PAR1", "_outcomes.parquet": b"PAR1"}
    return all(_ends_with(fs, stem + ending, mark) for ending, mark in ends.items())


def _ends_with(fs: fsspec.AbstractFileSystem, path: str, mark: bytes) -> bool:
    if not fs.exists(path):
        return False
    size = fs.info(path)["size"]
    return size >= len(mark) and fs.cat_file(path, start=size - len(mark), end=size) == mark


def read_download(
    fs: fsspec.AbstractFileSystem, stem: str
) -> tuple[dict[str, dict[str, Any]], Iterator[tuple[str, bytes]]]:
    """Return what became of each uid, with the sha256 of what came in, and the images (uid, bytes) by uid.

    The order in the tar is that of the answers, so it is not the same in two runs.
    """
    outcomes = pq.read_table(io.BytesIO(fs.cat_file(stem + "_outcomes.parquet"))).to_pylist()
    written = {row["uid"]: row for row in pq.read_table(io.BytesIO(fs.cat_file(stem + ".parquet"))).to_pylist()}
    for outcome in outcomes:
        outcome["downloaded_sha256"] = written[outcome["uid"]]["sha256"] if outcome["uid"] in written else None
    places = sorted((uid, row["offset"], row["num_bytes"]) for uid, row in written.items() if row["offset"] is not None)
    return {outcome["uid"]: outcome for outcome in outcomes}, _images(fs, stem + ".tar", places)


def _images(
    fs: fsspec.AbstractFileSystem, path: str, places: list[tuple[str, int, int]]
) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        local = path
        if not isinstance(fs, LocalFileSystem):
            local = f"{folder}/shard.tar"
            fs.get_file(path, local)
        with open(local, "rb") as file:
            for uid, offset, num_bytes in places:
                yield uid, os.pread(file.fileno(), num_bytes, offset)
