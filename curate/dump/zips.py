"""Zips: the members by the central directory, or by their own headers where it is cut off, and their bytes."""

from __future__ import annotations

import bz2
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from curate import sample
from curate.dump.entries import Blob, Member

HEADER = struct.Struct("<4s2xHHxxxx3L2H")
"""A member's own header: signature, flags, method, crc32, packed and unpacked length, lengths of name and extra."""
SIGNATURE = b"PK\3\4"
ENCRYPTED, SIZES_BEHIND, UTF8 = 0x1, 0x8, 0x800
WHOLE_16_BITS, WHOLE_32_BITS = 0xFFFF, 0xFFFFFFFF
LONGEST_END = 22 + 0xFFFF
"""Length of what ends a zip, with the longest comment."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
PIECE = 1 << 20


class UnreadableBlob(ValueError):
    """Bytes that cannot be had; `status` is the class of the reason."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def index_zip(file: BinaryIO, path: str) -> Iterator[Member]:
    """Yield every member that is no folder by offset; encrypted ones, links and what cannot be read as a status."""
    try:
        infos = sorted(_directory(file), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        yield Member(name="", status=sample.DAMAGED, error=f"no central directory, members by their headers: {error}")
        yield from _by_headers(file, path)
        return
    end = 0
    for info in infos:
        overlaps, end = info.header_offset < end, info.header_offset + HEADER.size + info.compress_size
        blob = Blob(
            path=path,
            offset=info.header_offset,
            num_bytes=info.file_size,
            packed_bytes=info.compress_size,
            method=info.compress_type,
            crc32=info.CRC,
        )
        if overlaps:
            yield Member(name=info.filename, status=sample.DAMAGED, error="it shares its bytes with another member")
        elif not info.filename.endswith("/"):
            yield _member(info.filename, blob, info.flag_bits, info.external_attr >> 16)


def _directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Return the central directory; raises BadZipFile where its members are not as many, or not where, it is said."""
    infos = zipfile.ZipFile(file).infolist()
    file.seek(max(file.seek(0, 2) - LONGEST_END, 0))
    tail = file.read()
    (count,) = struct.unpack_from("<H", tail, tail.rindex(b"PK\5\6") + 10)
    if count not in (len(infos), WHOLE_16_BITS):  # a zip of 65,535 members and more says their number elsewhere
        raise zipfile.BadZipFile(f"{len(infos)} members, the end of the archive says {count}")
    first = min((info.header_offset for info in infos), default=None)
    if first is not None and (first < 0 or _header(file, first) is None):
        raise zipfile.BadZipFile(f"no member at {first}")
    return infos


def _member(name: str, blob: Blob, flags: int, mode: int = 0) -> Member:
    if flags & ENCRYPTED:
        return Member(name=name, status=sample.ENCRYPTED, error="the member is encrypted")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return Member(name=name, status=sample.UNSAFE_PATH, error="a link, a device or the like")
    if blob.method not in METHODS:
        return Member(name=name, status=sample.DAMAGED, error=f"compression method {blob.method} is not read")
    return Member(name=name, blob=blob)


def _by_headers(file: BinaryIO, path: str) -> Iterator[Member]:
    """Yield the members of a zip without a central directory, up to the first one that is not whole."""
    num_bytes, offset = file.seek(0, 2), 0
    while (found := _header(file, offset)) is not None:
        name, flags, method, crc32, packed, unpacked, data_offset = found
        if flags & SIZES_BEHIND and method == zipfile.ZIP_DEFLATED and not flags & ENCRYPTED:
            crc32, packed, unpacked = _measured(file, data_offset)
        elif flags & SIZES_BEHIND and not packed:
            yield Member(name=name, status=sample.TRUNCATED, error="its length is only in the lost central directory")
            return
        end = data_offset + packed
        if packed < 0 or end > num_bytes:
            yield Member(name=name, status=sample.TRUNCATED, error="the archive ends within the member")
            return
        blob = Blob(
            path=path,
            offset=offset,
            num_bytes=unpacked,
            packed_bytes=packed,
            method=method,
            crc32=crc32,
        )
        if not name.endswith("/"):
            yield _member(name, blob, flags)
        offset = end + (_descriptor_bytes(file, end, packed) if flags & SIZES_BEHIND else 0)


def _header(file: BinaryIO, offset: int) -> tuple[str, int, int, int, int, int, int] | None:
    file.seek(offset)
    head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(SIGNATURE):
        return None
    _, flags, method, crc32, packed, unpacked, name_bytes, extra_bytes = HEADER.unpack(head)
    raw, extra = file.read(name_bytes), file.read(extra_bytes)
    name = raw.decode("utf-8", "surrogateescape") if flags & UTF8 else raw.decode("cp437")
    if WHOLE_32_BITS in (packed, unpacked) and len(extra) >= 20 and extra[:2] == b"\1\0":
        unpacked, packed = struct.unpack_from("<QQ", extra, 4)
    return name, flags, method, crc32, packed, unpacked, offset + HEADER.size + name_bytes + extra_bytes


def _measured(file: BinaryIO, offset: int) -> tuple[int, int, int]:
    """Return crc32, packed and unpacked length of a deflated member that ends where its stream ends; -1 where cut."""
    file.seek(offset)
    inflater, crc32, taken, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0, 0
    while not inflater.eof:
        piece = inflater.unconsumed_tail or file.read(PIECE)
        if not piece:
            return 0, -1, 0
        taken += 0 if inflater.unconsumed_tail else len(piece)
        try:
            part = inflater.decompress(piece, PIECE)
        except zlib.error:
            return 0, -1, 0
        crc32, unpacked = zlib.crc32(part, crc32), unpacked + len(part)
    return crc32, taken - len(inflater.unused_data), unpacked


def _descriptor_bytes(file: BinaryIO, offset: int, packed: int) -> int:
    """Return the length of the lengths behind a member: a signature, or none, and 4 or 8 bytes for each length."""
    file.seek(offset)
    said = file.read(24)
    start = 4 if said[:4] == b"PK\7\x08" else 0
    is_wide = (
        said[start + 4 : start + 12] == packed.to_bytes(8, "little") and said[start + 12 : start + 16] != SIGNATURE
    )
    return start + (20 if is_wide else 12)


def unzipped(file: BinaryIO, blob: Blob, most_bytes: int) -> bytes:
    """Return a member's bytes; raises UnreadableBlob for those that are not what the archive says of them."""
    assert blob.offset is not None and blob.packed_bytes is not None
    found = _header(file, blob.offset)
    if found is None:
        raise UnreadableBlob(sample.DAMAGED, "no header of a zip's member where the archive says")
    if blob.packed_bytes > most_bytes + PIECE:
        raise UnreadableBlob(sample.TOO_LARGE, f"{blob.packed_bytes} packed bytes")
    file.seek(found[-1])
    packed = file.read(blob.packed_bytes)
    if len(packed) < blob.packed_bytes:
        raise UnreadableBlob(sample.TRUNCATED, "the archive ends within the member")
    data = _unpacked(packed, blob)
    if len(data) != blob.num_bytes or zlib.crc32(data) != blob.crc32:
        raise UnreadableBlob(sample.DAMAGED, "length or crc32 differ from what the archive says")
    return data


def _unpacked(packed: bytes, blob: Blob) -> bytes:
    """Return at most one byte more than the archive says."""
    if blob.method == zipfile.ZIP_STORED:
        return packed
    try:
        if blob.method == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor().decompress(packed, blob.num_bytes + 1)
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, blob.num_bytes + 1)
    except (zlib.error, OSError, EOFError) as error:
        raise UnreadableBlob(sample.DAMAGED, f"{type(error).__name__}: {error}") from error
