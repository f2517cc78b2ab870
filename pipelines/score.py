#!/usr/bin/env python3
"""Score: every head on every stored embedding, and the blocklists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import blocklist, heads
from curate.config import CurationConfig, HeadSpec
from pipelines.command import run_step
from pipelines.preflight import check_head_weights
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, fragments, table_file
from schemas.column import conform, with_model
from schemas.scores import SCHEMA


def score(runner: Runner) -> list[Report]:
    """Score every embedding."""
    config = runner.config
    check_head_weights(config)
    samples = fragments(runner.root, "samples")
    wanted = [
        Fragment(name=name, made_from=[samples[name], receipt], arguments=(name,))
        for name, receipt in fragments(runner.root, "features").items()
    ]
    models = tuple(f"{spec.column}: {_revision(spec)}" for spec in config.score.heads)
    return [runner.run(Step(table="scores", settings=config.score, build=_build, models=models), wanted)]


def _revision(spec: HeadSpec) -> str:
    return spec.weights or "UNTRAINED random projection, knows nothing of pictures"


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)
    listed_sha256 = _listed(config.score.blocklists_sha256)
    listed_pdq = _listed(config.score.blocklists_pdq)
    schema = SCHEMA
    for spec in config.score.heads:
        if spec.column in SCHEMA.names:
            schema = with_model(schema, [spec.column], spec.column, _revision(spec))
    built: dict[int, list[heads.Head]] = {}

    def rate(name: str) -> Made:
        features = root.read_table(
            table_file("features", name), ["uid", "pdq256", "pdq_quality", "embedding", "clip_similarity"]
        )
        samples = root.read_table(table_file("samples", name), ["uid", "sha256"])
        assert samples["uid"] == features["uid"], f"{name}: samples and features differ"
        dim = features.schema.field("embedding").type.list_size
        if dim not in built:
            built[dim] = [heads.load_head(spec, dim) for spec in config.score.heads]
        columns = _head_columns(features, built[dim], config)
        hit = _sha256_hits(samples["sha256"], listed_sha256)
        hit |= _pdq_hits(features, listed_pdq, config.score.blocklist_radius_bits)
        columns |= {
            "uid": features["uid"],
            "clip_similarity": features["clip_similarity"],
            "blocklist_hit": pa.array(hit),
        }
        return Made(
            rows=conform(_with_absent(columns, len(features)), schema), counts={"blocklist_hit": int(hit.sum())}
        )

    return rate


def _head_columns(features: pa.Table, built: list[heads.Head], config: CurationConfig) -> dict[str, Any]:
    embedding = features["embedding"].combine_chunks()
    there = embedding.is_valid().to_numpy(zero_copy_only=False)
    dim = embedding.type.list_size
    embeddings_BD = embedding.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    columns = {}
    for spec, head in zip(config.score.heads, built, strict=True):
        values = np.full(len(features), np.nan, np.float32)
        values[there] = heads.scores(head, spec, embeddings_BD)
        columns[spec.column] = pa.array(values, from_pandas=True)
    return columns


def _with_absent(columns: dict[str, Any], count: int) -> pa.Table:
    """Return the table, a column that no head fills being null."""
    absent = {field.name: pa.nulls(count, field.type) for field in SCHEMA if field.name not in columns}
    return pa.table(columns | absent)


def _listed(paths: tuple[str, ...]) -> frozenset[bytes]:
    found: frozenset[bytes] = frozenset()
    for path in paths:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            found |= blocklist.parse(file, path)
    return found


def _sha256_hits(hashes: pa.ChunkedArray, listed: frozenset[bytes]) -> np.ndarray:
    wanted = {entry.hex() for entry in listed}
    return np.array([value in wanted for value in hashes.to_pylist()], bool)


def _pdq_hits(features: pa.Table, listed: frozenset[bytes], radius_bits: int) -> np.ndarray:
    there = np.flatnonzero(features["pdq256"].is_valid().to_numpy())
    hits = np.zeros(len(features), bool)
    raw = b"".join(value for value in features["pdq256"].to_pylist() if value is not None)
    hashes = np.frombuffer(raw, np.uint8).reshape(-1, 32)
    quality = features["pdq_quality"].drop_null().to_numpy()
    hits[there] = blocklist.pdq_hits(hashes, quality, listed, radius_bits)
    return hits


if __name__ == "__main__":
    run_step("score", score, __doc__)
