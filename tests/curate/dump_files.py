"""Dumps of every kind for tests, and what comes out of one."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import DumpSource
from curate.dump.entries import shown
from curate.dump.kinds import dump_parts, list_part, read_listing
from curate.dump.read import DumpRow


def read(folder: Any, rows_per_chunk: int = 100, **settings: Any) -> list[DumpRow]:
    """Return every row of a dump, listed and read as the pipeline does."""
    chunks = chunks_of(folder, rows_per_chunk, **settings)
    assert all(len(chunk) <= rows_per_chunk for chunk in chunks)
    return [row for chunk in chunks for row in chunk]


def chunks_of(folder: Any, rows_per_chunk: int = 100, **settings: Any) -> list[list[DumpRow]]:
    parts = dump_parts(DumpSource(name="d", folder=str(folder), **settings))
    return [
        list(read_listing(part.source, listing.rows)) for part in parts for listing in list_part(part, rows_per_chunk)
    ]


def told(rows: Iterable[DumpRow]) -> list[tuple[str, str | None, bytes | str | None]]:
    """Return path, caption, and the bytes or the status of each row."""
    return [(shown(row.key), row.caption, row.status or row.data) for row in rows]


def write_folder(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def tar_of(members: Iterable[tuple[str, bytes | str | None]], **options: Any) -> bytes:
    """Return a tar; None stands for a symbolic link to /etc/passwd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **{"format": tarfile.GNU_FORMAT} | options) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(member)
                continue
            content = data.encode() if isinstance(data, str) else data
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(members: Iterable[tuple[str, bytes | str | None]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip; None stands for a symbolic link to /etc/passwd."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            if data is None:
                link = zipfile.ZipInfo(name)
                link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                archive.writestr(link, "/etc/passwd")
            else:
                archive.writestr(name, data)
    return buffer.getvalue()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the `datasets` package stores images."""


def image_table(rows: Iterable[tuple[bytes | None, str | None, Any]]) -> pa.Table:
    """Return the columns `image` and `text` from (bytes, path, caption)."""
    rows = list(rows)
    images = [None if data is None and path is None else {"bytes": data, "path": path} for data, path, _ in rows]
    return pa.table({"image": pa.array(images, IMAGE), "text": [caption for _, _, caption in rows]})


def parquet_of(table: pa.Table, row_group_size: int = 4) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def stream_of(table: pa.Table, rows_per_batch: int = 4) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=rows_per_batch):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def saved_to_disk(tables: Iterable[pa.Table]) -> dict[str, bytes]:
    """Return the files that `datasets.Dataset.save_to_disk` writes, as its version 5 does."""
    tables = list(tables)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    files = {"state.json": json.dumps(state, indent=2), "dataset_info.json": json.dumps(info, indent=2)}
    schema_note = {"huggingface": json.dumps({"info": {"features": features}})}
    streams = {name: stream_of(t.replace_schema_metadata(schema_note)) for name, t in zip(names, tables, strict=True)}
    return {name: text.encode() for name, text in files.items()} | streams
