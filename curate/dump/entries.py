"""What a listing says of each sample of a folder or archive, and which caption belongs to which image."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate import sample
from curate.config import DumpSource
from curate.dump.captions import Captions

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl")
COPY = "\0"
"""Stands in a key between a name and the number of its repetition; no file's name can hold it."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Where the bytes of an image or of a caption lie: a whole file, or a part of an archive."""

    path: str
    """File below the dump's folder."""
    num_bytes: int
    offset: int | None = None
    """First byte of the data in a tar, of the local header in a zip; None for a whole file."""
    packed_bytes: int | None = None
    """Length inside a zip."""
    method: int | None = None
    """Compression inside a zip; None elsewhere."""
    crc32: int | None = None


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of a folder or archive by its name there, or the status of what cannot be read."""

    name: str
    blob: Blob | None = None
    status: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image, one caption of it, and where both are; `key` tells it from every other one of the dump."""

    key: str
    caption: str | None = None
    license: str | None = None
    image: Blob | None = None
    text: Blob | None = None
    record: Blob | None = None
    status: str | None = None
    error: str | None = None


BLOB = pa.struct(
    [
        ("path", pa.binary()),
        ("num_bytes", pa.int64()),
        ("offset", pa.int64()),
        ("packed_bytes", pa.int64()),
        ("method", pa.int16()),
        ("crc32", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.binary()),
        ("caption", pa.string()),
        ("license", pa.string()),
        ("image", BLOB),
        ("text", BLOB),
        ("record", BLOB),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
"""Names are bytes: they need not be valid Unicode."""


def name_of(key: str) -> str:
    """Return the path that a key stands for."""
    return key.partition(COPY)[0]


def shown(key: str) -> str:
    """Return the path that a key stands for, as valid Unicode."""
    return sample.storable(name_of(key))


def pair(members: Iterable[Member], captions: Captions | None, source: DumpSource, inside: str = "") -> list[Entry]:
    """Return an entry for each image with each of its captions, for each caption without image, for each refusal.

    `members` come in the order of the archive, and the entries do, too. `captions` None takes those
    beside the images. `inside` is the archive's path.
    """
    members = list(members)
    named: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        named[member.name].append(member)
    prefix = f"{inside}/" if inside else ""
    if captions is None:
        return list(_with_sidecars(members, _Sidecars(named, source, bool(inside)), prefix))
    return list(_with_captions(members, captions, prefix))


def _with_captions(members: list[Member], captions: Captions, prefix: str) -> Iterator[Entry]:
    seen: Counter[str] = Counter()
    for member in members:
        if is_image(member.name) or member.name in captions.of:
            for copy, (caption, license_) in _counted(captions.of.get(member.name, [(None, None)])):
                key = _key(prefix + member.name, seen[member.name], copy)
                yield _entry(key, member, copy, caption=caption, license=license_)
            seen[member.name] += 1
        elif member.status:
            key = _key(prefix + member.name, seen[member.name], 0)
            seen[member.name] += 1
            yield _entry(key, member, 0)
    for name in sorted(captions.of.keys() - seen.keys()):
        for copy, (caption, license_) in _counted(captions.of[name]):
            gone = Member(name=name, status=sample.MISSING_FILE, error="a caption names it, but it is not there")
            yield _entry(_key(prefix + name, 0, copy), gone, copy, caption=caption, license=license_)
    for refused, copy in _numbered(sorted(captions.refused, key=str)):
        unusable = Member(name=refused.name, status=refused.status, error=refused.error)
        key = _key(f"{prefix}{refused.name}{COPY}row", 0, copy)
        yield _entry(key, unusable, copy, caption=refused.caption, license=refused.license)


def _with_sidecars(members: list[Member], beside: _Sidecars, prefix: str) -> Iterator[Entry]:
    seen: Counter[str] = Counter()
    for member in members:
        if is_image(member.name):
            text, record = beside.of(member.name, seen[member.name])
            yield _entry(_key(prefix + member.name, seen[member.name], 0), member, 0, text=text, record=record)
            seen[member.name] += 1
        elif member.status:
            yield _entry(_key(prefix + member.name, seen[member.name], 0), member, 0)
            seen[member.name] += 1
    for name, texts, records in beside.unused():
        lone = Member(name=name, status=sample.MISSING_FILE, error="a caption without its image")
        for copy in range(max(len(texts), len(records))):
            blobs = {"text": texts[copy] if texts else None, "record": records[copy] if records else None}
            yield _entry(_key(prefix + name, seen[name] + copy, 0), lone, 0, **blobs)


def _entry(key: str, member: Member, copy: int, **said: Any) -> Entry:
    if copy and member.status is None:
        error = "the same file with the same caption is listed before"
        return Entry(key=key, status=sample.REPEATED, error=error, **said)
    return Entry(key=key, image=member.blob, status=member.status, error=member.error, **said)


def _key(name: str, number: int, copy: int) -> str:
    return name + (f"{COPY}{number}" if number else "") + (f"{COPY}={copy}" if copy else "")


def _counted(pairs: list[tuple[str | None, str | None]]) -> Iterator[tuple[int, tuple[str | None, str | None]]]:
    """Yield each caption and licence with how often the caption came before, in an order of their own."""
    seen: Counter[str | None] = Counter()
    for pair_ in sorted(pairs, key=lambda said: (said[0] or "", said[1] or "")):
        yield seen[pair_[0]], pair_
        seen[pair_[0]] += 1


def _numbered(refused: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    seen: Counter[tuple] = Counter()
    for row in refused:
        yield row, seen[(row.name, row.caption)]
        seen[(row.name, row.caption)] += 1


class _Sidecars:
    """The captions beside images: of `a.b.jpg` it is `a.b.txt`, or WebDataset's `a.txt`; .json likewise."""

    def __init__(self, named: dict[str, list[Member]], source: DumpSource, in_archive: bool) -> None:
        self._texts = _readable(named, ".txt")
        self._records = _readable(named, ".json")
        self._wants_license = source.license_column is not None
        self._lone_records = in_archive or source.sidecar == "json"
        self._used: set[str] = set()
        if source.sidecar == "json":
            self._texts = {}
        self._only_texts = source.sidecar == "txt"

    def of(self, name: str, number: int) -> tuple[Blob | None, Blob | None]:
        """Return the .txt and the .json that are to be read for the image."""
        text = self._find(self._texts, name, ".txt", number)
        record = self._find(self._records, name, ".json", number)
        needed = self._wants_license or (text is None and not self._only_texts)
        return text, record if needed else None

    def _find(self, among: dict[str, list[Blob]], name: str, ending: str, number: int) -> Blob | None:
        folder, base = posixpath.split(name)
        for stem in (posixpath.splitext(base)[0], base.partition(".")[0]):
            found = posixpath.join(folder, stem) + ending
            if among.get(found):
                self._used.add(found)
                return among[found][min(number, len(among[found]) - 1)]
        return None

    def unused(self) -> Iterator[tuple[str, list[Blob], list[Blob]]]:
        """Yield what belongs to no image: name, its .txt blobs, its .json blobs."""
        texts = sorted(self._texts.keys() - self._used)
        for name in texts:
            yield name, self._texts[name], []
        if not self._lone_records or self._only_texts:
            return
        for name in sorted(self._records.keys() - self._used):
            if posixpath.splitext(name)[0] + ".txt" not in texts:
                yield name, [], self._records[name]


def _readable(named: dict[str, list[Member]], ending: str) -> dict[str, list[Blob]]:
    """Return the blobs by name, the ending in lower case."""
    found: dict[str, list[Blob]] = defaultdict(list)
    for name, members in named.items():
        if name.lower().endswith(ending):
            found[name[: -len(ending)] + ending] += [member.blob for member in members if member.blob]
    return {name: blobs for name, blobs in found.items() if blobs}


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def to_table(entries: Sequence[Entry]) -> pa.Table:
    """Return the entries as rows of a listing."""
    return pa.Table.from_pylist([_record(entry) for entry in entries], schema=SCHEMA)


def from_table(listing: pa.Table) -> Iterator[Entry]:
    for row in listing.to_pylist():
        blobs = {name: _blob(row.pop(name)) for name in ("image", "text", "record")}
        yield Entry(**row | blobs | {"key": row["key"].decode("utf-8", "surrogatepass")})


def _record(entry: Entry) -> dict[str, Any]:
    # vars, not asdict, which copies each value and takes most of the time to list a tar
    error = None if entry.error is None else sample.storable(entry.error)
    blobs = {name: _blob_record(getattr(entry, name)) for name in ("image", "text", "record")}
    return vars(entry) | blobs | {"key": entry.key.encode("utf-8", "surrogatepass"), "error": error}


def _blob_record(blob: Blob | None) -> dict[str, Any] | None:
    return None if blob is None else vars(blob) | {"path": blob.path.encode("utf-8", "surrogatepass")}


def _blob(said: dict[str, Any] | None) -> Blob | None:
    return None if said is None else Blob(**said | {"path": said["path"].decode("utf-8", "surrogatepass")})
