#!/usr/bin/env python3
"""Export: kept samples as WebDataset shards by aspect bucket, and the table that indexes them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import faces
from curate.buckets import bucket_of
from curate.config import CurationConfig, ExportConfig
from curate.dedup.text_columns import words_of_hex
from curate.encoded import ENDINGS, encode, fits_as_it_is
from curate.image import open_header
from curate.resize import decode_for, scale
from curate.tar import TarShard
from curate.weights import registered
from pipelines.command import run_step
from pipelines.preflight import check_faces
from pipelines.runner import Fragment, Made, Report, Runner, Step, shaping
from pipelines.store import Root, check_fragments, digest, fragments, parquet_bytes, scratch_file, stale, table_file
from schemas.plan import SCHEMA as PLAN_SCHEMA
from schemas.shards import SCHEMA

READ = {
    "selection": ["uid", "keep", "weight"],
    "samples": ["uid", "source", "shard", "offset", "num_bytes", "sha256"],
    "features": ["uid", "height_px", "width_px"],
    "captions": ["uid", "caption_clean"],
    "scores": ["uid", "aesthetic"],
}
WRITTEN = ("uid", "source", "sha256", "height_px", "width_px", "caption_clean", "aesthetic", "weight")
"""What a shard is made from, apart from where the original lies."""
PLANNING = ("resolution_px", "multiple_px", "max_enlargement", "small_images", "samples_per_shard", "val_fraction")
"""Settings that say which shard a sample goes to; the others say how it is written."""
FACES = ("face_detector", "min_face_share")
TOO_SMALL = "too_small_for_any_bucket"
READS_AHEAD = 8


def export(runner: Runner) -> list[Report]:
    """Plan the shards, then write each one whose samples have changed."""
    config = runner.config
    check_faces(config)
    made_from = [fragments(runner.root, table) for table in ("samples", "features", "captions", "scores", "selection")]
    check_fragments(runner.root, made_from[0], "features", "captions", "scores", "selection", dry_run=runner.dry_run)
    planning = {name: getattr(config.export, name) for name in PLANNING}
    plan = Step(table="plan", settings=planning, build=_build_plan)
    wanted = [Fragment(name="all", made_from=made_from, arguments=(sorted(made_from[0]),))] if made_from[0] else []
    planned = runner.run(plan, wanted)
    shards = [
        Fragment(name=row["shard"], made_from=[row["shard"], row["digest"]], arguments=(row["shard"],))
        for name in fragments(runner.root, "plan")
        for row in runner.root.read_table(table_file("plan", name)).to_pylist()
    ]
    step = Step(table="shards", settings=_writing(config), build=_build, models=_models(config.export))
    written = runner.run(step, shards)
    return [planned, written]


def _writing(config: CurationConfig) -> dict[str, Any]:
    """Return what says how a shard is written: of faces and their detector only where they are looked for."""
    unused = () if config.export.faces == "blur" else FACES
    said = shaping(config.export, *PLANNING, *unused) | {"max_megapixels": config.embed.max_megapixels}
    models = _models(config.export)
    return said | {"models": models} if models else said


def _models(config: ExportConfig) -> tuple[str, ...]:
    """Return what tells the detector that looked for faces, where a network did."""
    if config.faces == "keep" or config.face_detector != "yunet":
        return ()
    weight = registered(faces.YUNET)
    return (f"{weight.name} at {weight.revision}, sha256 {weight.sha256}",)


def in_validation(uid: str, val_fraction: float) -> bool:
    """Return whether a sample is set aside: a share of all uids, whatever else is exported."""
    return int(uid[:8], 16) < val_fraction * 2**32


def _build_plan(config: CurationConfig) -> Any:
    """Lay every kept sample into a shard: by split and bucket, in the order of uids, which is a shuffle."""
    root = Root(config.root)

    def plan(names: list[str]) -> Made:
        with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
            for number, name in enumerate(names):
                kept = _kept(root, name, config.export)
                database.register("kept_rows", kept)
                database.execute(f"{'INSERT INTO kept' if number else 'CREATE TABLE kept AS'} SELECT * FROM kept_rows")
                database.unregister("kept_rows")
            places = database.execute("SELECT place, count(*) FROM kept GROUP BY place ORDER BY place").fetchall()
            lost = sum(count for place, count in places if place == TOO_SMALL)
            placed = [place for place, _ in places if place != TOO_SMALL]
            parts = [part for place in placed for part in _parts(database, place, config.export.samples_per_shard)]
        files = {_plan_file(shard): parquet_bytes(rows) for shard, rows in parts}
        listed = [_planned(shard, rows) for shard, rows in parts]
        counts = {TOO_SMALL: lost} if lost else {}
        return Made(rows=pa.Table.from_pylist(listed, schema=PLAN_SCHEMA), files=files, counts=counts)

    return plan


def _planned(shard: str, rows: pa.Table) -> dict[str, Any]:
    said = digest(rows.select(list(WRITTEN)).to_pylist())
    return {"shard": shard, "split": shard.split("-")[0], "rows": len(rows), "digest": said}


def _kept(root: Root, name: str, config: ExportConfig) -> pa.Table:
    """Return the kept samples of a fragment with the place that each one goes to."""
    rows = root.read_table(table_file("selection", name), READ["selection"])
    rows = rows.filter(rows["keep"]).drop_columns(["keep"])
    for table in ("samples", "features", "captions", "scores"):
        more = root.read_table(table_file(table, name), READ[table])
        at = pc.index_in(rows["uid"], more["uid"])
        if at.null_count:
            raise stale(table_file("selection", name))
        for column in READ[table][1:]:
            rows = rows.append_column(column, more[column].take(at))
    sides = zip(rows["uid"].to_pylist(), rows["height_px"].to_pylist(), rows["width_px"].to_pylist(), strict=True)
    return rows.append_column("place", pa.array([_place(config, *side) for side in sides], pa.string()))


def _place(config: ExportConfig, uid: str, height_px: int, width_px: int) -> str:
    limit = config.max_enlargement if config.small_images == "smaller_bucket" else float("inf")
    bucket = bucket_of(height_px, width_px, config.resolution_px, config.multiple_px, limit)
    if bucket is None:
        return TOO_SMALL
    return f"{'val' if in_validation(uid, config.val_fraction) else 'train'}-{bucket[0]}x{bucket[1]}"


def _parts(database: Any, place: str, samples_per_shard: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield the shards of a place: equal ranges of uids, so that one sample more or less changes one shard."""
    rows = database.sql(
        "SELECT * EXCLUDE place FROM kept WHERE place = ? ORDER BY uid", params=[place]
    ).to_arrow_table()
    first_64_bits = words_of_hex(rows["uid"], 32)[:, 0]
    bits = _range_bits(first_64_bits, samples_per_shard)
    numbers = first_64_bits >> np.uint64(64 - bits) if bits else np.zeros(len(rows), np.uint64)
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield f"{place}-{int(numbers[first]):05d}", rows.slice(first, last - first)


