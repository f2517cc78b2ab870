"""The kinds of dumps: which one a folder is, what is listed of it, and how a listing is read."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from curate.bad_input import BadInput
from curate.chunks import chunk_end
from curate.config import DumpSource
from curate.dump import entries, tables
from curate.dump.files import METADATA, DumpFile, find_files, list_archive, list_folder, place
from curate.dump.read import DumpRow, read_entries

Kind = Literal["folder", "imagefolder", "tar", "zip", "parquet", "arrow"]
ENDINGS: dict[Kind, tuple[str, ...]] = {
    "tar": (".tar", ".tar.gz", ".tgz"),
    "zip": (".zip",),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""What archives and tables are called."""
STATE = "state.json"
"""Where save_to_disk names the arrow files of a data set."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is listed at once: all files of a folder (`file` None), or one archive or table."""

    name: str
    """Name of its own among all sources; the same as long as the file's path is."""
    source: DumpSource
    """The source, its kind known."""
    file: DumpFile | None
    version: str
    """Another one where a file came, went or changed."""


def dump_parts(source: DumpSource) -> list[Part]:
    """Return what there is to list, by path.

    Raises ValueError for a folder that is not there, or not of a kind that is known.
    """
    files = find_files(source)
    kind = _kind(source, files)
    source = replace(source, kind=kind, captions=_normal(source.captions))
    if kind in ("folder", "imagefolder"):
        if source.captions is not None and all(file.path != source.captions for file in files):
            raise BadInput(f"dumps.{source.name}.captions = {source.captions}: not in {source.folder}")
        version = _digest([[_hex(file.path), file.version] for file in files])
        return [Part(name=source.name, source=source, file=None, version=version)] if files else []
    parts = [
        Part(name=f"{source.name}-{_digest(_hex(file.path))}", source=source, file=file, version=file.version)
        for file in _containers(source, kind, files)
    ]
    if not parts and files:
        raise BadInput(f"dumps.{source.name}.kind = {kind}: no such files in {source.folder}: set another kind")
    return parts


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What one chunk is to hold; its rows say nothing of times, so that copies of a dump have the same."""

    rows: pa.Table
    versions: str
    """Another one where a file of the chunk changed."""


def list_part(part: Part, rows_per_chunk: int) -> Iterator[Listing]:
    """Yield the listings of a part, of at most `rows_per_chunk` samples each, in an order of their own."""
    if part.file is not None and part.source.kind in ("parquet", "arrow"):
        for rows in tables.list_rows(part.source, part.file, rows_per_chunk):
            yield Listing(rows=tables.to_table(rows), versions=part.version)
        return
    files = [part.file] if part.file else find_files(part.source)
    found = list_archive(part.source, part.file) if part.file else list_folder(part.source, files)
    of = {file.path: file.version for file in files}
    names = [entries.name_of(entry.key) for entry in found]
    first = 0
    while first < len(found):
        last = first + chunk_end(names[first : first + rows_per_chunk + 1], rows_per_chunk)
        chunk, first = found[first:last], last
        paths = sorted({blob.path for entry in chunk for blob in (entry.image, entry.text, entry.record) if blob})
        versions = _digest([[_hex(path), of[path]] for path in paths])
        yield Listing(rows=entries.to_table(chunk), versions=versions)


def num_samples(listing: pa.Table) -> int:
    """Return the rows that a listing gives."""
    if listing.schema.names == tables.SCHEMA.names:
        return sum(max(count, 1) for count in listing["count"].to_pylist())
    return len(listing)


def read_listing(source: DumpSource, listing: pa.Table) -> Iterator[DumpRow]:
    """Yield the samples of a listing, in order."""
    if source.kind in ("parquet", "arrow"):
        return tables.read_rows(source, tables.from_table(listing))
    return read_entries(source, entries.from_table(listing))


def _normal(path: str | None) -> str | None:
    return None if path is None else posixpath.normpath(path)


def _kind(source: DumpSource, files: list[DumpFile]) -> Kind:
    """Return the kind as set, or else as the files' endings tell it."""
    if source.kind is not None:
        return source.kind
    paths = [file.path for file in files if file.path != _normal(source.captions) and not _is_metadata(file.path)]
    found: list[Kind] = [
        kind for kind, endings in ENDINGS.items() if any(path.lower().endswith(endings) for path in paths)
    ]
    if any(map(entries.is_image, paths)) or (source.captions and not found) or not files:
        with_metadata = source.captions is None and any(_is_metadata(file.path) for file in files)
        found.append("imagefolder" if with_metadata else "folder")
    where = f"dumps.{source.name}.folder = {source.folder}"
    if not found:
        seen = sorted({posixpath.splitext(path)[1] for path in paths})[:8]
        raise BadInput(f"{where}: no images and no .tar, .zip, .parquet or .arrow files, only {seen}")
    if len(found) > 1:
        raise BadInput(f"{where}: it holds more than one kind of dump: set kind to one of {', '.join(found)}")
    return found[0]


def _is_metadata(path: str) -> bool:
    return posixpath.basename(path) in METADATA


def _containers(source: DumpSource, kind: Kind, files: Iterable[DumpFile]) -> list[DumpFile]:
    """Return the archives or tables; where save_to_disk says which arrow files count, only those."""
    found = [file for file in files if file.path.lower().endswith(ENDINGS[kind])]
    if kind != "arrow":
        return found
    fs, folder = place(source)
    named: dict[str, set[str]] = {}
    for file in files:
        if posixpath.basename(file.path) == STATE:
            try:
                said = json.loads(fs.cat_file(posixpath.join(folder, file.path)))
                names = {data["filename"] for data in said["_data_files"]}
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(f"dumps.{source.name}.folder = {source.folder}: {file.path}: {error!r}") from error
            named[posixpath.dirname(file.path)] = names
    lacking = [f"{below}/{n}".lstrip("/") for below, names in named.items() for n in sorted(names)]
    there = {file.path for file in found}
    if missing := [path for path in lacking if path not in there]:
        raise BadInput(f"dumps.{source.name}.folder = {source.folder}: {STATE} names {missing[0]}: it is not there")
    return [
        file
        for file in found
        if posixpath.dirname(file.path) not in named
        or posixpath.basename(file.path) in named[posixpath.dirname(file.path)]
    ]


def _hex(path: str) -> str:
    """Return a path as text that hashes, whatever its bytes."""
    return path.encode("utf-8", "surrogatepass").hex()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
