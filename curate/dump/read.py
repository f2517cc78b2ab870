"""The samples of a listing: the bytes of its images and of the captions beside them, read in groups."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from curate import sample
from curate.config import DumpSource
from curate.dump.captions import caption_of, license_of
from curate.dump.entries import Blob, Entry
from curate.dump.files import READ_AHEAD_BYTES, place
from curate.dump.zips import UnreadableBlob, unzipped

GROUP_BYTES, GROUP_BLOBS = 64 << 20, 64
"""What is read at a time: from an object store, at once."""
CAPTION_BYTES = 1 << 20
"""A longer file beside an image is no caption."""


@dataclass(frozen=True, kw_only=True)
class DumpRow:
    """One sample of a dump: its image's bytes, or the status of what went wrong."""

    key: str
    caption: str | None
    license: str | None
    data: bytes | None = None
    status: str | None = None
    error: str | None = None


def read_entries(source: DumpSource, entries: Iterable[Entry]) -> Iterator[DumpRow]:
    """Yield a row for each entry, in order."""
    fs, folder = place(source)
    with ExitStack() as stack:
        archives = _Archives(fs, folder, stack)
        for group in _groups(entries):
            found = _read(archives, [blob for entry in group for blob in _blobs(entry)], source.max_file_mb << 20)
            for entry in group:
                yield _row(entry, found, source)
            del found  # or the next group would be read beside it


def _blobs(entry: Entry) -> list[Blob]:
    image = [entry.image] if entry.image and entry.status is None else []
    return image + [blob for blob in (entry.text, entry.record) if blob]


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    num_bytes = num_blobs = 0
    for entry in entries:
        blobs = _blobs(entry)
        num_bytes, num_blobs = num_bytes + sum(b.num_bytes for b in blobs), num_blobs + len(blobs)
        if group and (num_bytes > GROUP_BYTES or num_blobs > GROUP_BLOBS):
            yield group
            group, num_bytes, num_blobs = [], sum(b.num_bytes for b in blobs), len(blobs)
        group.append(entry)
    if group:
        yield group


Found = dict[Blob, bytes | UnreadableBlob]


def _read(archives: _Archives, blobs: list[Blob], most_bytes: int) -> Found:
    found: Found = {}
    whole = []
    for blob in dict.fromkeys(blobs):
        if blob.num_bytes > most_bytes:
            message = f"{blob.num_bytes} bytes are over max_file_mb = {most_bytes >> 20}"
            found[blob] = UnreadableBlob(sample.TOO_LARGE, message)
        elif blob.offset is None:
            whole.append(blob)
        else:
            found[blob] = archives.read(blob, most_bytes)
    return found | archives.read_whole(whole)


class _Archives:
    """Reads blobs; an archive is opened once and read onward, its blobs being asked for by offset."""

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, stack: ExitStack) -> None:
        self._fs, self._folder, self._stack = fs, folder, stack
        self._open: dict[str, BinaryIO] = {}

    def read(self, blob: Blob, most_bytes: int) -> bytes | UnreadableBlob:
        try:
            file = self._file(blob.path)
            if blob.method is not None:
                return unzipped(file, blob, most_bytes)
            file.seek(blob.offset or 0)
            data = file.read(blob.num_bytes)
        except UnreadableBlob as error:
            return error
        except (FileNotFoundError, PermissionError) as error:
            return _gone(error)
        if len(data) < blob.num_bytes:
            return UnreadableBlob(sample.TRUNCATED, f"the archive ends after {len(data)} of {blob.num_bytes} bytes")
        return data

    def read_whole(self, blobs: list[Blob]) -> Found:
        paths = [posixpath.join(self._folder, blob.path) for blob in blobs]
        none = [None] * len(paths)
        read = self._fs.cat_ranges(paths, none, none, on_error="return") if paths else []
        found: Found = {}
        for blob, data in zip(blobs, read, strict=True):
            if isinstance(data, FileNotFoundError | PermissionError | IsADirectoryError):
                found[blob] = _gone(data)
            elif isinstance(data, BaseException):
                raise data
            else:
                found[blob] = data
        return found

    def _file(self, path: str) -> BinaryIO:
        if path not in self._open:
            full = posixpath.join(self._folder, path)
            self._open[path] = self._stack.enter_context(self._fs.open(full, "rb", block_size=READ_AHEAD_BYTES))
        return self._open[path]


def _gone(error: OSError) -> UnreadableBlob:
    return UnreadableBlob(sample.MISSING_FILE, type(error).__name__)


def _row(entry: Entry, found: Found, source: DumpSource) -> DumpRow:
    said: dict[str, Any] = {"key": entry.key, "caption": entry.caption, "license": entry.license or source.license}
    try:
        said |= _sidecar(entry, found, source)
    except (UnreadableBlob, ValueError, RecursionError) as error:
        status = entry.status or getattr(error, "status", sample.BAD_CAPTION)
        return DumpRow(**said, status=status, error=f"the caption beside the image: {error}")
    if entry.status or entry.image is None:
        return DumpRow(**said, status=entry.status, error=entry.error)
    data = found[entry.image]
    if isinstance(data, UnreadableBlob):
        return DumpRow(**said, status=data.status, error=str(data))
    return DumpRow(**said, data=data)


def _sidecar(entry: Entry, found: Found, source: DumpSource) -> dict[str, str | None]:
    """Return the caption and the licence from beside the image; raises ValueError where they cannot be read."""
    said: dict[str, str | None] = {}
    if entry.record:
        record = json.loads(_bytes(entry.record, found).decode("utf-8-sig", errors="replace"))
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, got {type(record).__name__}")
        said = {"caption": caption_of(record, source), "license": license_of(record, source)}
    if entry.text:
        text = _bytes(entry.text, found).decode("utf-8-sig", errors="replace").strip()
        said["caption"] = sample.storable(text) or None
    return said


def _bytes(blob: Blob, found: Found) -> bytes:
    data = found[blob]
    if isinstance(data, UnreadableBlob):
        raise data
    if len(data) > CAPTION_BYTES:
        raise ValueError(f"{len(data)} bytes are no caption")
    return data
