"""Tar shards whose bytes depend on nothing but their members, with the offset of each member known."""

from __future__ import annotations

import tarfile
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE


class TarShard:
    """Writes members to an open file, in order, with fixed owner, mode and time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member and return the offset of its first data byte."""
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = len(data), 0, 0o644
        header = member.tobuf(tarfile.USTAR_FORMAT)
        offset = self._position + len(header)
        padding = -len(data) % BLOCK
        self._file.write(header)
        self._file.write(data)
        self._file.write(bytes(padding))
        self._position = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Write the two empty blocks that end an archive."""
        self._file.write(bytes(2 * BLOCK))
