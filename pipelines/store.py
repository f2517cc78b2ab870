"""Files under a root: fsspec paths, atomic writes, fragments with receipts, manifests last.

A fragment is made by one task and consists of one or more files. Its receipt is written after
them and says what it was made from (`made_from`), by which attempt, and the size and sha256 of
each file. A fragment counts as done when its receipt fits and its files are there at their size.
The manifest of a table (`_run.json`) names its fragments and is written after all of them.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import mmap
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from curate.bad_input import BadInput
from schemas.tables import check_known, check_version, version_of

MANIFEST = "_run.json"
"""The underscore keeps it out of the way of readers that open every file of a table's folder."""
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}$")
"""The name of a file that is not finished."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is known of a finished fragment."""

    fragment: str
    attempt: str
    made_from: str
    rows: int
    files: dict[str, dict[str, Any]]
    counts: dict[str, int]
    version: int | None = None
    """Version of the table's schema; null where the table has none."""
    identity: str | None = None
    """The digest to keep where rows were taken out later: what was made from the fragment is still right."""

    @property
    def digest(self) -> str:
        """Identity for what is made from this fragment; another attempt has another one."""
        said = asdict(self)
        del said["version"]  # receipts of before had none, and what was made from them is still right
        return said.pop("identity") or digest(said)


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
        """Return a file's bytes, or `num_bytes` of them from `offset` on."""
        if offset == 0 and num_bytes is None:
            return self.fs.cat_file(self.path(relative))  # S3 refuses any range of an empty file
        end = None if num_bytes is None else offset + num_bytes
        return self.fs.cat_file(self.path(relative), start=offset, end=end)

    def open(self, relative: str) -> io.BytesIO:
        """Return a whole file as one to read from."""
        return io.BytesIO(self.read(relative))

    def write(self, relative: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Publish a whole file at once: rename on a local disk, one PUT elsewhere.

        What is not `durable` may be lost with the machine, though not with the process.
        """
        path = self.path(relative)
        if not is_local(self.fs):
            self.fs.pipe_file(path, bytes(data))
            return
        with self.draft_of(relative, durable=durable) as draft:
            draft.write_bytes(data)

    def write_file(self, relative: str, local: Path) -> None:
        """Publish a finished local file without holding it in memory."""
        path = self.path(relative)
        if not is_local(self.fs):
            self.fs.put_file(str(local), path)
            return
        with self.draft_of(relative) as draft:
            shutil.copyfile(local, draft)

    @contextmanager
    def draft_of(self, relative: str, *, durable: bool = True) -> Iterator[Path]:
        """Give a local file to write, which the block's end publishes; for a local root, it lies beside its place."""
        path = self.path(relative)
        if not is_local(self.fs):
            draft = scratch_file(posixpath.splitext(relative)[1])
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            draft = Path(f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex}")
        try:
            yield draft
            if not is_local(self.fs):
                self.fs.put_file(str(draft), path)
                return
            if durable:
                _sync(str(draft))
            os.replace(draft, path)
            if durable:
                _sync(os.path.dirname(path))
        finally:
            draft.unlink(missing_ok=True)

    def drafts(self, folder: str) -> list[str]:
        """Return what killed processes left unfinished in a folder of a local root and below it."""
        if not is_local(self.fs):
            return []
        found = (f"{at}/{name}" for at, _, names in os.walk(self.path(folder)) for name in names if DRAFT.match(name))
        return sorted(posixpath.relpath(path, self.path("")) for path in found)

    def read_json(self, relative: str) -> Any | None:
        """Return the parsed file, or None where there is none."""
        try:
            return json.loads(self.read(relative))
        except FileNotFoundError:
            return None

    def write_json(self, relative: str, value: Any) -> None:
        self.write(relative, json.dumps(value, indent=1, sort_keys=True).encode())

    def read_into(self, relative: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the file's bytes from `offset` on."""
        path = self.path(relative)
        if not is_local(self.fs):
            buffer[:] = self.fs.cat_file(path, start=offset, end=offset + len(buffer))
            return
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while len(buffer):
                count = file.readinto(buffer)
                if not count:
                    raise EOFError(f"{path}: ends {len(buffer)} bytes too early")
                buffer = buffer[count:]

    def view(self, relative: str) -> memoryview:
        """Return a whole file's bytes, on a local disk without reading them."""
        path = self.path(relative)
        if not is_local(self.fs) or os.path.getsize(path) == 0:
            return memoryview(self.read(relative))
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def read_table(self, relative: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table, or only those columns of it; raises MissingColumn, and NewerTable for a later version's."""
        path = self.path(relative)
        if is_local(self.fs):
            return _read_table(pq.ParquetFile(path, memory_map=True), relative, columns)
        with self.fs.open(path, "rb") as file:
            return _read_table(pq.ParquetFile(file), relative, columns)

    def column_names(self, relative: str) -> list[str]:
        """Return the names of a parquet file's columns."""
        with self.fs.open(self.path(relative), "rb") as file:
            return list(pq.read_schema(file).names)

    def num_rows(self, relative: str) -> int:
        """Return the rows of a parquet file; 0 for a file of another kind."""
        if not relative.endswith(".parquet"):
            return 0
        with self.fs.open(self.path(relative), "rb") as file:
            return int(pq.read_metadata(file).num_rows)

    def glob(self, pattern: str) -> list[str]:
        """Return the paths below the root that fit a pattern, in order; the root's own name is no pattern."""
        return sorted(self.fs.glob(glob.escape(self.path("")) + pattern))

    def remove(self, relative: str, *, recursive: bool = False) -> None:
        if self.exists(relative):
            self.fs.rm(self.path(relative), recursive=recursive)


class MissingColumn(BadInput):
    """A table was written without a column that is needed."""


def _read_table(file: pq.ParquetFile, name: str, columns: Sequence[str] | None) -> pa.Table:
    check_version(file.schema_arrow, name)
    missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
    if missing:
        raise MissingColumn(f"{name}: has no column {missing[0]}: another version made it: remove it and run its step")
    # pyarrow 26.0.1 aborts at interpreter exit where a threaded read has only just ended
    rows = file.read(columns=None if columns is None else list(columns), use_threads=False)
    return rows if columns is None else rows.select(list(columns))


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
    repeated += [f"{field.name}.list.element" for field in rows.schema if field.type == pa.list_(pa.string())]
    as_lengths = {name: "DELTA_LENGTH_BYTE_ARRAY" for name in rows.column_names if name in OF_ONE_LENGTH}
    pq.write_table(rows, buffer, compression="zstd", use_dictionary=repeated, column_encoding=as_lengths or None)
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
    "pdq256_turned",
    "embedding",
)
"""Columns whose values differ: looking for repeats takes half of the time to write them."""
OF_ONE_LENGTH = ("uid", "cluster_id", "survivor_uid")
"""Columns of text that are written faster with their lengths apart."""


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
        fragment=fragment,
        attempt=uuid.uuid4().hex,
        made_from=made_from,
        rows=rows,
        files=said,
        counts=counts,
        version=version_of(table),
    )
    root.write_json(_receipt_file(table, fragment), asdict(receipt))
    return receipt


def read_receipt(root: Root, table: str, fragment: str) -> Receipt | None:
    """Return a fragment's receipt as it is; None without one."""
    said = root.read_json(_receipt_file(table, fragment))
    return None if said is None else Receipt(**said)


def amend(root: Root, table: str, receipt: Receipt) -> None:
    """Say anew what a fragment's files are, and how many rows it has, without a change of its or their identity."""
    files = {name: _said_of(root, name) | {"made_as": made_as(said)} for name, said in receipt.files.items()}
    rows = sum(root.num_rows(name) for name in files if name.startswith(f"tables/{table}/") and "/parts/" not in name)
    amended = replace(receipt, files=files, rows=rows, identity=receipt.digest)
    root.write_json(_receipt_file(table, receipt.fragment), asdict(amended))
    found = root.read_json(f"tables/{table}/{MANIFEST}") or {"fragments": {}}
    if receipt.fragment not in found["fragments"]:
        return
    found["fragments"][receipt.fragment] |= {"rows": rows, "files": files}
    found["rows"] = sum(said["rows"] for said in found["fragments"].values())
    root.write_json(f"tables/{table}/{MANIFEST}", found)


def made_as(file: dict[str, Any]) -> str:
    """Return the sha256 that a file was made with, whatever was taken out of it later."""
    return file.get("made_as", file["sha256"])


def _said_of(root: Root, name: str) -> dict[str, Any]:
    data = root.view(name)
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_receipt(root: Root, table: str, fragment: str, made_from: str) -> Receipt | None:
    """Return the receipt of a finished fragment that was made from the same; None where it must be made.

    Raises NewerTable where a newer version of the program made it.
    """
    said = root.read_json(_receipt_file(table, fragment))
    if said is None:
        return None
    check_known(table, said.get("version"), _receipt_file(table, fragment))
    if said["made_from"] != made_from or said.get("version") not in (None, version_of(table)):
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


def finished_fragments(root: Root, table: str) -> list[str]:
    """Return the fragments that a table names, and those that an unfinished run has made so far, in order."""
    named = set((root.read_json(f"tables/{table}/{MANIFEST}") or {"fragments": {}})["fragments"])
    made = {name for name, said in _all_receipts(root, table).items() if all(map(root.exists, said["files"]))}
    return sorted(named | made)


def _all_receipts(root: Root, table: str) -> dict[str, Any]:
    """Return the receipts of every finished fragment by name, those of killed runs with other settings too."""
    found = [json.loads(root.fs.cat_file(path)) for path in root.glob(_receipt_file(table, "*"))]
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


def check_fragments(root: Root, names: Iterable[str], *tables: str, dry_run: bool) -> None:
    """Raise BadInput, naming the step to run, for a table that has other fragments than samples now has.

    In a dry run a table may have more: the steps before this one would have left them out, but do not write.
    """
    for table in tables:
        files = [file for said in manifest(root, table)["fragments"].values() for file in said["files"]]
        own, wanted = {file for file in files if file.endswith(".parquet")}, {table_file(table, name) for name in names}
        if differing := sorted(wanted - own if dry_run else wanted ^ own):
            raise stale(differing[0])


def stale(file: str) -> BadInput:
    """Return the error for a table's file whose samples are not those that there are now."""
    table = file.split("/")[1]
    return BadInput(f"{file}: samples changed since: run python pipelines/{MADE_BY[table]}.py first")


MADE_BY = {
    "urls": "ingest",
    "fetches": "ingest",
    "listings": "ingest",
    "samples": "ingest",
    "recaptions": "captions",
    "texts": "captions",
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
