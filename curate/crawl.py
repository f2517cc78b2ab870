"""Crawls: URL lists in, downloaded shards out, through img2dataset on Ray.

img2dataset takes a shard for done when its statistics exist, retries nothing it failed on, and
drops a row whose handling raised. So its output is a raw material here: every listed row is
looked up in it, its bytes are checked against the recorded sha256, and what is missing is a row
with a status.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import IngestConfig, WebSource
from curate.sample import sample_uid

LIST_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("license", pa.string()),
        ("chunk", pa.string()),
    ]
)


def list_files(source: WebSource) -> list[str]:
    """Return the source's URL lists; raises ValueError where there is none."""
    fs, pattern = fsspec.core.url_to_fs(source.url_list)
    found = sorted(fs.glob(pattern)) if glob.has_magic(pattern) else [pattern] * fs.exists(pattern)
    if not found:
        raise ValueError(f"web.{source.name}.url_list = {source.url_list}: no such file")
    return [fs.unstrip_protocol(path) for path in found]


def read_lists(source: WebSource, files: list[str], rows_per_chunk: int) -> Iterator[pa.Table]:
    """Yield chunks of distinct (URL, caption) rows with their uids, in an order that mixes the hosts.

    The order is that of a hash of the row, so that neighbours in the list, which often share a
    host, are far apart. Runs in DuckDB, which spills to disk.
    """
    with duckdb.connect(config={"temp_directory": _spill_folder()}) as database:
        fs, _ = fsspec.core.url_to_fs(files[0])
        if "file" not in fs.protocol:
            database.register_filesystem(fs)
        rows = database.sql(_distinct_rows(source, _reader(files))).to_arrow_reader(rows_per_chunk)
        for number, chunk in enumerate(_chunks(rows, rows_per_chunk)):
            yield _with_uids(chunk, source.name, f"{source.name}-{number:05d}")


def _spill_folder() -> str:
    return posixpath.join(tempfile.gettempdir(), "darkroom-duckdb")


def _reader(files: list[str]) -> str:
    """Return the DuckDB table function that reads the files."""
    paths = [file.removeprefix("file://") for file in files]
    names = "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"
    name = paths[0].removesuffix(".gz")
    if name.endswith(".parquet"):
        return f"read_parquet({names}, union_by_name=true)"
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return f"read_json({names}, union_by_name=true)"
    if name.endswith((".csv", ".tsv")):
        return f"read_csv({names}, header=true, all_varchar=true, union_by_name=true)"
    raise ValueError(f"{files[0]}: URL lists are .parquet, .csv, .tsv or .jsonl")


def _distinct_rows(source: WebSource, reader: str) -> str:
    def text(column: str | None) -> str:
        return "NULL" if column is None else 'CAST("' + column.replace('"', '""') + '" AS VARCHAR)'

    return f"""
        SELECT url, caption, min(license) AS license
        FROM (SELECT nullif({text(source.url_column)}, '') AS url, nullif({text(source.caption_column)}, '') AS caption,
                     {text(source.license_column)} AS license FROM {reader})
        GROUP BY url, caption
        ORDER BY md5(concat_ws(chr(0), url, caption)), url, caption"""


def _chunks(reader: pa.RecordBatchReader, rows_per_chunk: int) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in reader:
        waiting.append(batch)
        while sum(len(part) for part in waiting) >= rows_per_chunk:
            rows = pa.Table.from_batches(waiting)
            yield rows.slice(0, rows_per_chunk)
            waiting = rows.slice(rows_per_chunk).to_batches()
    if sum(len(part) for part in waiting):
        yield pa.Table.from_batches(waiting)


def _with_uids(rows: pa.Table, source: str, chunk: str) -> pa.Table:
    listed = rows.to_pylist()
    uids = [sample_uid(source, row["url"] or "", row["caption"]) for row in listed]
    columns = [uids, rows["url"], rows["caption"], rows["license"], [chunk] * len(rows)]
    return pa.table(columns, schema=LIST_SCHEMA)


def download(input_folder: str, output_folder: str, config: IngestConfig, log: Path) -> None:
    """Download every list in a folder with img2dataset's Ray distributor; one shard for each list.

    Bytes are kept as they came. Ray must be running in this process. Shards that an interrupted
    call finished are kept. What img2dataset and its processes print goes to `log`.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network for its newest version
    import img2dataset

    before = signal.getsignal(signal.SIGINT)
    with _stdout_to(log):
        img2dataset.download(
            url_list=input_folder,
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            save_additional_columns=["uid", "chunk"],
            output_folder=output_folder,
            output_format="webdataset",
            number_sample_per_shard=config.rows_per_shard,
            disable_all_reencoding=True,
            extract_exif=False,
            compute_hash="sha256",
            thread_count=config.download_threads,
            timeout=config.timeout_s,
            retries=config.retries,
            user_agent_token=config.user_agent_token,
            disallowed_header_directives=list(config.opt_out_directives),
            distributor="ray",
        )
    signal.signal(signal.SIGINT, before)


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
    """Return img2dataset's complete shards below a folder by chunk, as paths without ending; no cut-off ones."""
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
    """A tar that was closed ends with two empty blocks; img2dataset's statistics alone do not prove it."""
    if not (fs.exists(stem + ".tar") and fs.exists(stem + ".parquet")):
        return False
    size = fs.info(stem + ".tar")["size"]
    return size >= 1024 and fs.cat_file(stem + ".tar", start=size - 1024, end=size) == bytes(1024)


def read_download(
    fs: fsspec.AbstractFileSystem, stem: str
) -> tuple[dict[str, dict[str, Any]], Iterator[tuple[str, bytes]]]:
    """Return img2dataset's record of each uid, and a stream of (uid, image bytes)."""
    records = pq.read_table(io.BytesIO(fs.cat_file(stem + ".parquet"))).to_pylist()
    by_key = {record["key"]: record["uid"] for record in records}

    def images() -> Iterator[tuple[str, bytes]]:
        with fs.open(stem + ".tar", "rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                if member.isfile() and ending not in ("txt", "json") and key in by_key:
                    yield by_key[key], archive.extractfile(member).read()  # type: ignore[union-attr]

    return {record["uid"]: record for record in records}, images()
