"""The curation's tables as fragments of an index: rows of the shards table beside the places of their latents."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from train.index.fragments import TABLE_COLUMNS, Fragments

WEIGHT_COLUMN = "weight"
"""Of tables from version 2 on; `order.weight: weight` asks for it."""
LATENT_COLUMNS = ("uid", "split", "variant", "shard", "offset", "num_bytes")


def table_fragments(root: str, split: str) -> Fragments | None:
    """Return the fragments that the tables' manifests name; None where there are no tables.

    Latents of shards that were exported anew since are left out, as if they had not been encoded.
    """
    fs, folder = fsspec.core.url_to_fs(root)
    said = _json(fs, f"{folder}/tables/shards/_run.json")
    if said is None:
        return None
    latents = _json(fs, f"{folder}/tables/latents/_run.json")
    encoded = _json(fs, f"{folder}/latents/shards.json") or {}
    there = set((latents or {"fragments": {}})["fragments"]) & said["fragments"].keys()
    with_latents = {name for name in there if encoded.get(name) == said["fragments"][name]["receipt"]}
    readers = tuple(
        functools.partial(read_fragment, root, split, name, name in with_latents) for name in sorted(said["fragments"])
    )
    identity = [said["fragments"], (latents or {}).get("fragments")]
    if there - with_latents:
        identity.append(sorted(there - with_latents))
    return Fragments(readers=readers, digest=hashlib.sha256(json.dumps(identity).encode()).hexdigest())


def read_fragment(root: str, split: str, name: str, with_latents: bool) -> pa.Table:
    """Return a split's rows of a fragment of the shards table, with the places of their latents where there are any."""
    fs, folder = fsspec.core.url_to_fs(root)
    rows = _read(fs, f"{folder}/tables/shards/{name}.parquet", (*TABLE_COLUMNS, WEIGHT_COLUMN), split)
    if not with_latents:
        return rows
    return _with_latents(rows, _read(fs, f"{folder}/tables/latents/{name}.parquet", LATENT_COLUMNS, split))


def _json(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        return json.loads(fs.cat_file(path))
    except FileNotFoundError:
        return None


def _read(fs: Any, path: str, columns: tuple[str, ...], split: str) -> pa.Table:
    with fs.open(path, "rb") as file:
        # pyarrow 26.0.1 aborts at interpreter exit where a threaded read has only just ended
        fragment = pq.ParquetFile(file)
        there = [name for name in columns if name in fragment.schema_arrow.names or name != WEIGHT_COLUMN]
        table = fragment.read(columns=there, use_threads=False)
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