def _range_bits(first_64_bits: np.ndarray, most: int) -> int:
    """Return the least number of leading bits that no more than `most` uids share."""
    for bits in range(64):
        shared = first_64_bits >> np.uint64(64 - bits) if bits else np.zeros(len(first_64_bits), np.uint64)
        if np.unique(shared, return_counts=True)[1].max(initial=0) <= most:
            return bits
    raise AssertionError("two uids share 63 bits")


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)

    def write(shard: str) -> Made:
        split, bucket_name, number = shard.split("-")
        height_px, width_px = (int(side) for side in bucket_name.split("x"))
        tars = Tars(f"shards/{split}/{bucket_name}-{number}", config.export.max_shard_mb * 1e6)
        planned = root.read_table(_plan_file(shard)).to_pylist()
        rows = []
        for row, data in _with_bytes(root, planned):
            image, said = render(data, (height_px, width_px), config)
            said |= {"bucket_height_px": height_px, "bucket_width_px": width_px, "format": config.export.image_format}
            rows.append(_add(tars, row, image, said) | {"split": split})
        counts = Counter({"faces_blurred": sum(row["faces_blurred"] or 0 for row in rows)})
        counts["original_bytes"] = sum(row["is_original"] for row in rows)
        return Made(rows=pa.Table.from_pylist(rows, schema=SCHEMA), files=tars.close(), counts=dict(+counts))

    return write


