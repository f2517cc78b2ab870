"""URL lists of crawls: read as they are, cut into chunks of distinct rows with their uids."""

from __future__ import annotations

import glob
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import fsspec
import pyarrow as pa

from curate.bad_input import BadInput
from curate.chunks import chunk_end
from curate.config import WebSource
from curate.sample import sample_uid

LIST_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("license", pa.string()),
        ("sha256", pa.string()),
        ("extra", pa.string()),
    ]
)
ARGUMENT = {"url": "url_column", "caption": "caption_column", "license": "license_column", "sha256": "sha256_column"}
"""Column of a chunk and the setting that names its column in the lists."""


def list_files(source: WebSource) -> list[str]:
    """Return the source's URL lists; raises ValueError where there is none."""
    fs, pattern = fsspec.core.url_to_fs(source.url_list)
    found = sorted(fs.glob(pattern)) if glob.has_magic(pattern) else [pattern] * fs.exists(pattern)
    if not found:
        raise BadInput(f"web.{source.name}.url_list = {source.url_list}: no such file")
    return [fs.unstrip_protocol(path) for path in found]


def read_lists(source: WebSource, files: list[str], rows_per_chunk: int) -> Iterator[pa.Table]:
    """Yield chunks of distinct (URL, caption) rows with their uids, in an order that mixes the hosts.

    The order is that of a hash of the URL, so that neighbours in the list, which often share a
    host, are far apart, and the captions of one URL follow each other. Runs in DuckDB, which spills to disk.
    """
    with duckdb.connect(config={"temp_directory": _spill_folder()}) as database:
        fs, _ = fsspec.core.url_to_fs(files[0])
        if "file" not in fs.protocol:
            database.register_filesystem(fs)
        with _readable(source):
            found = database.sql(f"SELECT * FROM {_reader(files, source.column_names)} LIMIT 0").columns
            _check_columns(source, found)
            reader = _reader(files, source.column_names, _json_types(source, found))
            rows = database.sql(_distinct_rows(source, reader)).to_arrow_reader(rows_per_chunk)
            for chunk in _chunks(rows, rows_per_chunk):
                yield _with_uids(chunk, source.name)


@contextmanager
def _readable(source: WebSource) -> Iterator[None]:
    """Raise BadInput for a list that is damaged, or no table of its kind."""
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.ConversionException) as error:
        told = str(error).splitlines()[0]
        raise BadInput(f"web.{source.name}.url_list = {source.url_list}: cannot be read: {told}") from error


def _spill_folder() -> str:
    return posixpath.join(tempfile.gettempdir(), "darkroom-duckdb")


def _reader(files: list[str], column_names: Sequence[str], json_types: str = "union_by_name=true") -> str:
    """Return the DuckDB table function that reads the files."""
    paths = [file.removeprefix("file://") for file in files]
    names = _texts(paths)
    name = paths[0].removesuffix(".gz")
    if name.endswith(".parquet"):
        return f"read_parquet({names}, union_by_name=true)"
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return f"read_json({names}, {json_types})"
    if name.endswith((".csv", ".tsv")):
        columns = f"header=false, names={_texts(column_names)}" if column_names else "header=true, union_by_name=true"
        if name.endswith(".csv"):
            columns += ", quote='\"'"
        elif column_names:  # as published for Conceptual Captions: no header line, and quotes are only quotes
            columns += ", delim='\t', quote=''"
        return f"read_csv({names}, {columns}, all_varchar=true)"
    raise BadInput(f"{files[0]}: URL lists are .parquet, .csv, .tsv or .jsonl")


def _json_types(source: WebSource, found: list[str]) -> str:
    """Return the columns of JSON lists: text as it is written, which a guessed type would change."""
    kinds = dict.fromkeys(source.extra_columns, "JSON")
    kinds |= {column: "VARCHAR" for field in ARGUMENT.values() if (column := getattr(source, field)) is not None}
    spelt = {name.lower(): name for name in found}
    return f"columns={{{', '.join(f'{_quoted(spelt[name.lower()])}: {kind!r}' for name, kind in kinds.items())}}}"


def _texts(values: Sequence[str]) -> str:
    return "[" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + "]"


def _check_columns(source: WebSource, found: list[str]) -> None:
    """Raise ValueError where the lists lack a column that the settings name; upper and lower case are the same."""
    wanted = {field: getattr(source, field) for field in ARGUMENT.values()}
    for field, column in [*wanted.items(), *(("extra_columns", column) for column in source.extra_columns)]:
        if column is not None and column.lower() not in {name.lower() for name in found}:
            raise BadInput(f"web.{source.name}.{field} = {column!r}: the lists have {', '.join(found)}")


def _distinct_rows(source: WebSource, reader: str) -> str:
    """Return the query; of equal rows the smallest licence, hash and extra columns are kept."""

    def text(column: str | None) -> str:
        return "NULL" if column is None else f"CAST({_quoted(column)} AS VARCHAR)"

    named = {column: getattr(source, field) for column, field in ARGUMENT.items()}
    columns = [f"nullif({text(name)}, '') AS {column}" for column, name in named.items()]
    extra = ", ".join(f"{_quoted(name)} := {_quoted(name)}" for name in source.extra_columns)
    columns.append(f"CAST(to_json(struct_pack({extra})) AS VARCHAR) AS extra" if extra else "NULL AS extra")
    return f"""
        SELECT url, caption, min(license) AS license, min(lower(sha256)) AS sha256, min(extra) AS extra
        FROM (SELECT {", ".join(columns)} FROM {reader})
        GROUP BY url, caption
        ORDER BY md5(coalesce(url, chr(0) || caption)), url, caption"""


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _chunks(reader: pa.RecordBatchReader, rows_per_chunk: int) -> Iterator[pa.Table]:
    """Yield the rows in chunks; one row more than a chunk tells whether its last URL goes on."""
    waiting: list[pa.RecordBatch] = []
    for batch in reader:
        waiting.append(batch)
        while sum(len(part) for part in waiting) > rows_per_chunk:
            rows = pa.Table.from_batches(waiting)
            end = chunk_end(rows["url"].slice(0, rows_per_chunk + 1).to_pylist(), rows_per_chunk)
            yield rows.slice(0, end)
            waiting = rows.slice(end).to_batches()
    if sum(len(part) for part in waiting):
        yield pa.Table.from_batches(waiting)


def _with_uids(rows: pa.Table, source: str) -> pa.Table:
    listed = rows.to_pylist()
    uids = [sample_uid(source, row["url"] or "", row["caption"]) for row in listed]
    columns = [rows[name].cast(pa.string()) for name in LIST_SCHEMA.names[1:]]
    return pa.table([pa.array(uids, pa.string()), *columns], schema=LIST_SCHEMA)
