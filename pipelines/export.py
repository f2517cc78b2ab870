#!/usr/bin/env python3
"""Export: kept samples as WebDataset shards by aspect bucket, and the table that indexes them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.buckets import ladder, nearest
from curate.config import CurationConfig, ExportConfig
from curate.image import decode
from curate.resize import fit, jpeg_bytes
from curate.tar import TarShard
from pipelines.command import run_step
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, fragments, parquet_bytes, scratch_file, table_file
from schemas.shards import SCHEMA

PLAN_SCHEMA = pa.schema([("shard", pa.string()), ("split", pa.string()), ("rows", pa.int64())])


def export(runner: Runner) -> list[Report]:
    """Plan the shards, then write each one."""
    config = runner.config
    tables = ("samples", "features", "captions", "scores", "selection")
    made_from = [fragments(runner.root, table) for table in tables]
    plan = Step(table="plan", settings=config.export, build=_build_plan)
    wanted = [Fragment(name="all", made_from=made_from, arguments=(sorted(made_from[0]),))] if made_from[0] else []
    planned = runner.run(plan, wanted)
    shards = [
        Fragment(name=shard, made_from=[receipt, shard], arguments=(shard,))
        for name, receipt in fragments(runner.root, "plan").items()
        for shard in runner.root.read_table(table_file("plan", name))["shard"].to_pylist()
    ]
    written = runner.run(Step(table="shards", settings=config.export, build=_build), shards)
    return [planned, written]


def in_validation(uid: str, val_fraction: float) -> bool:
    """Return whether a sample is set aside: a share of all uids, whatever else is exported."""
    return int(uid[:8], 16) < val_fraction * 2**32


def _build_plan(config: CurationConfig) -> Any:
    """Lay every kept sample into a shard: by split and bucket, in the order of uids, which is a shuffle."""
    root = Root(config.root)

    def plan(names: list[str]) -> Made:
        with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
            database.create_function("place", _placer(config.export), ["VARCHAR", "INTEGER", "INTEGER"], "VARCHAR")
            for number, name in enumerate(names):
                _add_kept(database, root, name, "CREATE TABLE kept AS" if number == 0 else "INSERT INTO kept")
            places = [row[0] for row in database.execute("SELECT DISTINCT place FROM kept ORDER BY place").fetchall()]
            parts = [part for place in places for part in _parts(database, place, config.export.samples_per_shard)]
        files = {_plan_file(shard): parquet_bytes(rows) for shard, rows in parts}
        listed = [{"shard": shard, "split": shard.split("-")[0], "rows": len(rows)} for shard, rows in parts]
        return Made(rows=pa.Table.from_pylist(listed, schema=PLAN_SCHEMA), files=files)

    return plan


def _placer(config: ExportConfig) -> Any:
    buckets = ladder(config.resolution_px, config.multiple_px)

    def place(uid: str, height_px: int, width_px: int) -> str:
        bucket = nearest(height_px, width_px, buckets)
        return f"{'val' if in_validation(uid, config.val_fraction) else 'train'}-{bucket[0]}x{bucket[1]}"

    return place


def _add_kept(database: Any, root: Root, name: str, into: str) -> None:
    read = {
        "n_rows": root.read_table(table_file("selection", name), ["uid", "keep"]),
        "s_rows": root.read_table(table_file("samples", name), ["uid", "source", "shard", "offset", "num_bytes"]),
        "f_rows": root.read_table(table_file("features", name), ["uid", "height_px", "width_px"]),
        "c_rows": root.read_table(table_file("captions", name), ["uid", "caption_clean"]),
        "r_rows": root.read_table(table_file("scores", name), ["uid", "aesthetic"]),
    }
    for alias, rows in read.items():
        database.register(alias, rows)
    database.execute(
        f"""{into} SELECT uid, source, shard, "offset", num_bytes, height_px, width_px, caption_clean, aesthetic,
            place(uid, height_px, width_px) AS place
        FROM n_rows JOIN s_rows USING (uid) JOIN f_rows USING (uid) JOIN c_rows USING (uid) JOIN r_rows USING (uid)
        WHERE keep"""
    )
    for alias in read:
        database.unregister(alias)


def _parts(database: Any, place: str, samples_per_shard: int) -> Iterator[tuple[str, pa.Table]]:
    rows = database.sql("SELECT * FROM kept WHERE place = ? ORDER BY uid", params=[place]).to_arrow_table()
    for number, first in enumerate(range(0, len(rows), samples_per_shard)):
        yield f"{place}-{number:05d}", rows.slice(first, samples_per_shard)


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)

    def write(shard: str) -> Made:
        split, bucket_name, number = shard.split("-")
        relative = f"shards/{split}/{bucket_name}-{number}.tar"
        height_px, width_px = (int(side) for side in bucket_name.split("x"))
        path = scratch_file(".tar")
        with path.open("wb") as file:
            tar, planned = TarShard(file), root.read_table(_plan_file(shard)).to_pylist()
            rows = [_export_one(root, row, (height_px, width_px), tar, config) for row in planned]
            tar.close()
        placed = [row | {"split": split, "shard": relative} for row in rows]
        return Made(rows=pa.Table.from_pylist(placed, schema=SCHEMA), files={relative: path})

    return write


def _export_one(
    root: Root, row: dict[str, Any], bucket: tuple[int, int], tar: TarShard, config: CurationConfig
) -> dict[str, Any]:
    """Write one sample's picture, caption and conditioning to the shard; return its row."""
    data = root.read(row["shard"], row["offset"], row["num_bytes"])
    fitted = fit(decode(data, config.embed.max_megapixels), bucket)
    jpeg = jpeg_bytes(fitted.image, config.export.jpeg_quality)
    conditioning = {
        "uid": row["uid"],
        "source": row["source"],
        "bucket_height_px": bucket[0],
        "bucket_width_px": bucket[1],
        "original_height_px": row["height_px"],
        "original_width_px": row["width_px"],
        "crop_top_px": fitted.crop_top_px,
        "crop_left_px": fitted.crop_left_px,
        "aesthetic": row["aesthetic"],
        "caption": row["caption_clean"],
    }
    offset = tar.add(f"{row['uid']}.jpg", jpeg)
    tar.add(f"{row['uid']}.txt", row["caption_clean"].encode())
    tar.add(f"{row['uid']}.json", json.dumps(conditioning, sort_keys=True).encode())
    return conditioning | {"offset": offset, "num_bytes": len(jpeg)}


def _plan_file(shard: str) -> str:
    return f"tables/plan/parts/{shard}.parquet"


if __name__ == "__main__":
    run_step("export", export, __doc__)
