"""The index of what was curated before: for each corpus the hashes and embeddings of its survivors.

An entry belongs to one root and keeps its place in the order: a corpus is compared with the entries
before its own. A run of dedup withdraws its entry, writes it anew and publishes it last.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curate import sample
from curate.bad_input import BadInput
from curate.config import CurationConfig
from pipelines.store import MissingColumn, Root, digest, fragments, manifest, parquet_bytes, table_file

PUBLISHED, OWNER = "_entry.json", "_owner.json"
CORPUS_ID = "corpus_id.json"
NOT_KEPT = ("error", "clip_similarity")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The survivors of one corpus."""

    name: str
    digest: str
    files: tuple[str, ...]
    """fsspec URLs."""
    rows: int


def earlier_entries(config: CurationConfig) -> list[Entry]:
    """Return the entries before this root's own, which is given its place; raises ValueError for another model's."""
    if config.dedup.index is None:
        return []
    own, found = own_entry(config), []
    for name in _names(config.dedup.index):
        said = Root(config.dedup.index).read_json(f"{name}/{PUBLISHED}")
        if name < own and said is not None:
            _check_model(config, name, said)
            files = tuple(f"{config.dedup.index.rstrip('/')}/{name}/{file}" for file in said["files"])
            found.append(Entry(name=name, digest=digest(said), files=files, rows=said["rows"]))
    return found


def own_entry(config: CurationConfig) -> str:
    """Return the name of this root's entry, in the order of first use."""
    assert config.dedup.index is not None
    index, owner = Root(config.dedup.index), _corpus_id(Root(config.root))
    names = _names(config.dedup.index)
    for name in names:
        if name.endswith(owner):
            return name
    name = f"{1 + max((int(name[:6]) for name in names), default=0):06d}-{owner}"
    index.write_json(f"{name}/{OWNER}", {"root": config.root})
    return name


def _corpus_id(root: Root) -> str:
    """Return what tells this corpus from every other one, however its root is spelled; made at its first use."""
    said = root.read_json(CORPUS_ID)
    if said is None:
        said = {"id": uuid.uuid4().hex[:16]}
        root.write_json(CORPUS_ID, said)
    return said["id"]


def withdraw_entry(config: CurationConfig) -> None:
    """Take this root's entry back while it is written anew, so that nobody reads half of it."""
    if config.dedup.index is not None:
        Root(config.dedup.index).remove(f"{own_entry(config)}/{PUBLISHED}")


def remove_from_entry(config: CurationConfig, uids: frozenset[str]) -> Iterator[str]:
    """Take these samples out of this root's entry, which stays the same one to corpora that were compared with it."""
    said = Root(config.root).read_json(CORPUS_ID)
    if config.dedup.index is None or said is None:
        return
    index = Root(config.dedup.index)
    for path in index.glob(f"*-{said['id']}/*.parquet"):
        file = "/".join(path.split("/")[-2:])
        rows = index.read_table(file)
        gone = pc.is_in(rows["uid"], value_set=pa.array(sorted(uids), pa.string()))
        if pc.any(gone).as_py():
            index.write(file, parquet_bytes(rows.filter(pc.invert(gone))))
            yield f"dedup.index, {file}: {pc.sum(gone).as_py()} rows"


def _names(index: str) -> list[str]:
    root = Root(index)
    return sorted(path.split("/")[-2] for path in root.glob(f"*/{OWNER}"))


def _model(config: CurationConfig) -> list[str]:
    return manifest(Root(config.root), "features")["models"]


def _check_model(config: CurationConfig, name: str, said: dict) -> None:
    if config.dedup.semantic_eps is not None and said["models"] != _model(config):
        raise BadInput(
            f"dedup.index = {config.dedup.index!r}: entry {name} has embeddings by {said['models']}, this corpus by "
            f"{_model(config)}: embed with one model, or set dedup.semantic_eps: null"
        )


def read_index(file: str, columns: Sequence[str]) -> pa.Table:
    """Return an entry's rows with what dedup compares."""
    folder, _, name = file.rpartition("/")
    try:
        rows = Root(folder).read_table(name, [*columns, "sha256"])
    except FileNotFoundError as error:
        raise BadInput(f"{file}: is gone: bring it back, or remove its folder from the index") from error
    except MissingColumn as error:
        raise BadInput(f"{file}: another version made it: run embed and dedup of its corpus again") from error
    empty = pa.repeat("", len(rows))
    for name in ("source", "url", "caption"):
        rows = rows.append_column(name, empty)
    return rows.append_column("caption_fine", pa.repeat(True, len(rows))).replace_schema_metadata(None)


def write_index(config: CurationConfig, fragment: str, survivors: pa.ChunkedArray) -> None:
    """Write a fragment's survivors to this root's entry."""
    assert config.dedup.index is not None
    root = Root(config.root)
    features = root.read_table(table_file("features", fragment))
    samples = root.read_table(table_file("samples", fragment), ["uid", "sha256"])
    rows = features.drop_columns([name for name in NOT_KEPT if name in features.column_names])
    rows = rows.append_column("sha256", samples["sha256"])
    kept = rows.filter(pc.and_(pc.is_in(rows["uid"], survivors), pc.equal(rows["status"], sample.OK)))
    Root(config.dedup.index).write(f"{own_entry(config)}/{fragment}.parquet", parquet_bytes(kept))


def publish_entry(config: CurationConfig, names: list[str]) -> None:
    """Publish this root's entry for whoever comes after; removes fragments that the corpus no longer has."""
    if config.dedup.index is None:
        return
    index, own, root = Root(config.dedup.index), own_entry(config), Root(config.root)
    made_from = fragments(root, "duplicates")
    said = index.read_json(f"{own}/{PUBLISHED}")
    if said is not None and said["made_from"] == made_from:
        return
    files = [f"{name}.parquet" for name in names]
    for path in index.glob(f"{own}/*.parquet"):
        if path.rpartition("/")[2] not in files:
            index.fs.rm(path)
    rows = manifest(root, "duplicates")["counts"].get("survivors", 0)
    entry = {"files": files, "rows": rows, "models": _model(config), "made_from": made_from}
    index.write(f"{own}/{PUBLISHED}", json.dumps(entry, indent=1).encode())