def _with_bytes(root: Root, planned: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield each row with its original bytes, a few of them read ahead."""
    with ThreadPoolExecutor(READS_AHEAD) as threads:
        ahead: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
        for row in planned:
            ahead.append((row, threads.submit(root.read, row["shard"], row["offset"], row["num_bytes"])))
            if len(ahead) > READS_AHEAD:
                first, data = ahead.popleft()
                yield first, data.result()
        while ahead:
            first, data = ahead.popleft()
            yield first, data.result()


def render(data: bytes, bucket: tuple[int, int], config: CurationConfig) -> tuple[bytes, dict[str, Any]]:
    """Return the picture's file for its bucket, and how it came about."""
    settings = config.export
    with open_header(data, config.embed.max_megapixels) as opened:
        as_it_is = settings.pass_through and fits_as_it_is(data, opened, bucket, settings.image_format)
        said = {"crop_top_px": 0, "crop_left_px": 0, "is_original": True, "faces_blurred": None}
        if as_it_is and settings.faces == "keep":
            return data, said
        decoded = decode_for(opened, data, bucket if settings.decode == "fast" else None)
    boxes_N4 = None
    if settings.faces == "blur":
        boxes_N4 = faces.find(decoded.rgb_HWC, settings.min_face_share, settings.face_detector)
    said["faces_blurred"] = None if boxes_N4 is None else len(boxes_N4)
    if as_it_is and not said["faces_blurred"]:
        return data, said
    scaled = scale(decoded, bucket, settings.downscale)
    said |= {"crop_top_px": scaled.crop_top_px, "crop_left_px": scaled.crop_left_px, "is_original": False}
    if boxes_N4 is not None:
        scaled = replace(scaled, rgb_HWC=faces.blur(scaled.rgb_HWC, boxes_N4))
    return encode(scaled.cropped(bucket), settings), said


def _add(tars: Tars, row: dict[str, Any], image: bytes, said: dict[str, Any]) -> dict[str, Any]:
    """Write one sample's picture, caption and conditioning; return its row."""
    caption, uid = row["caption_clean"] or "", row["uid"]
    conditioning = said | {
        "uid": uid,
        "source": row["source"],
        "original_height_px": row["height_px"],
        "original_width_px": row["width_px"],
        "aesthetic": row["aesthetic"],
        "weight": row["weight"],
        "caption": caption,
    }
    members = {
        f"{uid}.{ENDINGS[said['format']]}": image,
        f"{uid}.txt": caption.encode(),
        f"{uid}.json": json.dumps(conditioning, sort_keys=True).encode(),
    }
    shard, offset = tars.add(members)
    return conditioning | {"shard": shard, "offset": offset, "num_bytes": len(image)}


class Tars:
    """The files of one shard: another one begins where a sample would make the last one too large."""

    def __init__(self, stem: str, max_bytes: float) -> None:
        self._stem, self._max_bytes = stem, max_bytes
        self._files: dict[str, Path] = {}
        self._open: tuple[str, TarShard, BinaryIO] | None = None

    def add(self, members: dict[str, bytes]) -> tuple[str, int]:
        """Append a sample's members; return the file's name and the offset of the first member's data."""
        needed = sum(TarShard.room(data) for data in members.values()) + TarShard.END
        if self._open is not None and self._open[1].num_bytes + needed > self._max_bytes:
            self.close()
        name, tar, _ = self._open or self._begin()
        return name, [tar.add(member, data) for member, data in members.items()][0]

    def _begin(self) -> tuple[str, TarShard, BinaryIO]:
        name = f"{self._stem}_{len(self._files)}.tar" if self._files else f"{self._stem}.tar"
        self._files[name] = scratch_file(".tar")
        file = self._files[name].open("wb")
        self._open = (name, TarShard(file), file)
        return self._open

    def close(self) -> dict[str, Path]:
        """End the file that is open; return the finished files by name."""
        if self._open is not None:
            _, tar, file = self._open
            tar.close()
            file.close()
            self._open = None
        return self._files


def _plan_file(shard: str) -> str:
    return f"tables/plan/parts/{shard}.parquet"


if __name__ == "__main__":
    run_step("export", export, __doc__)
