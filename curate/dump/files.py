"""The files of a dump, each with what tells one version of it from another, and which captions they hold."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import fsspec

from curate import sample
from curate.bad_input import BadInput
from curate.config import DumpSource
from curate.dump.captions import Captions, read_captions
from curate.dump.entries import Blob, Entry, Member, pair
from curate.dump.zips import UnreadableBlob, index_zip, unzipped
from curate.tar import index_tar

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names of the captions files of a Hugging Face imagefolder."""
STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""Under what names file systems tell a file's version: a hash where there is one, or else a time."""
READ_AHEAD_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class DumpFile:
    """A file below the dump's folder."""

    path: str
    num_bytes: int
    version: str


def place(source: DumpSource) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system and the folder in it; `folder` may name a file in it instead."""
    fs, path = fsspec.core.url_to_fs(source.folder, use_listings_cache=False)
    return (fs, posixpath.dirname(path)) if fs.isfile(path) else (fs, path)


def find_files(source: DumpSource) -> list[DumpFile]:
    """Return every file of the dump by path; raises ValueError for a folder that is not there."""
    fs, path = fsspec.core.url_to_fs(source.folder, use_listings_cache=False)
    if fs.isfile(path):
        return [_file(fs, posixpath.dirname(path), path, fs.info(path))]
    if not fs.isdir(path):
        raise BadInput(f"dumps.{source.name}.folder = {source.folder}: no such folder")
    return sorted(
        (_file(fs, path, name, info) for name, info in fs.find(path, detail=True).items()), key=lambda file: file.path
    )


def _file(fs: fsspec.AbstractFileSystem, folder: str, path: str, info: dict[str, Any]) -> DumpFile:
    stamp = next((str(info[name]) for name in STAMPS if info.get(name)), None) or fs.ukey(path)
    num_bytes = int(info.get("size") or 0)
    return DumpFile(path=path[len(folder) :].lstrip("/"), num_bytes=num_bytes, version=f"{num_bytes} {stamp}")


def list_folder(source: DumpSource, files: Iterable[DumpFile]) -> list[Entry]:
    """Return the entries of a folder by key; raises ValueError for captions files that cannot be used."""
    members = [Member(name=file.path, blob=_whole(file)) for file in files]
    captions = None
    if source.kind == "imagefolder":
        captions = _metadata(source, [m.name for m in members if posixpath.basename(m.name) in METADATA])
    elif source.captions is not None:
        captions = Captions()
        _read_beside(source, source.captions, captions)
    return sorted(pair(members, captions, source), key=lambda entry: entry.key)


def _whole(file: DumpFile) -> Blob:
    return Blob(path=file.path, num_bytes=file.num_bytes)


def _metadata(source: DumpSource, paths: list[str]) -> Captions:
    if not paths:
        raise BadInput(f"dumps.{source.name}.kind = imagefolder: no {', '.join(METADATA)} in {source.folder}")
    found = Captions()
    for path in paths:
        _read_beside(source, path, found, posixpath.dirname(path))
    return found


def _read_beside(source: DumpSource, path: str, into: Captions, below: str = "") -> None:
    fs, folder = place(source)
    try:
        with fs.open(posixpath.join(folder, path), "rb") as file:
            read_captions(file, path, source, f"dumps.{source.name}.captions = {path}", into, below)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadInput(f"dumps.{source.name}.captions = {path}: not in {source.folder}") from error


def list_archive(source: DumpSource, archive: DumpFile) -> list[Entry]:
    """Return the entries of a tar or zip in its own order; raises ValueError as `list_folder` does."""
    fs, folder = place(source)
    with fs.open(posixpath.join(folder, archive.path), "rb", block_size=READ_AHEAD_BYTES) as file:
        found = list(index_zip(file, archive.path)) if source.kind == "zip" else _tar_members(file, archive)
        members = [_safe(member) for member in found]
        captions = None if source.captions is None else _captions_inside(file, members, source, archive)
    broken = [_broken(archive, member, number) for number, member in enumerate(members) if not member.name]
    return [*pair([member for member in members if member.name], captions, source, archive.path), *broken]


def _tar_members(file: Any, archive: DumpFile) -> list[Member]:
    if archive.path.lower().endswith((".gz", ".tgz")):
        return [Member(name="", status=sample.DAMAGED, error="a compressed tar has no offsets: unpack it to .tar")]
    members = []
    for found in index_tar(file, archive.num_bytes):
        blob = Blob(path=archive.path, offset=found.offset, num_bytes=found.num_bytes)
        members.append(
            Member(name=found.name, blob=None if found.status else blob, status=found.status, error=found.error)
        )
    return members


def _broken(archive: DumpFile, member: Member, number: int) -> Entry:
    """Return what is wrong with the archive as a whole."""
    return Entry(key=f"{archive.path}\0{number}", status=member.status, error=member.error)


def _safe(member: Member) -> Member:
    """Return the member by its path inside the archive; one that would lead out of it as a status."""
    if not member.name and member.status is None:
        return Member(name="", status=sample.UNSAFE_PATH, error="a member without a name")
    parts = member.name.replace("\\", "/").split("/")
    if ".." in parts or (member.name and (parts[0] == "" or parts[0].endswith(":"))):
        return Member(name=member.name, status=sample.UNSAFE_PATH, error="its path leads out of the archive")
    name = posixpath.normpath(member.name) if member.name else ""
    return Member(name=name.replace("\0", "\ufffd"), blob=member.blob, status=member.status, error=member.error)


def _captions_inside(file: Any, members: list[Member], source: DumpSource, archive: DumpFile) -> Captions:
    name = posixpath.normpath(str(source.captions))
    where = f"dumps.{source.name}.captions = {source.captions}"
    blobs = [member.blob for member in members if member.name == name and member.blob]
    captions = Captions()
    for blob in blobs:
        if blob.method is not None:
            try:
                data = unzipped(file, blob, blob.num_bytes)
            except UnreadableBlob as error:
                raise BadInput(f"{where} in {archive.path}: {error}") from error
        else:
            file.seek(blob.offset)
            data = file.read(blob.num_bytes)
        read_captions(io.BytesIO(data), name, source, f"{where} in {archive.path}", captions)
    if not blobs and all(member.name for member in members):  # a broken archive may have lost it, and says so itself
        raise BadInput(f"{where}: not in {archive.path}")
    return captions
