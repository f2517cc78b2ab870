"""Tables with images in a column: parquet by row group, arrow files (Hugging Face's) by record batch."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curate import sample
from curate.bad_input import BadInput
from curate.config import DumpSource
from curate.dump.captions import caption_of, license_of
from curate.dump.files import READ_AHEAD_BYTES, DumpFile, place
from curate.dump.read import DumpRow

ROWS_AT_A_TIME = 16
FILE_FORMAT = b"ARROW1"
"""What opens an arrow file; an arrow stream, which save_to_disk writes, has no such mark."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of one row group or record batch, or the status of what cannot be read."""

    path: str
    unit: int
    """Number of the row group or record batch."""
    offset: int
    """First byte of a stream's record batch."""
    first_row: int
    """Number in the file of the unit's first row."""
    skip: int
    """Rows of the unit that belong to another chunk before this one."""
    count: int
    status: str | None = None
    error: str | None = None


SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        *((name, pa.int64()) for name in ("unit", "offset", "first_row", "skip", "count")),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)


def list_rows(source: DumpSource, file: DumpFile, rows_per_chunk: int) -> Iterator[list[Rows]]:
    """Yield the chunks of a table: whole units, or parts of a unit that is longer than a chunk.

    Raises ValueError for columns that the settings name and the table lacks.
    """
    listing = _Listing(file)
    try:
        with _opened(source, file.path) as table:
            column_names(table.schema, source)
            for unit, (offset, count) in enumerate(table.units()):
                listing.add(unit, offset, count)
    except _UNREADABLE as error:
        _only_damage(error)
        listing.fail(error)
    yield from _chunks(listing.rows, rows_per_chunk)


class _Listing:
    def __init__(self, file: DumpFile) -> None:
        self._file = file
        self._next_row = 0
        self.rows: list[Rows] = []

    def add(self, unit: int, offset: int, count: int, **said: Any) -> None:
        self.rows.append(
            Rows(
                path=self._file.path,
                unit=unit,
                offset=offset,
                first_row=self._next_row,
                skip=0,
                count=count,
                **said,
            )
        )
        self._next_row += count

    def fail(self, error: Exception) -> None:
        message = f"the table ends here, or cannot be read on: {type(error).__name__}: {error}"
        self.add(-1, 0, 0, status=sample.DAMAGED, error=message)


def _chunks(rows: list[Rows], rows_per_chunk: int) -> Iterator[list[Rows]]:
    chunk: list[Rows] = []
    for part in rows:
        if chunk and sum(each.count for each in chunk) + part.count > rows_per_chunk:
            yield chunk
            chunk = []
        if part.count <= rows_per_chunk:
            chunk.append(part)
            continue
        for skip in range(0, part.count, rows_per_chunk):
            yield [Rows(**asdict(part) | {"skip": skip, "count": min(rows_per_chunk, part.count - skip)})]
    if chunk:
        yield chunk


def column_names(schema: pa.Schema, source: DumpSource) -> tuple[str, list[str]]:
    """Return the image column and the others that are read; raises ValueError for what is not there."""
    for setting in ("image_column", "caption_column", "license_column"):
        name = getattr(source, setting)
        if name is not None and name not in schema.names:
            fix = f"set {setting}" + (" (null: no captions)" if setting == "caption_column" else "")
            raise BadInput(f"dumps.{source.name}.{setting} = {name}: the columns are {schema.names}: {fix}")
    others = [name for name in (source.caption_column, source.license_column) if name is not None]
    if source.image_column is not None:
        if not _holds_bytes(schema.field(source.image_column).type):
            kind = schema.field(source.image_column).type
            raise BadInput(
                f"dumps.{source.name}.image_column = {source.image_column}: {kind} holds no bytes: set another"
            )
        return source.image_column, others
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if len(able) != 1:
        said = f"{len(able)} of the columns {schema.names} can hold images"
        raise BadInput(f"dumps.{source.name}.image_column = null: {said}: set image_column")
    return able[0], others


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def read_rows(source: DumpSource, parts: Sequence[Rows]) -> Iterator[DumpRow]:
    """Yield a row for each row of the parts, in order; those behind damage as a status."""
    for path, of_file in groupby(parts, key=lambda part: part.path):
        whole = []
        for part in of_file:
            if part.status:
                yield DumpRow(key=path, caption=None, license=None, status=part.status, error=part.error)
            else:
                whole.append(part)
        if whole:
            yield from _of_file(source, path, whole)


def _of_file(source: DumpSource, path: str, parts: list[Rows]) -> Iterator[DumpRow]:
    try:
        with _opened(source, path) as table:
            for part in parts:
                yield from _of_part(source, table, part)
    except FileNotFoundError:
        for part in parts:
            yield from _lost(part, 0, sample.MISSING_FILE, "the file is gone since it was listed", source)
    except _UNREADABLE as error:  # of the opening: a part tells of its own
        _only_damage(error)
        for part in parts:
            yield from _lost(part, 0, sample.DAMAGED, f"{type(error).__name__}: {error}", source)


def _of_part(source: DumpSource, table: Any, part: Rows) -> Iterator[DumpRow]:
    image, others = column_names(table.schema, source)
    done = 0
    try:
        for batch in table.batches(part, [image, *dict.fromkeys(others)]):
            for values in batch.to_pylist():
                yield _row(source, part, part.skip + done, image, values)
                done += 1
    except _UNREADABLE as error:
        _only_damage(error)
        yield from _lost(part, done, sample.DAMAGED, f"{type(error).__name__}: {error}", source)


def _lost(part: Rows, done: int, status: str, error: str, source: DumpSource) -> Iterator[DumpRow]:
    for at in range(done, part.count):
        key = f"{part.path}#{part.first_row + part.skip + at}"
        yield DumpRow(key=key, caption=None, license=source.license, status=status, error=error)


