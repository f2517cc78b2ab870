"""Tables by hand for tests of dedup, a pool without Ray, and the answer by brute force."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.config import CurationConfig, DedupConfig, DumpSource
from pipelines.store import Root, commit, parquet_bytes, publish, table_file

DIM = 16
PLAIN = DedupConfig(radius_bits=2, error_image_captions=3, semantic_eps=None)


class PlainPool:
    """What dedup needs of a pool, in this process."""

    cpus = node_cpus = 2

    def share(self, value: Any) -> Any:
        return value

    def map(self, function, calls: Sequence[tuple], threads: int = 1, gpu: bool = False) -> Iterator[Any]:
        return (function(*call) for call in calls)


OF_PICTURE = ("width_px", "height_px", "sharpness", "entropy_bits", "text_share", "phash64", "phash64_turned")
OF_PICTURE += ("pdq256", "pdq256_turned", "pdq_quality", "embedding", "status")
"""What is measured on the bytes alone."""


def row(number: int, **said: Any) -> dict[str, Any]:
    """Return a sample that is near nothing, but for what is said."""
    rng = np.random.default_rng(number)
    own = {
        "uid": hashlib.sha256(f"uid {number}".encode()).hexdigest()[:32],
        "source": "crawl",
        "sha256": hashlib.sha256(f"bytes {number}".encode()).hexdigest(),
        "caption": f"caption {number}",
        "url": f"https://site.example/{number}.jpg",
        "status": "ok",
        "width_px": 100,
        "height_px": 100,
        "sharpness": 50.0,
        "jpeg_quality": 90,
        "entropy_bits": 7.0,
        "text_share": 0.0,
        "phash64": int(rng.integers(0, 2**64, dtype=np.uint64)),
        "phash64_turned": rng.integers(0, 2**64, 7, dtype=np.uint64).tolist(),
        "pdq256": rng.bytes(32),
        "pdq256_turned": [rng.bytes(32) for _ in range(7)],
        "pdq_quality": 100,
        "embedding": unit(rng.standard_normal(DIM)),
        "caption_reason": None,
    }
    return own | said


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def random_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Return samples of which many are near others, by bytes, hash or embedding."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        made = row(1000 * seed + number, width_px=int(rng.integers(1, 5)), sharpness=float(rng.integers(0, 3)))
        made["jpeg_quality"] = (None, 40, 49, 75)[rng.integers(4)]
        if rows and rng.random() < 0.7:
            like = rows[rng.integers(len(rows))]
            if rng.random() < 0.3:
                made["sha256"] = like["sha256"]
            elif rng.random() < 0.6:
                made["phash64"] = like["phash64"] ^ (1 << int(rng.integers(64))) ^ (1 << int(rng.integers(64)))
            else:
                made["embedding"] = unit(like["embedding"] + 0.06 * rng.standard_normal(DIM))
        made["entropy_bits"] = made["entropy_bits"] if rng.random() > 0.05 else 0.5
        made["text_share"] = made["text_share"] if rng.random() > 0.05 else 0.9
        rows.append(made)
    return alike(rows)


def alike(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give rows with the same bytes the same picture, that of the first."""
    first: dict[str, dict[str, Any]] = {}
    for one in rows:
        of = first.setdefault(one["sha256"], one)
        one |= {name: of[name] for name in OF_PICTURE}
    return rows


def write_tables(folder: Path, parts: list[list[dict[str, Any]]], **settings: Any) -> CurationConfig:
    """Write the tables that dedup reads, a fragment for each part; returns the settings of the run."""
    root, receipts = Root(str(folder)), {"samples": [], "captions": [], "features": []}
    for number, rows in enumerate(parts):
        for table, columns in _tables(rows).items():
            name = f"crawl-{number:05d}"
            data = parquet_bytes(columns)
            files = {table_file(table, name): data}
            made_from = hashlib.sha256(data).hexdigest()
            receipts[table].append(commit(root, table, name, made_from, files, len(rows), {}))
    for table, made in receipts.items():
        publish(root, table, made, {"counts": {}, "models": ["a model"]})
    dumps = (DumpSource(name="benchmark", folder="unused", evaluation=True),)
    return CurationConfig(root=str(folder), dumps=dumps, dedup=replace(PLAIN, **settings))


