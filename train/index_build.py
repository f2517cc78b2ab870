"""Builds the index of a split from the tables of the curation, or from the tars where there are none.

Fragments are read one at a time, twice: first counted by group, then laid into the groups' stretches.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from train.index import ROW, VERSION, open_index

DEFAULT_WEIGHT = "1"
MAX_GROUPS = 4096
TABLE_COLUMNS = (
    "uid",
    "source",
    "split",
    "shard",
    "offset",
    "num_bytes",
    "bucket_height_px",
    "bucket_width_px",
    "original_height_px",
    "original_width_px",
    "crop_top_px",
    "crop_left_px",
    "aesthetic",
    "caption",
)
LATENT_COLUMNS = ("uid", "split", "variant", "shard", "offset", "num_bytes")
COPIED = (
    "num_bytes",
    "offset",
    "original_height_px",
    "original_width_px",
    "crop_top_px",
    "crop_left_px",
    "aesthetic",
)
Key = tuple[int, int, str, float]
"""Bucket height and width in px, source, weight."""


@dataclass(frozen=True, kw_only=True)
class Fragments:
    """Tables to be indexed, and what identifies them all."""

    names: tuple[str, ...]
    """In the order of the shards."""
    read: Callable[[str], pa.Table]
    """Returns a fragment with TABLE_COLUMNS and, where there are latents, their places."""
    digest: str
    """Changes when any of them does."""


@dataclass(frozen=True, kw_only=True)
class IndexOf:
    """What an index is made of."""

    root: str
    """Folder by fsspec URL."""
    split: str
    """train, val or another folder under shards/."""
    weight: str = DEFAULT_WEIGHT
    """Sampling weight as SQL on the columns of the shards table."""
    resolution_px: int = 1024
    """Aspect buckets of pictures in tars that name none."""


def index_folder(root: str, index: str | None, split: str) -> Path:
    """Return where the index of a split lies; raises ValueError where the root is remote and no folder is named."""
    if index is None and "://" in root:
        raise ValueError(f"index = None: the root {root} is remote; name a local folder for the index")
    return Path(index or f"{root}/index") / split


def splits_of(root: str) -> list[str]:
    """Return the splits: the folders under shards/."""
    fs, folder = fsspec.core.url_to_fs(root)
    try:
        entries = fs.ls(f"{folder}/shards", detail=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{root}/shards: no such folder; run curation up to the export step") from None
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


def is_current(what: IndexOf, folder: Path) -> bool:
    """Return whether the index is there and was made from what the root holds now."""
    try:
        index = open_index(folder)
    except (FileNotFoundError, ValueError):
        return False
    return index.digest == _digest(_fragments(what, index.resolution_px), what.weight)


def build_index(what: IndexOf, folder: Path) -> None:
    """Write the index of a split; raises ValueError and FileNotFoundError where the data does not allow it."""
    fragments, weight = _fragments(what, what.resolution_px), what.weight
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        counts, rows_read = _count(fragments, weight)
        writer = IndexWriter(draft, counts)
        for name in fragments.names:
            writer.add(_weighted(fragments.read(name), weight))
        writer.close(
            digest=_digest(fragments, weight),
            left_out=rows_read - sum(counts.values()),
            resolution_px=what.resolution_px,
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class IndexWriter:
    """Lays rows into their groups' stretches of the files; the counts of all groups are known before."""

    def __init__(self, folder: Path, counts: dict[Key, int]) -> None:
        self._folder = folder
        self._counts = dict(sorted(counts.items()))
        firsts = np.cumsum([0, *self._counts.values()])[:-1].tolist()
        self._next = dict(zip(self._counts, firsts, strict=True))
        self._first = dict(self._next)
        self._rows = (folder / "rows.bin").open("wb")
        self._captions = (folder / "captions.bin").open("wb")
        self._shards: dict[str, int] = {}
        self._missing_aesthetic = 0

    def add(self, table: pa.Table) -> None:
        """Write a fragment's rows, in the order of shard and offset."""
        table = table.sort_by([("shard", "ascending"), ("offset", "ascending")]).combine_chunks()
        if not table.num_rows:
            return
        rows = self._records(table)
        keys = keys_of(table)
        for group in dict.fromkeys(keys):
            mine = rows[[key == group for key in keys]] if len(set(keys)) > 1 else rows
            self._rows.seek(self._next[group] * ROW.itemsize)
            self._rows.write(mine.tobytes())
            self._next[group] += len(mine)

    def close(self, *, digest: str, left_out: int, resolution_px: int) -> None:
        """Write the names of the shards and, last, index.json."""
        for file in (self._rows, self._captions):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        ends = {group: first + self._counts[group] for group, first in self._first.items()}
        assert self._next == ends, "the fragments changed between counting and writing"
        names = [name.encode() for name in self._shards]
        width = max((len(name) for name in names), default=0)
        (self._folder / "shards.txt").write_bytes(b"".join(name.ljust(width) for name in names))
        said = {
            "version": VERSION,
            "digest": digest,
            "shard_name_bytes": width,
            "missing_aesthetic": self._missing_aesthetic,
            "left_out": left_out,
            "resolution_px": resolution_px,
            "groups": [
                {
                    "bucket_hw": list(key[:2]),
                    "source": key[2],
                    "weight": key[3],
                    "first_row": self._first[key],
                    "num_rows": count,
                }
                for key, count in self._counts.items()
            ],
        }
        (self._folder / "index.json").write_text(json.dumps(said, indent=1))

    def _records(self, table: pa.Table) -> np.ndarray:
        rows = np.zeros(table.num_rows, ROW)
        rows["uid"] = np.frombuffer(bytes.fromhex("".join(table.column("uid").to_pylist())), "V16")
        rows["shard"] = self._shard_numbers(table.column("shard"))
        for name in COPIED:
            rows[name] = table.column(name).to_numpy()
        self._missing_aesthetic += int(np.isnan(rows["aesthetic"]).sum())
        rows["caption_bytes"], rows["caption_offset"] = self._write_captions(table.column("caption"))
        rows["latent_offsets"] = -1
        if "latent_shard" in table.column_names:
            found = table.column("latent_shard").is_valid().to_numpy()
            known = table.filter(pa.array(found))
            rows["latent_shard"][found] = self._shard_numbers(known.column("latent_shard"))
            rows["latent_bytes"][found] = known.column("latent_bytes").to_numpy()
            for variant in (0, 1):
                offsets = known.column(f"latent_offset_{variant}").fill_null(-1).to_numpy()
                rows["latent_offsets"][found, variant] = offsets
        return rows

    def _shard_numbers(self, names: pa.ChunkedArray) -> np.ndarray:
        encoded = names.combine_chunks().dictionary_encode()
        numbers = [self._shards.setdefault(name, len(self._shards)) for name in encoded.dictionary.to_pylist()]
        return np.array(numbers, dtype=np.uint32)[encoded.indices.to_numpy()] if numbers else np.zeros(0, np.uint32)

    def _write_captions(self, captions: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        texts = [(text or "").encode() for text in captions.to_pylist()]
        lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
        start = self._captions.tell()
        self._captions.write(b"".join(texts))
        return lengths, start + np.cumsum(lengths) - lengths


def keys_of(table: pa.Table) -> list[Key]:
    """Return the group of each row."""
    columns = ("bucket_height_px", "bucket_width_px", "source", "weight")
    return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))


