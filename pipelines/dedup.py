#!/usr/bin/env python3
"""Dedup: exact bytes, error images, perceptual and semantic near-duplicates, with a survivor for each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import ranking, sample
from curate.config import CurationConfig
from pipelines.command import run_step
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, fragments, parquet_bytes, table_file
from schemas.column import conform
from schemas.duplicates import SCHEMA


def dedup(runner: Runner) -> list[Report]:
    """Compare every decoded sample with every other one."""
    captions, features = fragments(runner.root, "captions"), fragments(runner.root, "features")
    made_from = [fragments(runner.root, "samples"), captions, features]
    wanted = [Fragment(name="all", made_from=made_from, arguments=(sorted(features),))] if features else []
    return [runner.run(Step(table="duplicates", settings=runner.config.dedup, build=_build), wanted)]


def _build(config: CurationConfig) -> Any:
    from curate.dedup.corpus import find_duplicates

    root = Root(config.root)

    def compare(names: list[str]) -> Made:
        parts = [_read(root, name) for name in names]
        rows = pa.concat_tables(parts)
        corpus = _corpus(rows)
        verdicts = find_duplicates(corpus, config.dedup)
        table = _table(corpus, verdicts)
        ends = np.cumsum([len(part) for part in parts])
        files = {
            table_file("duplicates", name): parquet_bytes(table.slice(end - len(part), len(part)))
            for name, part, end in zip(names, parts, ends, strict=True)
        }
        return Made(rows=None, files=files, counts=_counts(table), num_rows=len(table))

    return compare


def _read(root: Root, name: str) -> pa.Table:
    """Return a fragment's decoded samples with the columns that dedup compares."""
    samples = root.read_table(table_file("samples", name), ["uid", "sha256", "caption"])
    captions = root.read_table(table_file("captions", name), ["uid", "caption_reason"])
    features = root.read_table(table_file("features", name))
    assert samples["uid"] == captions["uid"] == features["uid"], f"{name}: the tables differ"
    rows = features.select(
        ["uid", "status", "width_px", "height_px", "phash64", "entropy_bits", "sharpness", "embedding"]
    )
    rows = rows.append_column("sha256", samples["sha256"]).append_column("caption", samples["caption"])
    rows = rows.append_column("caption_reason", captions["caption_reason"])
    return rows.filter(pa.compute.equal(rows["status"], sample.OK)).replace_schema_metadata(None)


def _corpus(rows: pa.Table) -> Any:
    from curate.dedup.corpus import Corpus

    uid = np.array(rows["uid"].to_pylist(), dtype=str)
    area_px = rows["width_px"].to_numpy().astype(np.int64) * rows["height_px"].to_numpy()
    fine = rows["caption_reason"].is_null().to_numpy()
    embedding = rows["embedding"].combine_chunks()
    return Corpus(
        uid=uid,
        sha256=np.array(rows["sha256"].to_pylist(), dtype=str),
        caption=np.array([caption or "" for caption in rows["caption"].to_pylist()], dtype=str),
        phash64=rows["phash64"].to_numpy(),
        entropy_bits=rows["entropy_bits"].to_numpy(),
        policy=ranking.terms(area_px, rows["sharpness"].to_numpy(), fine, uid),
        embedding=embedding.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), embedding.type.list_size),
    )


def _table(corpus: Any, verdicts: Any) -> pa.Table:
    count = len(corpus.uid)
    keeps = verdicts.survivor == np.arange(count)
    has_survivor = verdicts.survivor >= 0
    keeper = np.where(has_survivor, verdicts.survivor, 0)
    dropped = np.flatnonzero(has_survivor & ~keeps)
    won_by = np.full(count, None, object)
    if len(dropped):
        won_by[dropped] = ranking.won_by(corpus.policy, keeper[dropped], dropped)
    survivor_uid = np.full(count, None, object)
    survivor_uid[has_survivor] = corpus.uid[keeper[has_survivor]]
    rows = pa.table(
        {
            "uid": pa.array(corpus.uid, pa.string()),
            "cluster_id": pa.array(_cluster_ids(corpus, survivor_uid), pa.string()),
            "survivor_uid": pa.array(survivor_uid, pa.string()),
            "kind": pa.array(verdicts.kind, pa.string()),
            "distance": pa.array(verdicts.distance, pa.float32(), from_pandas=True),
            "is_survivor": pa.array(keeps),
            "won_by": pa.array(won_by, pa.string()),
            "is_flat": pa.array(verdicts.is_flat),
            "semantic_cluster": pa.array(verdicts.cluster, pa.int32(), mask=verdicts.cluster < 0),
        }
    )
    return conform(rows, SCHEMA)


def _cluster_ids(corpus: Any, survivor_uid: np.ndarray) -> np.ndarray:
    """Return the survivor's uid; for error images, which have none, the smallest uid with their bytes."""
    ids = survivor_uid.copy()
    errors = np.array([at for at, uid in enumerate(ids) if uid is None], int)
    for sha256 in set(corpus.sha256[errors]):
        same = errors[corpus.sha256[errors] == sha256]
        ids[same] = min(corpus.uid[same])
    return ids


def _counts(table: pa.Table) -> dict[str, int]:
    kinds = [kind or "survivors" for kind in table["kind"].to_pylist()]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return counts | {"flat": sum(table["is_flat"].to_pylist())}


if __name__ == "__main__":
    run_step("dedup", dedup, __doc__)
