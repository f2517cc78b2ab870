"""TensorFlow's checkpoint files, read without TensorFlow: names, shapes and values of float variables."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from curate.bad_input import BadInput

_MAGIC = 0xDB4775248B80FB57  # the last eight bytes of a table (tensorflow/core/lib/io/format.h)
_FLOAT = 1  # DT_FLOAT
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class DamagedCheckpoint(BadInput):
    """The file is not a checkpoint of one shard as TensorFlow writes it."""


def read_saved_model(path: Path) -> dict[str, np.ndarray]:
    """Return the float variables, by name, of a zipped SavedModel; raises DamagedCheckpoint."""
    with zipfile.ZipFile(path) as archive:
        named = {name.rsplit("/", 1)[-1]: name for name in archive.namelist() if "/variables/" in f"/{name}"}
        try:
            index, data = named["variables.index"], named["variables.data-00000-of-00001"]
        except KeyError as error:
            raise DamagedCheckpoint(f"{path.name}: has no {error.args[0]}: not a SavedModel of one shard") from error
        return read_checkpoint(archive.read(index), archive.read(data), path.name)


def read_checkpoint(index: bytes, data: bytes, where: str) -> dict[str, np.ndarray]:
    """Return the float variables of a checkpoint's two files; optimizer and table entries are left out."""
    try:
        entries = {key.decode(): _entry(value) for key, value in _records(index, where) if key}
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise DamagedCheckpoint(f"{where}: the index does not parse: {error}") from error
    found = {}
    for name, (dtype, shape, offset, size) in entries.items():
        if dtype != _FLOAT or not name.endswith(_SUFFIX):
            continue
        if offset + size > len(data) or size != 4 * int(np.prod(shape)):
            raise DamagedCheckpoint(f"{where}: {name} does not lie within the data")
        values = np.frombuffer(data, "<f4", size // 4, offset)
        found[name.removesuffix(_SUFFIX)] = values.reshape(shape)
    return found


def _records(index: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a table: a footer leads to the index block, and that to the data blocks."""
    if len(index) < 48 or struct.unpack("<Q", index[-8:])[0] != _MAGIC:
        raise DamagedCheckpoint(f"{where}: the index is not a TensorFlow table")
    footer = index[-48:]
    _, at = _handle(footer, 0)
    blocks, _ = _handle(footer, at)
    for _, said in _block(index, blocks, where):
        yield from _block(index, _handle(said, 0)[0], where)


def _block(index: bytes, handle: tuple[int, int], where: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield a block's records; each key says how much of the key before it it shares."""
    offset, size = handle
    if index[offset + size] != 0:
        raise DamagedCheckpoint(f"{where}: the index is compressed")
    block = index[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _entry(message: bytes) -> tuple[int, tuple[int, ...], int, int]:
    """Return (dtype, shape, offset, size) of a BundleEntryProto (tensor_bundle.proto)."""
    numbers, shape = {1: 0, 4: 0, 5: 0}, []
    for field, value in _fields(message):
        if field == 2 and isinstance(value, bytes):
            for _, dim in _fields(value):
                shape.append(next((n for f, n in _fields(dim) if f == 1), 0) if isinstance(dim, bytes) else 0)
        elif isinstance(value, int):
            numbers[field] = value
    return numbers[1], tuple(int(n) for n in shape if isinstance(n, int)), numbers[4], numbers[5]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        length, at = (4, at) if tag & 7 == 5 else (8, at) if tag & 7 == 1 else _varint(message, at)
        yield tag >> 3, message[at : at + length]
        at += length


def _handle(block: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(block, at)
    size, at = _varint(block, at)
    return (offset, size), at


def _varint(block: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = block[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
        shift += 7
