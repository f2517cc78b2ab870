"""The index: what the tables say about each sample, and where its bytes lie."""

from __future__ import annotations

import json
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHARD_COLUMNS = (
    "uid",
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


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample."""

    uid: str
    """Identity."""
    caption: str
    """Caption."""
    shard: str
    """Tar with the picture, relative to the root."""
    offset: int
    """First byte of the picture."""
    num_bytes: int
    """Length of the picture."""
    bucket_hw: tuple[int, int]
    """Height and width of the stored picture, in px."""
    original_hw: tuple[int, int]
    """Height and width before resizing, in px."""
    crop_top_px: int
    """Rows cut off at the top."""
    crop_left_px: int
    """Columns cut off at the left."""
    aesthetic: float
    """Aesthetic score, 1..10."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A stretch of bytes in a shard."""

    shard: str
    """Tar, relative to the root."""
    offset: int
    """First byte."""
    num_bytes: int
    """Length in bytes."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The rows of one split, in the order of their uids."""

    table: pa.Table
    """The shards table's rows."""

    def __len__(self) -> int:
        return self.table.num_rows

    def sample(self, row: int) -> Sample:
        """Return one row."""
        value = {name: self.table.column(name)[row].as_py() for name in SHARD_COLUMNS}
        return Sample(
            uid=value["uid"],
            caption=value["caption"] or "",
            shard=value["shard"],
            offset=value["offset"],
            num_bytes=value["num_bytes"],
            bucket_hw=(value["bucket_height_px"], value["bucket_width_px"]),
            original_hw=(value["original_height_px"], value["original_width_px"]),
            crop_top_px=value["crop_top_px"],
            crop_left_px=value["crop_left_px"],
            aesthetic=value["aesthetic"] if value["aesthetic"] is not None else float("nan"),
        )

    def buckets(self) -> tuple[np.ndarray, ...]:
        """Return the rows of each aspect bucket, buckets by (height, width)."""
        heights = self.table.column("bucket_height_px").to_numpy()
        widths = self.table.column("bucket_width_px").to_numpy()
        shapes = sorted(set(zip(heights.tolist(), widths.tolist(), strict=True)))
        return tuple(np.flatnonzero((heights == height) & (widths == width)) for height, width in shapes)


def read_index(root: str, split: str, *, needs_aesthetic: bool) -> Index:
    """Return the index of a split.

    Raises FileNotFoundError where there is no shards table, ValueError where the refiner misses scores.
    """
    table = _read(root, "shards", SHARD_COLUMNS)
    table = table.filter(pc.equal(table.column("split"), split)).sort_by("uid").combine_chunks()
    missing = (
        table.column("aesthetic").null_count + pc.sum(pc.is_nan(table.column("aesthetic"))).as_py() if len(table) else 0
    )
    if needs_aesthetic and missing:
        raise ValueError(
            f"{root}/tables/shards: {missing} samples of {split} lack the aesthetic score, run the score step"
        )
    return Index(table=table)


def read_latent_members(root: str, split: str) -> dict[tuple[str, int], Member]:
    """Return where the latent of each (uid, variant) lies."""
    table = _read(root, "latents", LATENT_COLUMNS)
    rows = table.filter(pc.equal(table.column("split"), split)).to_pylist()
    return {
        (row["uid"], row["variant"]): Member(shard=row["shard"], offset=row["offset"], num_bytes=row["num_bytes"])
        for row in rows
    }


def check_latents(root: str, fingerprint: str, scaling_factor: float) -> None:
    """Raise ValueError where the cached latents come from another autoencoder than the configured one."""
    with fsspec.open(f"{root}/latents/run.json", "rt") as file:
        run = json.load(file)
    for name, wanted in (("vae_fingerprint", fingerprint), ("scaling_factor", scaling_factor)):
        if run.get(name) != wanted:
            raise ValueError(
                f"{root}/latents: {name} is {run.get(name)!r}, but the configured vae has {wanted!r};"
                " encode the latents again, or name the vae they were made with"
            )


def _read(root: str, name: str, columns: tuple[str, ...]) -> pa.Table:
    fs, folder = fsspec.core.url_to_fs(f"{root}/tables/{name}")
    paths = sorted(fs.glob(f"{folder}/*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{root}/tables/{name}: no parquet files; run curation up to this table first")
    tables = []
    for path in paths:
        with fs.open(path, "rb") as file:
            tables.append(pq.read_table(file, columns=list(columns)))
    return pa.concat_tables(tables)
