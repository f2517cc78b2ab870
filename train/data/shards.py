"""Bytes of shards by offset: straight from a local disk, through a bounded local cache of blocks from elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec

from train.config import LoaderConfig
from train.index.reader import Member

LOCKS = 64
"""Blocks that are fetched at the same time on one node."""

Reason = Literal["missing", "truncated", "corrupt", "misplaced", "size"]
"""The last two are what `python -m train.data --check` alone looks for."""


class BadSample(ValueError):
    """A sample that cannot be used: its shard is missing, ends too early, or holds something else."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that a worker can send it
        self.reason = reason
        self._message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self._message}"


@dataclass(frozen=True, kw_only=True)
class ShardReader:
    """Reads members of tars below a root."""

    root: str
    """Folder by fsspec URL."""
    cache: BlockCache | None = None
    """Where blocks of remote shards are kept; None reads each member by itself."""

    def read(self, member: Member) -> bytes:
        """Return the member's bytes; raises BadSample where the shard is missing or ends before them."""
        data = bytearray(member.num_bytes)
        self.read_into(member, [data])
        return bytes(data)

    def read_into(self, member: Member, buffers: Sequence[bytearray | memoryview]) -> None:
        """Fill the buffers, which together have the member's length, with its bytes; raises BadSample like `read`."""
        try:
            found = self._fill(member, buffers)
        except FileNotFoundError as error:
            raise BadSample("missing", f"{self.root}/{member.shard}") from error
        if found != member.num_bytes:
            told = f"{found} of {member.num_bytes} bytes at {member.offset}"
            raise BadSample("truncated", f"{self.root}/{member.shard}: {told}")

    def warm(self, member: Member) -> None:
        """Fetch the blocks of a remote member into the cache; what is missing shows when it is read."""
        if self.cache is None or _is_local(self.root):
            return
        for block in self.cache.blocks(member):
            with contextlib.suppress(FileNotFoundError):
                self.cache.fetch(self.root, member.shard, block)

    def _fill(self, member: Member, buffers: Sequence[bytearray | memoryview]) -> int:
        """Return how many bytes were there."""
        if _is_local(self.root):
            return _opened(f"{_filesystem(self.root)[1]}/{member.shard}").read_into(member, buffers)
        data, start = memoryview(self._remote(member)), 0
        for buffer in buffers:
            part = data[start : start + len(buffer)]
            buffer[: len(part)] = part
            start += len(buffer)
        return len(data)

    def _remote(self, member: Member) -> bytes:
        if self.cache is None:
            return fetch_range(self.root, member.shard, member.offset, member.num_bytes)
        return self.cache.read(self.root, member)


