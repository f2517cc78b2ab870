"""Training-mining assertions of C2PA and CAWG inside JPEG, PNG and WebP files. Signatures are not verified.

The manifest store is JUMBF (ISO/IEC 19566-5): in APP11 segments of a JPEG, the caBX chunk of a PNG,
the C2PA chunk of a WebP. Whoever writes a refusal unsigned means it as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import cbor2

from curate.sample import storable

LABELS = ("c2pa.training-mining", "cawg.training-mining")
TRAINING = ("ai_training", "ai_generative_training", "data_mining")
"""Entries that concern training; the fourth, ai_inference, does not."""
MOST_DEPTH = 16
MOST_ASSERTION_BYTES = 65_536


def training_mining(data: bytes) -> dict[str, str]:
    """Return what the file's assertions say of each use (`allowed`, `notAllowed`, `constrained`); {} without any.

    An assertion that cannot be read gives {"assertion": "unreadable"}; the strictest of several counts.
    """
    if b"jumb" not in data:
        return {}
    said: dict[str, str] = {}
    for label, content in _assertions(_manifest_store(data)):
        if label.startswith(LABELS):
            for use, answer in _entries(content).items():
                said[use] = answer if said.get(use, "allowed") == "allowed" else said[use]
    return said


def opt_out(said: dict[str, str]) -> str | None:
    """Return the first use that is not allowed and concerns training; one with constraints is not allowed."""
    refused = (use for use, answer in said.items() if answer != "allowed" and use in (*TRAINING, "assertion"))
    return next(refused, None)


def _entries(content: Any) -> dict[str, str]:
    try:
        said = {str(name): str(entry["use"]) for name, entry in content["entries"].items()}
    except (TypeError, KeyError, AttributeError, ValueError):  # ValueError: a number of thousands of digits
        return {"assertion": "unreadable"}
    return {storable(name).partition(".")[2]: storable(answer) for name, answer in said.items()}


def _manifest_store(data: bytes) -> bytes:
    if data.startswith(b"\xff\xd8"):
        return b"".join(_app11(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"".join(_chunks(data, 8, b"caBX", "big", name_first=False))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return b"".join(_chunks(data, 12, b"C2PA", "little", name_first=True))
    return b""


def _app11(data: bytes) -> Iterator[bytes]:
    """Yield the JUMBF bytes of a JPEG's APP11 segments; those that go on repeat the box header (ISO/IEC 18477-3)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + size]
        if data[at + 1] == 0xEB and segment[:2] == b"JP":
            is_first = int.from_bytes(segment[4:8], "big") == 1
            header = 16 if segment[8:12] == b"\0\0\0\1" else 8
            yield segment[8 if is_first else 8 + header :]
        at += 2 + max(size, 2)


def _chunks(data: bytes, at: int, wanted: bytes, order: Any, *, name_first: bool) -> Iterator[bytes]:
    """Yield the chunks of that name: PNG has size, name, content, checksum; RIFF name, size, content, padding."""
    while at + 8 <= len(data):
        size_at, name_at = (at + 4, at) if name_first else (at, at + 4)
        size = int.from_bytes(data[size_at : size_at + 4], order)
        if data[name_at : name_at + 4] == wanted:
            yield data[at + 8 : at + 8 + size]
        at += 8 + size + (size % 2 if name_first else 4)


def _assertions(store: bytes, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield label and content of every labelled box with CBOR or JSON."""
    label = ""
    for kind, content in _boxes(store):
        if kind == b"jumd" and len(content) > 17 and content[16] & 2:
            label = content[17:].partition(b"\0")[0].decode("utf-8", "replace")
        elif kind == b"jumb" and depth < MOST_DEPTH:
            yield from _assertions(content, depth + 1)
        elif kind in (b"cbor", b"json") and label.startswith(LABELS):
            yield label, _parsed(kind, content)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or len(data) - at
        if size < header:
            return
        yield data[at + 4 : at + 8], data[at + header : at + size]
        at += size


def _parsed(kind: bytes, content: bytes) -> Any:
    if len(content) > MOST_ASSERTION_BYTES:
        return None
    try:
        return cbor2.loads(content) if kind == b"cbor" else json.loads(content)
    except (cbor2.CBORDecodeError, ValueError, RecursionError):
        return None
