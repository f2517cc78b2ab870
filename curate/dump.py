"""Dumps: a folder of images that one already has, with a captions file or a .txt beside each image."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec

from curate.config import DumpSource
from curate.sample import storable

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl")


@dataclass(frozen=True, kw_only=True)
class DumpRow:
    """One image of a dump; `path` is relative to its folder."""

    path: str
    caption: str | None
    is_there: bool
    sidecar: str | None


def list_dump(source: DumpSource) -> list[DumpRow]:
    """Return every image in the folder and every row of its captions file, by path.

    Raises ValueError for a folder or captions file that is not there or not readable.
    """
    fs, folder = fsspec.core.url_to_fs(source.folder)
    if not fs.isdir(folder):
        raise ValueError(f"dumps.{source.name}.folder = {source.folder}: no such folder")
    files = {posixpath.relpath(path, folder) for path in fs.find(folder)}
    images = {path for path in files if path.lower().endswith(IMAGE_ENDINGS)}
    captions = _captions(source, fs, folder) if source.captions else {}
    return [_row(path, captions, files, source) for path in sorted(images | captions.keys())]


def _row(path: str, captions: dict[str, str | None], files: set[str], source: DumpSource) -> DumpRow:
    sidecar = posixpath.splitext(path)[0] + ".txt"
    use_sidecar = source.captions is None and sidecar in files
    return DumpRow(
        path=path, caption=captions.get(path), is_there=path in files, sidecar=sidecar if use_sidecar else None
    )


def _captions(source: DumpSource, fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, str | None]:
    path = posixpath.join(folder, str(source.captions))
    if not fs.exists(path):
        raise ValueError(f"dumps.{source.name}.captions = {source.captions}: not in {source.folder}")
    where = f"dumps.{source.name}.captions = {source.captions}"
    text = fs.cat_file(path).decode("utf-8-sig", errors="replace")
    captions: dict[str, str | None] = {}
    for row in _records(text, str(source.captions), where):
        if source.file_column not in row:
            raise ValueError(f"{where}: no column {source.file_column!r}, only {sorted(row)}: set file_column")
        caption = row.get(source.caption_column)
        if isinstance(caption, list):
            caption = caption[0] if caption else None
        name = posixpath.normpath(str(row[source.file_column]))
        if not name.startswith(("../", "/")):
            captions[name] = None if caption is None else storable(str(caption))
    return captions


def _records(text: str, name: str, where: str) -> Iterator[dict]:
    if name.endswith((".csv", ".tsv")):
        yield from csv.DictReader(io.StringIO(text), delimiter="\t" if name.endswith(".tsv") else ",")
        return
    if not name.endswith((".jsonl", ".json", ".ndjson")):
        raise ValueError(f"{where}: captions are .jsonl, .csv or .tsv")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}, line {number}: {error}") from error