@dataclass(frozen=True, kw_only=True)
class BlockCache:
    """Blocks of remote shards in a local folder that never holds more than `max_bytes`, shared by processes.

    The block that was used longest ago goes first. A reader keeps an open file, so that nobody
    takes a block away from under it.
    """

    folder: str
    """Local folder."""
    version: str
    """Identity of the index: shards that were written again are other blocks."""
    max_bytes: int
    """Most that the folder holds."""
    block_bytes: int
    """Length of a block."""

    def blocks(self, member: Member) -> range:
        """Return the numbers of the blocks that a member lies in."""
        return range(
            member.offset // self.block_bytes, (member.offset + max(1, member.num_bytes) - 1) // self.block_bytes + 1
        )

    def read(self, root: str, member: Member) -> bytes:
        """Return a member's bytes, fewer where the shard ends before them; raises FileNotFoundError."""
        pieces = []
        for block in self.blocks(member):
            first = member.offset - block * self.block_bytes
            last = min(first + member.num_bytes, self.block_bytes)
            pieces.append(self._stretch(root, member.shard, block, max(0, first), last))
        return b"".join(pieces)

    def _stretch(self, root: str, shard: str, block: int, first: int, last: int) -> bytes:
        """Return the bytes first..last - 1 of a block; what is kept is not read whole for them."""
        try:
            with self._path(root, shard, block).open("rb") as file:
                os.utime(file.fileno())
                file.seek(first)
                return file.read(last - first)
        except FileNotFoundError:
            return self.fetch(root, shard, block)[first:last]

    def fetch(self, root: str, shard: str, block: int) -> bytes:
        """Return a block, from the store if need be: whoever else wants it waits and finds it."""
        path = self._path(root, shard, block)
        with self._lock(f"block-{int(path.name, 16) % LOCKS:02d}"):
            with contextlib.suppress(FileNotFoundError):
                return path.read_bytes()
            data = fetch_range(root, shard, block * self.block_bytes, self.block_bytes)
            self._keep(path, data)
            return data

    def used_bytes(self) -> int:
        """Return what the folder holds now."""
        return sum(size for _, size, _ in self._entries())

    def _keep(self, path: Path, data: bytes) -> None:
        with self._lock("room"):
            entries = sorted(self._entries())
            used = sum(size for _, size, _ in entries)
            while entries and used + len(data) > self.max_bytes:
                _, size, oldest = entries.pop(0)
                os.unlink(oldest)
                used -= size
            draft = path.with_name(".partial")  # one writer at a time: what a killed one left is written over
            draft.write_bytes(data)
            os.replace(draft, path)

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Yield (time of last use in ns, length, path) of each block."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    found = entry.stat()
                    yield found.st_mtime_ns, found.st_size, entry.path

    def _path(self, root: str, shard: str, block: int) -> Path:
        return Path(self.folder) / hashlib.sha256(f"{self.version}\n{root}/{shard}\n{block}".encode()).hexdigest()

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        folder = Path(self.folder) / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def shard_reader(root: str, loader: LoaderConfig, index_digest: str) -> ShardReader:
    """Return a reader with the configured cache, of which a local root has no need."""
    if _is_local(root):
        return ShardReader(root=root)
    parent = loader.cache_folder or f"{tempfile.gettempdir()}/darkroom-cache-{os.getuid()}"
    cache = BlockCache(
        folder=parent,
        version=index_digest,
        max_bytes=int(loader.cache_gb * 1e9),
        block_bytes=loader.block_mb * 1_000_000,
    )
    return ShardReader(root=root, cache=cache)


def fetch_range(root: str, shard: str, offset: int, num_bytes: int) -> bytes:
    """Return a stretch of a remote shard, shorter where it ends; raises FileNotFoundError."""
    fs, folder, _ = _filesystem(root)
    path = f"{folder}/{shard}"
    try:
        return fs.cat_file(path, start=offset, end=offset + num_bytes)
    except FileNotFoundError:
        raise
    except OSError:
        if fs.info(path)["size"] <= offset:  # S3 refuses a range that starts behind the end
            return b""
        raise


def _is_local(root: str) -> bool:
    return _filesystem(root)[2]


@functools.lru_cache(maxsize=8)
def _filesystem(root: str) -> tuple[Any, str, bool]:
    fs, folder = fsspec.core.url_to_fs(root)
    return fs, folder, "file" in fs.protocol


@functools.lru_cache(maxsize=128)
def _opened(path: str) -> _Opened:
    return _Opened(path)


class _Opened:
    """A descriptor that is closed when nobody needs it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read_into(self, member: Member, buffers: Sequence[bytearray | memoryview]) -> int:
        found = os.preadv(self.descriptor, buffers, member.offset)
        return found if found == member.num_bytes else self._piece_by_piece(member, buffers)

    def _piece_by_piece(self, member: Member, buffers: Sequence[bytearray | memoryview]) -> int:
        """Read as network file systems answer, less at a time than was asked for; return the bytes found."""
        found = 0
        for buffer in buffers:
            rest = memoryview(buffer)
            while len(rest):
                length = os.preadv(self.descriptor, [rest], member.offset + found)
                if not length:
                    return found
                found, rest = found + length, rest[length:]
        return found

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