def _row(source: DumpSource, part: Rows, at: int, image: str, values: dict[str, Any]) -> DumpRow:
    cell, name = values[image], None
    if isinstance(cell, dict):
        cell, name = cell["bytes"], cell.get("path")
    key = f"{part.path}#{part.first_row + at}" + (f"/{posixpath.basename(name)}" if name else "")
    said: dict[str, Any] = {"key": key, "caption": caption_of(values, source), "license": license_of(values, source)}
    if cell is None:
        error = f"the table has no bytes, only the path {name}" if name else "the image is null"
        return DumpRow(**said, status=sample.MISSING_FILE, error=error)
    if len(cell) > source.max_file_mb << 20:
        error = f"{len(cell)} bytes are over max_file_mb = {source.max_file_mb}"
        return DumpRow(**said, status=sample.TOO_LARGE, error=error)
    return DumpRow(**said, data=cell)


_UNREADABLE = (pa.ArrowException, OSError)


def _only_damage(error: Exception) -> None:
    """Raise again what is the storage's fault: pyarrow's own OSErrors, which tell of damage, have no number."""
    if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError | TimeoutError)):
        raise error


@contextmanager
def _opened(source: DumpSource, path: str) -> Iterator[Any]:
    fs, folder = place(source)
    full = posixpath.join(folder, path)
    if isinstance(fs, LocalFileSystem):
        with _local(full) as file:
            yield _table(file, source.kind)
    else:
        with fs.open(full, "rb", block_size=READ_AHEAD_BYTES) as file:
            yield _table(pa.PythonFile(file, mode="r"), source.kind)


def _local(path: str) -> pa.NativeFile:
    """Return a mapped file, of which only the parts that are used take memory."""
    try:
        return pa.memory_map(path)
    except pa.ArrowInvalid:  # an empty file cannot be mapped
        return pa.OSFile(path)


def _table(file: pa.NativeFile, kind: str | None) -> _Parquet | _ArrowFile | _ArrowStream:
    if kind == "parquet":
        return _Parquet(file)
    head = file.read(len(FILE_FORMAT))
    file.seek(0)
    return _ArrowFile(file) if head == FILE_FORMAT else _ArrowStream(file)


class _Parquet:
    def __init__(self, file: pa.NativeFile) -> None:
        self._file = pq.ParquetFile(file, buffer_size=READ_AHEAD_BYTES, pre_buffer=False)
        self.schema = self._file.schema_arrow

    def units(self) -> Iterator[tuple[int, int]]:
        for unit in range(self._file.num_row_groups):
            yield 0, self._file.metadata.row_group(unit).num_rows

    def batches(self, part: Rows, columns: list[str]) -> Iterator[pa.RecordBatch]:
        skip, left = part.skip, part.count
        for batch in self._file.iter_batches(ROWS_AT_A_TIME, [part.unit], columns, use_threads=False):
            taken = batch.slice(skip, left)
            skip, left = max(skip - len(batch), 0), left - len(taken)
            if len(taken):
                yield taken
            if not left:
                return


class _ArrowFile:
    def __init__(self, file: pa.NativeFile) -> None:
        self._file = pa.ipc.open_file(file)
        self.schema = self._file.schema

    def units(self) -> Iterator[tuple[int, int]]:
        for unit in range(self._file.num_record_batches):
            yield 0, self._file.get_batch(unit).num_rows

    def batches(self, part: Rows, columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from _sliced(self._file.get_batch(part.unit), part, columns)


class _ArrowStream:
    """A stream's record batches are found by their offsets, which the listing keeps."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.schema = pa.ipc.read_schema(file)

    def units(self) -> Iterator[tuple[int, int]]:
        while True:
            offset = self._file.tell()
            if (batch := self._next()) is None:
                return
            yield offset, batch.num_rows

    def batches(self, part: Rows, columns: list[str]) -> Iterator[pa.RecordBatch]:
        self._file.seek(part.offset)
        if (batch := self._next()) is None:
            raise pa.ArrowInvalid(f"no record batch at {part.offset}")
        yield from _sliced(batch, part, columns)

    def _next(self) -> pa.RecordBatch | None:
        """Return the next record batch; None at the end of the stream. Raises ArrowInvalid where it is cut off."""
        start = self._file.tell()
        head = self._file.read(8)
        if head in (b"", b"\xff\xff\xff\xff\0\0\0\0"):
            if not head:
                raise pa.ArrowInvalid("the stream has no end: rows may be missing")
            return None
        self._file.seek(start)
        try:
            message = pa.ipc.read_message(self._file)
        except EOFError as error:
            raise pa.ArrowInvalid("the stream is cut off") from error
        if message.type != "record batch":
            raise pa.ArrowInvalid(f"a {message.type} message: dictionary-encoded columns are not read")
        return pa.ipc.read_record_batch(message, self.schema)


def _sliced(batch: pa.RecordBatch, part: Rows, columns: list[str]) -> Iterator[pa.RecordBatch]:
    wanted = batch.select(columns).slice(part.skip, part.count)
    for first in range(0, len(wanted), ROWS_AT_A_TIME):
        yield wanted.slice(first, ROWS_AT_A_TIME)


def to_table(parts: Sequence[Rows]) -> pa.Table:
    """Return the parts as rows of a listing."""
    rows = [asdict(part) | {"path": part.path.encode("utf-8", "surrogatepass")} for part in parts]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(listing: pa.Table) -> list[Rows]:
    return [Rows(**row | {"path": row["path"].decode("utf-8", "surrogatepass")}) for row in listing.to_pylist()]
