"""The index of what was curated before: for each corpus the hashes and embeddings of its survivors.

An entry belongs to one root and keeps its place in the order: a corpus is compared with the entries
before its own. A run of dedup withdraws its entry, writes it anew and publishes it last.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate import sample
from curate.bad_input import BadInput
from curate.command_line import heed_ctrl_c
from curate.config import CurationConfig
from curate.takedown import among
from pipelines.progress import Progress
from pipelines.runner import say
from pipelines.store import MANIFEST, MissingColumn, Root, digest, fragments, manifest, parquet_bytes, table_file

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
    """Return the entries before this root's own, all where it has none yet; raises ValueError for another model's."""
    if config.dedup.index is None:
        return []
    own, found = _find_own(config), []
    for name in _names(config.dedup.index):
        said = Root(config.dedup.index).read_json(f"{name}/{PUBLISHED}")
        if (own is None or name < own) and said is not None:
            _check_model(config, name, said)
            files = tuple(f"{config.dedup.index.rstrip('/')}/{name}/{file}" for file in said["files"])
            found.append(Entry(name=name, digest=digest(said), files=files, rows=said["rows"]))
    return found


def own_entry(config: CurationConfig) -> str:
    """Return the name of this root's entry, in the order of first use, at which it gets its place."""
    assert config.dedup.index is not None
    found, root = _find_own(config), Root(config.root)
    if found is not None:
        return found
    said = root.read_json(CORPUS_ID)
    if said is None:
        said = {"id": uuid.uuid4().hex[:16]}
        root.write_json(CORPUS_ID, said)
    number = 1 + max((int(name[:6]) for name in _names(config.dedup.index)), default=0)
    name = f"{number:06d}-{said['id']}"
    Root(config.dedup.index).write_json(f"{name}/{OWNER}", {"root": config.root})
    return name


def _find_own(config: CurationConfig) -> str | None:
    """Return the name of this root's entry, however the root is spelled; None before its first use. Writes nothing."""
    assert config.dedup.index is not None
    said = Root(config.root).read_json(CORPUS_ID)
    if said is None:
        return None
    return next((name for name in _names(config.dedup.index) if name.endswith(said["id"])), None)


def withdraw_entry(config: CurationConfig) -> None:
    """Take this root's entry back while it is written anew, so that nobody reads half of it."""
    if config.dedup.index is not None:
        Root(config.dedup.index).remove(f"{own_entry(config)}/{PUBLISHED}")


def remove_from_entry(config: CurationConfig, uids: frozenset[str]) -> Iterator[str]:
    """Take these samples out of this root's entry, which stays the same one to corpora that were compared with it."""
    said = Root(config.root).read_json(CORPUS_ID)
    if said is None:
        return
    folders = _indexes(config)
    found = {url: Root(url).glob(f"*-{said['id']}/*") for url in folders}
    if not any(found.values()):
        seen = " or ".join(folders) or "the settings"
        say(f"warning: {CORPUS_ID} tells of an entry in dedup.index, and {seen} has none: give --dedup.index FOLDER")
    for url, paths in found.items():
        for path in paths:
            if path.endswith(".parquet"):
                yield from _remove_from_file(Root(url), "/".join(path.split("/")[-2:]), uids)


def _indexes(config: CurationConfig) -> list[str]:
    """Return the index that dedup last wrote to, and that of the settings where it is another one."""
    ran = Root(config.root).read_json(f"tables/duplicates/{MANIFEST}")
    known = [ran["settings"].get("index") if ran else None, config.dedup.index]
    return sorted({url for url in known if url is not None})


def _remove_from_file(index: Root, file: str, uids: frozenset[str]) -> Iterator[str]:
    gone = among(index.read_table(file, ["uid"])["uid"], uids)
    if pc.any(gone).as_py():
        index.write(file, parquet_bytes(index.read_table(file).filter(pc.invert(gone))))
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


def publish_entry(config: CurationConfig, names: list[str], pool: Callable[[], Any]) -> None:
    """Publish this root's entry for whoever comes after; lost files are made again in the pool, old ones removed."""
    if config.dedup.index is None:
        return
    index, own, root = Root(config.dedup.index), own_entry(config), Root(config.root)
    made_from = fragments(root, "duplicates")
    said = index.read_json(f"{own}/{PUBLISHED}")
    files, there = [f"{name}.parquet" for name in names], index.glob(f"{own}/*.parquet")
    lost = set(files) - {path.rpartition("/")[2] for path in there}
    if said is not None and said["made_from"] == made_from and not lost:
        return
    for path in there:
        if path.rpartition("/")[2] not in files:
            index.fs.rm(path)
    if lost:
        _make_again(config, sorted(file.removesuffix(".parquet") for file in lost), pool())
    rows = manifest(root, "duplicates")["counts"].get("survivors", 0)
    entry = {"files": files, "rows": rows, "models": _model(config), "made_from": made_from}
    index.write(f"{own}/{PUBLISHED}", json.dumps(entry, indent=1).encode())


def _make_again(config: CurationConfig, names: list[str], pool: Any) -> None:
    with Progress("dedup.index", len(names), 0) as progress:
        for rows in pool.map(_write_again, [(config, name) for name in names]):
            progress.advance(rows)
            heed_ctrl_c()


def _write_again(config: CurationConfig, fragment: str) -> int:
    """Write a fragment's survivors as the table has them; return their number."""
    table = Root(config.root).read_table(table_file("duplicates", fragment), ["uid", "is_survivor"])
    survivors = table.filter(table["is_survivor"])["uid"]
    write_index(config, fragment, survivors)
    return len(survivors)