def _tables(rows: list[dict[str, Any]]) -> dict[str, pa.Table]:
    def column(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([one[name] for one in rows], kind)

    embedding = np.concatenate([one["embedding"] for one in rows]) if rows else np.empty(0, np.float16)
    text, whole, real = pa.string(), pa.int32(), pa.float32()
    kinds = {
        "uid": text,
        "status": text,
        "width_px": whole,
        "height_px": whole,
        "entropy_bits": real,
        "text_share": real,
    }
    kinds |= {"sharpness": real, "phash64": pa.uint64(), "phash64_turned": pa.list_(pa.uint64(), 7)}
    kinds |= {"pdq256": pa.binary(32), "pdq_quality": whole, "jpeg_quality": whole}
    features = {name: column(name, kind) for name, kind in kinds.items()}
    turned = [b"".join(one["pdq256_turned"]) for one in rows]
    features["pdq256_turned"] = pa.array(turned, pa.binary(7 * 32))
    features["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embedding), DIM)
    return {
        "samples": pa.table({name: column(name, text) for name in ("uid", "source", "url", "sha256", "caption")}),
        "captions": pa.table({name: column(name, text) for name in ("uid", "caption_reason")}),
        "features": pa.table(features),
    }


def by_brute_force(rows: list[dict[str, Any]], config: DedupConfig) -> dict[str, str | None]:
    """Return the survivor's uid for each uid: greedy over all pairs, evaluation pictures and error images first."""
    captions: dict[str, set] = {}
    urls: dict[str, set] = {}
    for one in rows:
        if is_shown(one):
            continue
        captions.setdefault(one["sha256"], set()).add(one["caption"])
        urls.setdefault(one["sha256"], set()).add(one["url"])
    kept: list[dict[str, Any]] = []
    survivor: dict[str, str | None] = {}
    for one in sorted(rows, key=place):
        if is_shown(one):
            kept.append(one)
            survivor[one["uid"]] = one["uid"]
            continue
        by_caption = len(captions[one["sha256"]]) >= config.error_image_captions
        if by_caption or len(urls[one["sha256"]]) >= config.error_image_urls:
            survivor[one["uid"]] = None
            continue
        near = [other["uid"] for other in kept if is_near(one, other, config)]
        survivor[one["uid"]] = near[0] if near else one["uid"]
        if not near:
            kept.append(one)
    return survivor


def is_shown(one: dict[str, Any]) -> bool:
    """Return whether it is of an evaluation set."""
    return one["source"] == "benchmark"


def place(one: dict[str, Any]) -> tuple:
    """Return the ranking policy as a sort key: evaluation pictures first, by uid."""
    if is_shown(one):
        return 0, one["uid"]
    fine = one["caption_reason"] is None
    step = 11 if one["jpeg_quality"] is None else one["jpeg_quality"] // 10
    return 1, -one["width_px"] * one["height_px"], -step, -round(one["sharpness"] * 10), not fine, one["uid"]


def bits_between(one: dict[str, Any], other: dict[str, Any], config: DedupConfig) -> int:
    """Return the least distance of the two as they are and turned, of what PDQ confirms; 64 where it confirms none."""
    turns = {"none": 0, "flips": 3, "all": 7}[config.turns]
    pairs = [(one["phash64"], one["pdq256"], other)]
    for own, of in ((one, other), (other, one)):
        pairs += [(own["phash64_turned"][turn], own["pdq256_turned"][turn], of) for turn in range(turns)]
    least = 64
    for phash, pdq, of in pairs:
        apart = (int.from_bytes(pdq) ^ int.from_bytes(of["pdq256"])).bit_count()
        if config.confirm_pdq_bits is None or apart <= config.confirm_pdq_bits:
            least = min(least, (phash ^ of["phash64"]).bit_count())
    return least


def is_near(one: dict[str, Any], other: dict[str, Any], config: DedupConfig) -> bool:
    if one["sha256"] == other["sha256"]:
        return True
    hashed = min(one["entropy_bits"], other["entropy_bits"]) >= config.min_entropy_bits
    hashed &= max(one["text_share"], other["text_share"]) <= config.max_text_share
    if config.confirm_pdq_bits is not None:
        hashed &= min(one["pdq_quality"], other["pdq_quality"]) >= 50
    by_hash = hashed and bits_between(one, other, config) <= config.radius_bits
    cosine = float(one["embedding"].astype(np.float64) @ other["embedding"].astype(np.float64))
    return by_hash or (config.semantic_eps is not None and cosine > 1 - config.semantic_eps)
