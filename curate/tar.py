"""Tars: shards whose bytes depend on nothing but their members, and an index of other people's tars."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from curate import sample

BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(BLOCK)


class TarShard:
    """Writes members to an open file, in order, with fixed owner, mode and time."""

    END = 2 * BLOCK
    """Bytes that `close` adds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0

    @staticmethod
    def room(data: bytes) -> int:
        """Return the bytes that a member of a usual name and length takes."""
        return BLOCK + len(data) + -len(data) % BLOCK

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._position

    def add(self, name: str, data: bytes) -> int:
        """Append a member and return the offset of its first data byte."""
        header = _header(name, len(data))
        offset = self._position + len(header)
        padding = -len(data) % BLOCK
        self._file.write(header)
        self._file.write(data)
        self._file.write(_ZEROS[:padding])
        self._position = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Write the two empty blocks that end an archive."""
        self._file.write(bytes(self.END))


def _ustar(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = num_bytes, 0, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


_NAMELESS = _ustar("", 0)


def _header(name: str, num_bytes: int) -> bytes:
    """Return tarfile's header, for the usual names and lengths without its detours."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > 100 or num_bytes >= 8**11:
        return _ustar(name, num_bytes)
    header = bytearray(_NAMELESS)
    header[: len(raw)] = raw
    header[124:136] = b"%011o\0" % num_bytes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """A member by name, where its data lies, and why it is not to be read, if so; "" stands for the archive itself."""

    name: str
    offset: int = 0
    num_bytes: int = 0
    status: str | None = None
    error: str | None = None


def index_tar(file: BinaryIO, num_bytes: int) -> Iterator[TarMember]:
    """Yield every member that is no folder, in order, from the headers alone; nothing is extracted.

    Links, devices and sparse files come as a status, as do a cut-off end and bytes that are no
    header. What lies behind such bytes, or behind the end of one of several joined tars, is found.
    """
    end = 0
    try:
        with tarfile.TarFile(
            fileobj=cast(BinaryIO, _Headers(file)), errors="surrogateescape", ignore_zeros=True
        ) as archive:
            while (found := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if found.offset > end and not _is_passed_over(file, end, found.offset):
                    yield _archive(sample.DAMAGED, f"{found.offset - end} bytes at {end} are no header of a tar")
                if found.size < 0 or archive.offset <= found.offset:
                    yield _archive(sample.DAMAGED, f"the header at {found.offset} has a size below zero")
                    return
                end = archive.offset
                if found.offset_data + found.size > num_bytes:
                    error = f"the archive ends after {max(num_bytes - found.offset_data, 0)} of {found.size} bytes"
                    yield TarMember(name=found.name, status=sample.TRUNCATED, error=error)
                    break
                if not found.isdir():
                    yield _member(found)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        yield _archive(sample.DAMAGED, f"no header of a tar at {end}: {error}")
        return
    if end + BLOCK > num_bytes or not _is_zero(file, end, end + BLOCK):
        yield _archive(sample.TRUNCATED, f"no end of archive after byte {min(end, num_bytes)}: members may be missing")


def _member(found: tarfile.TarInfo) -> TarMember:
    if found.isreg() and not found.issparse():
        return TarMember(name=found.name, offset=found.offset_data, num_bytes=found.size)
    if found.issym() or found.islnk():
        return TarMember(name=found.name, status=sample.UNSAFE_PATH, error=f"a link to {found.linkname}")
    if found.issparse():
        return TarMember(name=found.name, status=sample.DAMAGED, error="a sparse file")
    return TarMember(name=found.name, status=sample.UNSAFE_PATH, error="a device, a pipe or the like")


def _archive(status: str, error: str) -> TarMember:
    return TarMember(name="", status=status, error=error)


def _is_passed_over(file: BinaryIO, first: int, last: int) -> bool:
    """Tell whether nothing but empty blocks and pax global headers, which speak of no member, is in between."""
    while (first := _first_filled(file, first, last)) < last:
        file.seek(first)
        try:
            header = tarfile.TarInfo.frombuf(file.read(BLOCK), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            return False
        if header.type != tarfile.XGLTYPE:
            return False
        first += BLOCK + -(-header.size // BLOCK) * BLOCK
    return True


def _is_zero(file: BinaryIO, first: int, last: int) -> bool:
    """Tell whether the blocks in between are empty, as behind the end of a tar."""
    return _first_filled(file, first, last) == last


def _first_filled(file: BinaryIO, first: int, last: int) -> int:
    """Return where the first block begins that is not empty, or not there; `last` if there is none."""
    file.seek(first)
    while first < last:
        piece = file.read(min(last - first, 1 << 20))
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros == len(piece) > 0:
            first += len(piece)
        else:
            return first + zeros // BLOCK * BLOCK
    return last


class _Headers:
    """A file that gives tarfile nothing longer than a header: a hostile length asks for everything, or goes back."""

    LONGEST = 1 << 20

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= self.LONGEST:
            raise tarfile.ReadError(f"a header of {num_bytes} bytes")
        return self._file.read(num_bytes)
