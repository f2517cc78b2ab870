"""Where checkpoints lie, a local folder or an fsspec URL: small files appear whole, large ones are hashed on the way.

A file system can rename and an object store cannot, so nothing here is renamed into sight but a small file
on a local disk. What makes a checkpoint exist is its last file, never a folder's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

CHUNK_BYTES = 16 << 20
"""Bytes that are hashed, written or read at a time; Python's lock is free meanwhile."""
UPLOAD_BYTES = 64 << 20
"""Bytes of a part of a multipart upload: 10,000 of them, S3's most, are 671 GB."""


@dataclass(frozen=True)
class Store:
    """Files by their names below a folder; every method raises OSError where the place fails."""

    fs: Any
    root: str
    """Path within `fs`."""

    @property
    def is_local(self) -> bool:
        """Whether files lie on a mounted disk."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Return a name's path within `fs`."""
        return f"{self.root}/{name}" if name else self.root

    def write(self, name: str, pieces: Iterable[memoryview]) -> dict[str, Any]:
        """Write a large file and return its num_bytes and sha256, taken from memory and not read back.

        What a killed writer leaves is a file that nothing refers to; one that filled the disk removes its own.
        """
        try:
            return self._written(name, pieces)
        except OSError:
            with contextlib.suppress(OSError):  # the error of writing is the one to tell
                if self.is_local:
                    self.remove(name)
            raise

    def _written(self, name: str, pieces: Iterable[memoryview]) -> dict[str, Any]:
        digest, num_bytes = hashlib.sha256(), 0
        with self._opened(name) as file:
            for piece in pieces:
                digest.update(piece)
                num_bytes += len(piece)
                _write_all(file, piece)
            if self.is_local:
                os.fsync(file.fileno())
        return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, which is there whole or not at all."""
        if not self.is_local:
            self.fs.pipe_file(self.path(name), data)  # one PUT
            return
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.with_name(f".{final.name}.{os.getpid()}.partial")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, final)
        for folder in (final.parent, final.parent.parent):
            _fsync_folder(folder)

    def get(self, name: str) -> bytes:
        """Return a small file; raises FileNotFoundError."""
        return self.fs.cat_file(self.path(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a large file from its beginning."""
        with self.fs.open(self.path(name), "rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield data

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with a file's bytes from `offset` on; raises OSError where the file ends before."""
        for low in range(0, len(buffer), CHUNK_BYTES):
            high = min(low + CHUNK_BYTES, len(buffer))
            data = self.fs.cat_file(self.path(name), start=offset + low, end=offset + high)
            if len(data) != high - low:
                raise OSError(f"{self.path(name)}: {len(data)} of {high - low} bytes at {offset + low}")
            buffer[low:high] = data

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted last names of what a folder holds; nothing where there is no folder."""
        self.fs.invalidate_cache(self.path(folder))
        try:
            found = self.fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that it holds, where it is there."""
        try:
            self.fs.rm(self.path(name), recursive=True)
        except FileNotFoundError:
            return

    def _opened(self, name: str) -> Any:
        if not self.is_local:
            return self.fs.open(self.path(name), "wb", block_size=UPLOAD_BYTES)
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb", buffering=0)


def open_store(folder: str | os.PathLike[str]) -> Store:
    """Return the store of a folder, by path or fsspec URL."""
    fs, root = fsspec.core.url_to_fs(os.fspath(folder), use_listings_cache=False)
    return Store(fs, root.rstrip("/"))


def _write_all(file: Any, piece: memoryview) -> None:
    """Write a piece; an unbuffered file may take less of it at a time."""
    while len(piece):
        piece = piece[file.write(piece) :]


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