def _count(fragments: Fragments, weight: str) -> tuple[dict[Key, int], int]:
    """Return the rows of each group, and all rows that were read."""
    counts: dict[Key, int] = {}
    rows_read = 0
    for name in fragments.names:
        table = fragments.read(name)
        rows_read += table.num_rows
        for key in keys_of(_weighted(table, weight)):
            counts[key] = counts.get(key, 0) + 1
        if len(counts) > MAX_GROUPS:
            raise ValueError(
                f"weight = {weight!r}: more than {MAX_GROUPS} groups of bucket, source and weight; round it"
            )
    return counts, rows_read


def _weighted(table: pa.Table, weight: str) -> pa.Table:
    """Return the rows whose weight is above 0, with it; raises ValueError where the expression is no weight."""
    with duckdb.connect() as database:
        database.register("fragment", table)
        try:
            relation = database.sql(f"SELECT *, CAST(({weight}) AS DOUBLE) AS weight FROM fragment")
            rows = relation.to_arrow_table()
        except duckdb.Error as error:
            raise ValueError(f"weight = {weight!r}: {str(error).splitlines()[0]}") from error
    values = rows.column("weight").fill_null(0.0).to_numpy()
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"weight = {weight!r}: gives values below 0 or infinite; a weight is 0 or more")
    return rows.filter(pa.array(values > 0))


def _digest(fragments: Fragments, weight: str) -> str:
    return hashlib.sha256(json.dumps([VERSION, fragments.digest, weight]).encode()).hexdigest()[:32]


def _fragments(what: IndexOf, resolution_px: int) -> Fragments:
    """Return what there is to index: the tables' fragments by their manifests, or else the tars."""
    fs, folder = fsspec.core.url_to_fs(what.root)
    said = _manifest(fs, f"{folder}/tables/shards/_run.json")
    if said is None:
        from train.index_tars import tar_fragments

        return tar_fragments(what.root, what.split, resolution_px)
    latents = _manifest(fs, f"{folder}/tables/latents/_run.json")
    with_latents = set((latents or {"fragments": {}})["fragments"])

    def read(name: str) -> pa.Table:
        rows = _read(fs, f"{folder}/tables/shards/{name}.parquet", TABLE_COLUMNS, what.split)
        if name not in with_latents:
            return rows
        return _with_latents(rows, _read(fs, f"{folder}/tables/latents/{name}.parquet", LATENT_COLUMNS, what.split))

    names = tuple(sorted(said["fragments"]))
    identity = [said["fragments"], (latents or {}).get("fragments")]
    return Fragments(names=names, read=read, digest=hashlib.sha256(json.dumps(identity).encode()).hexdigest())


def _manifest(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        return json.loads(fs.cat_file(path))
    except FileNotFoundError:
        return None


def _read(fs: Any, path: str, columns: tuple[str, ...], split: str) -> pa.Table:
    with fs.open(path, "rb") as file:
        # pyarrow 26.0.1 aborts at interpreter exit where a threaded read has only just ended
        table = pq.ParquetFile(file).read(columns=list(columns), use_threads=False)
    return table.filter(pc.equal(table.column("split"), split))


def _with_latents(rows: pa.Table, latents: pa.Table) -> pa.Table:
    """Join a fragment with its latents: one row for each sample, both variants beside each other."""
    with duckdb.connect() as database:
        database.register("fragment", rows)
        database.register("encoded", latents)
        return database.sql(
            """SELECT fragment.*, latent_shard, latent_bytes, latent_offset_0, latent_offset_1
            FROM fragment LEFT JOIN (
                SELECT uid, any_value(shard) AS latent_shard, max(num_bytes) AS latent_bytes,
                    max("offset") FILTER (variant = 0) AS latent_offset_0,
                    max("offset") FILTER (variant = 1) AS latent_offset_1
                FROM encoded GROUP BY uid) USING (uid)"""
        ).to_arrow_table()
