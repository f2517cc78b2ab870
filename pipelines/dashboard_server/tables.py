"""What can be read under a root: published tables, and the finished fragments of those that are still being made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.store import MADE_BY, MANIFEST, Root, is_local, table_file
from schemas.tables import TABLES, check_version

SHOWN = ("samples", "captions", "features", "duplicates", "scores", "selection")
"""The tables of which each sample has one row, in the order in which they are made."""


@dataclass(frozen=True)
class Readable:
    """A table's finished files of rows, each with its sha256, and the manifest where there is one."""

    name: str
    fragments: dict[str, str]
    manifest: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.manifest is not None:
            return "complete"
        return "being made" if self.fragments else "missing"

    @property
    def told(self) -> str:
        """What a person should know or do; empty where the table is complete."""
        if self.state == "complete":
            return ""
        step = f"python pipelines/{MADE_BY[self.name]}.py"
        if self.state == "missing":
            return f"table {self.name} is not there yet: run {step}"
        return f"table {self.name} is being made: {len(self.fragments):,} fragments so far; {step} goes on"


def readable(root: Root, table: str) -> Readable:
    """Return the files of the manifest, or where there is none, those with a receipt that are there."""
    manifest = root.read_json(f"tables/{table}/{MANIFEST}")
    if manifest is not None:
        listed = _files(table, list(manifest["fragments"].values()))
        return Readable(table, listed, manifest)
    receipts = [json.loads(root.fs.cat_file(path)) for path in root.glob(f"tables/{table}/_receipts/*.json")]
    done = {name: said for name, said in _files(table, receipts).items() if root.exists(table_file(table, name))}
    return Readable(table, done, None)


def _files(table: str, receipts: list[dict[str, Any]]) -> dict[str, str]:
    """Return the sha256 of each file of rows by its name; one receipt may speak of the files of all fragments."""
    folder, ending = table_file(table, "").rsplit("/", 1)
    found = {}
    for receipt in receipts:
        for relative, said in receipt["files"].items():
            place, name = relative.rsplit("/", 1)
            if place == folder and name.endswith(ending):
                found[name.removesuffix(ending)] = said["sha256"]
    return dict(sorted(found.items()))


def schema_of(root: Root, table: str, fragment: str) -> pa.Schema:
    """Return the schema of a fragment's file, with the meaning of its columns; raises NewerTable."""
    return _file(root, table_file(table, fragment)).schema_arrow


def read_rows(root: Root, table: str, fragment: str, wanted: pa.Schema) -> pa.Table:
    """Return those columns of a fragment; one that its file lacks is null throughout, and so is what is no number."""
    file = _file(root, table_file(table, fragment))
    there = [name for name in wanted.names if name in file.schema_arrow.names]
    rows = file.read(columns=there, use_threads=False)
    columns = [_cast(rows[f.name], f.type) if f.name in there else pa.nulls(len(rows), f.type) for f in wanted]
    return pa.table(columns, schema=wanted.remove_metadata())


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as that type, NaN as null: a cut-off drops neither, and DuckDB has NaN above every number."""
    column = column.cast(kind)
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(kind) else column


def read_stretches(
    root: Root, table: str, fragment: str, columns: Sequence[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield those columns of a fragment, so many rows at a time."""
    yield from _file(root, table_file(table, fragment)).iter_batches(rows, columns=list(columns), use_threads=False)


def lacking(root: Root, table: str, fragment: str) -> list[str]:
    """Return the columns that this program knows and the fragment's file does not have."""
    there = schema_of(root, table, fragment).names
    return [name for name in TABLES[table].names if name not in there]


def _file(root: Root, relative: str) -> pq.ParquetFile:
    path = root.path(relative)
    file = (
        pq.ParquetFile(path, memory_map=True)
        if is_local(root.fs)
        else pq.ParquetFile(root.fs.open(path, "rb", cache_type="readahead"))
    )
    check_version(file.schema_arrow, relative)
    return file
