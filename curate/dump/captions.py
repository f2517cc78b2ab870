"""Captions files of dumps: JSONL, CSV or parquet rows that name an image, its caption and its licence."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from curate import sample
from curate.bad_input import BadInput
from curate.config import DumpSource
from curate.sample import storable


@dataclass(frozen=True, kw_only=True)
class RefusedRow:
    """A row of a captions file that names no file of the dump."""

    name: str
    caption: str | None
    license: str | None
    status: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The rows of captions files: by file, its captions with their licences, in no order; and those without a file."""

    of: dict[str, list[tuple[str | None, str | None]]] = field(default_factory=dict)
    refused: list[RefusedRow] = field(default_factory=list)


def read_captions(file: BinaryIO, name: str, source: DumpSource, where: str, into: Captions, below: str = "") -> None:
    """Add a captions file's rows; its paths are relative to `below`.

    Raises ValueError, opening with `where`, for rows that cannot be read and columns that are not there.
    """
    columns: dict[str, None] = {}
    for row in _records(file, name, where):
        columns |= dict.fromkeys(map(str, row))
        if source.file_column not in row:
            raise BadInput(f"{where}: no column {source.file_column!r}, only {sorted(columns)}: set file_column")
        caption, license_ = caption_of(row, source), license_of(row, source)
        _add(into, row[source.file_column], below, caption, license_)
    for setting in ("caption_column", "license_column"):
        column = getattr(source, setting)
        if column is not None and columns and column not in columns:
            raise BadInput(f"{where}: no column {column!r}, only {sorted(columns)}: set {setting}")


def caption_of(row: dict[str, Any], source: DumpSource) -> str | None:
    """Return the caption; an empty one is a missing one."""
    return None if source.caption_column is None else _text(row.get(source.caption_column))


def license_of(row: dict[str, Any], source: DumpSource) -> str | None:
    return (None if source.license_column is None else _text(row.get(source.license_column))) or source.license


def _text(value: Any) -> str | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else storable(str(value)) or None


def _add(into: Captions, value: Any, below: str, caption: str | None, license_: str | None) -> None:
    said = "" if value is None else str(value).replace("\0", "\ufffd")  # no file has that in its name
    name = posixpath.normpath(posixpath.join(below, said))
    if not said:
        refusal = (sample.MISSING_FILE, "the row of the captions file names no file")
    elif name.startswith(("../", "/")) or name == "..":
        refusal = (sample.UNSAFE_PATH, "the captions file names a file outside of the dump")
    else:
        into.of.setdefault(name, []).append((caption, license_))
        return
    status, error = refusal
    into.refused.append(RefusedRow(name=said, caption=caption, license=license_, status=status, error=error))


def _records(file: BinaryIO, name: str, where: str) -> Iterator[dict]:
    lower = name.lower()
    if lower.endswith(".parquet"):
        yield from _parquet(file, where)
    elif lower.endswith((".csv", ".tsv")):
        yield from _separated(file, "\t" if lower.endswith(".tsv") else ",", where)
    elif lower.endswith((".jsonl", ".json", ".ndjson")):
        yield from _json_lines(file, where)
    else:
        raise BadInput(f"{where}: captions are .jsonl, .csv, .tsv or .parquet")


def _json_lines(file: BinaryIO, where: str) -> Iterator[dict]:
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a plain ValueError
                raise BadInput(f"{where}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise BadInput(f"{where}, line {number}: expected an object, got {type(row).__name__}")
            yield row


def _separated(file: BinaryIO, delimiter: str, where: str) -> Iterator[dict]:
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    rows = csv.DictReader(lines, delimiter=delimiter)
    try:
        yield from rows
    except csv.Error as error:
        raise BadInput(f"{where}, line {rows.line_num}: {error}") from error


def _parquet(file: BinaryIO, where: str) -> Iterator[dict]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(use_threads=False):
            yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise BadInput(f"{where}: {error}") from error
