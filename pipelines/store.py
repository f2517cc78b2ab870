"""Files under a root: fsspec paths, atomic writes, fragments with receipts, manifests last.

A fragment is made by one task and consists of one or more files. Its receipt is written after
them and says what it was made from (`made_from`), by which attempt, and the size and sha256 of
each file. A fragment counts as done when its receipt fits and its files are there at their size.
The manifest of a table (`_run.json`) names its fragments and is written after all of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = "_run.json"
"""The underscore keeps it out of the way of readers that open every file of a table's folder."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is known of a finished fragment."""

    fragment: str
    attempt: str
    made_from: str
    rows: int
    files: dict[str, dict[str, Any]]
    counts: dict[str, int]

    @property
    def digest(self) -> str:
        """Identity for what is made from this fragment; another attempt has another one."""
        return digest(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file of a fragment that a task has written already."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Root:
    """A folder by fsspec URL; every path below is relative to it, with forward slashes."""

    url: str

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """Without a cache of listings, which would hide what other processes write."""
        return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]

    def path(self, relative: str) -> str:
        return posixpath.join(fsspec.core.url_to_fs(self.url)[1], relative)

    def exists(self, relative: str) -> bool:
        return self.fs.exists(self.path(relative))

    def size(self, relative: str) -> int | None:
        try:
            return int(self.fs.info(self.path(relative))["size"])
        except FileNotFoundError:
            return None

    def read(self, relative: str, offset: int = 0, num_bytes: int | None = None) -> bytes:
        end = None if num_bytes is None else offset + num_bytes
        return self.fs.cat_file(self.path(relative), start=offset, end=end)

    def open(self, relative: str) -> io.BytesIO:
        """Return a whole file as one to read from."""
        return io.BytesIO(self.read(relative))

    def write(self, relative: str, data: bytes, *, durable: bool = True) -> None:
        """Publish a whole file at once: rename on a local disk, one PUT elsewhere.

        What is not `durable` may be lost with the machine, though not with the process.
        """
        path = self.path(relative)
        if not is_local(self.fs):
            self.fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex}"
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync(os.path.dirname(path))

    def write_file(self, relative: str, local: Path) -> None:
        """Publish a finished local file without holding it in memory."""
        path = self.path(relative)
        if not is_local(self.fs):
            self.fs.put_file(str(local), path)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex}"
        shutil.copyfile(local, temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(os.path.dirname(path))

    def read_json(self, relative: str) -> Any | None:
        """Return the parsed file, or None where there is none."""
        try:
            return json.loads(self.read(relative))
        except FileNotFoundError:
            return None

    def write_json(self, relative: str, value: Any) -> None:
        self.write(relative, json.dumps(value, indent=1, sort_keys=True).encode())

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """Return a table, or only those columns of it; raises pa.ArrowInvalid where one is missing."""
        with self.fs.open(self.path(relative), "rb") as file:
            # pyarrow 26.0.1 aborts at interpreter exit where a threaded read has only just ended
            return pq.read_table(file, columns=columns, use_threads=False)

    def remove(self, relative: str, *, recursive: bool = False) -> None:
        if self.exists(relative):
            self.fs.rm(self.path(relative), recursive=recursive)


def scratch_file(ending: str) -> Path:
    """Return an empty local file of its own, which whoever commits it removes."""
    descriptor, name = tempfile.mkstemp(suffix=ending)
    os.close(descriptor)
    return Path(name)


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def digest(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def parquet_bytes(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    repeated = [name for name in rows.column_names if name not in NOT_REPEATED]
    pq.write_table(rows, buffer, compression="zstd", use_dictionary=repeated)
    return buffer.getvalue()


NOT_REPEATED = (
    "uid",
    "cluster_id",
    "survivor_uid",
    "sha256",
    "url",
    "phash64",
    "phash64_turned",
    "pdq256",
    "embedding",
)
"""Columns whose values differ: looking for repeats takes half of the time to write them."""


def table_file(table: str, fragment: str) -> str:
    return f"tables/{table}/{fragment}.parquet"


def commit(
    root: Root,
    table: str,
    fragment: str,
    made_from: str,
    files: Mapping[str, bytes | Path | Written],
    rows: int,
    counts: dict[str, int],
) -> Receipt:
    """Write the fragment's files (bytes, or finished local files), then its receipt."""
    said = {}
    for relative, content in files.items():
        if isinstance(content, Written):
            said[relative] = {"num_bytes": content.num_bytes, "sha256": content.sha256}
        elif isinstance(content, Path):
            root.write_file(relative, content)
            said[relative] = {"num_bytes": content.stat().st_size, "sha256": _file_sha256(content)}
        else:
            root.write(relative, content)
            said[relative] = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    receipt = Receipt(
        fragment=fragment, attempt=uuid.uuid4().hex, made_from=made_from, rows=rows, files=said, counts=counts
    )
    root.write_json(_receipt_file(table, fragment), asdict(receipt))
    return receipt


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_receipt(root: Root, table: str, fragment: str, made_from: str) -> Receipt | None:
    """Return the receipt of a finished fragment that was made from the same; None where it must be made."""
    said = root.read_json(_receipt_file(table, fragment))
    if said is None or said["made_from"] != made_from:
        return None
    if any(root.size(relative) != file["num_bytes"] for relative, file in said["files"].items()):
        return None
    return Receipt(**said)


def publish(root: Root, table: str, receipts: list[Receipt], provenance: dict[str, Any]) -> None:
    """Write the table's manifest and remove fragments that it no longer names."""
    manifest = {
        **provenance,
        "rows": sum(receipt.rows for receipt in receipts),
        "fragments": {r.fragment: {"rows": r.rows, "receipt": r.digest, "files": r.files} for r in receipts},
    }
    before = root.read_json(f"tables/{table}/{MANIFEST}") or {"fragments": {}}
    root.write_json(f"tables/{table}/{MANIFEST}", manifest)
    wanted = {relative for receipt in receipts for relative in receipt.files}
    for fragment, said in [*before["fragments"].items(), *_all_receipts(root, table).items()]:
        for relative in said["files"]:
            if relative not in wanted:
                root.remove(relative)
        if fragment not in manifest["fragments"]:
            root.remove(_receipt_file(table, fragment))


def _all_receipts(root: Root, table: str) -> dict[str, Any]:
    """Return the receipts of every finished fragment by name, those of killed runs with other settings too."""
    found = [json.loads(root.fs.cat_file(path)) for path in root.fs.glob(root.path(_receipt_file(table, "*")))]
    return {receipt["fragment"]: receipt for receipt in found}


class MissingTable(FileNotFoundError):
    """A step needs a table that is not there yet."""


def manifest(root: Root, table: str) -> dict[str, Any]:
    """Return a table's manifest; raises MissingTable naming the step to run."""
    found = root.read_json(f"tables/{table}/{MANIFEST}")
    if found is None:
        raise MissingTable(f"table {table} is not under {root.url}: run python pipelines/{MADE_BY[table]}.py first")
    return found


def fragments(root: Root, table: str) -> dict[str, str]:
    """Return the receipts' digests of a published table by fragment, in order."""
    return {name: said["receipt"] for name, said in sorted(manifest(root, table)["fragments"].items())}


MADE_BY = {
    "urls": "ingest",
    "listings": "ingest",
    "samples": "ingest",
    "caption_counts": "captions",
    "captions": "captions",
    "features": "embed",
    "duplicates": "dedup",
    "scores": "score",
    "selection": "selection",
    "plan": "export",
    "shards": "export",
    "latents": "encode",
}


def _receipt_file(table: str, fragment: str) -> str:
    return f"tables/{table}/_receipts/{fragment}.json"


def _sync(path: str) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
