#!/usr/bin/env python3
"""Score: every head on every stored embedding, and the blocklists.

`python pipelines/score.py calibrate --labels FILE.csv --score COLUMN` says what each cut-off finds.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import blocklist, hashes, heads
from curate.config import CurationConfig, HeadSpec, ScoreConfig
from curate.weights import registered
from pipelines.command import run_step
from pipelines.preflight import check_head_weights
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, check_fragments, fragments, stale, table_file
from schemas import scores
from schemas.column import column, conform

OF_FEATURES = ("uid", "pdq256", "pdq256_turned", "pdq_quality", "embedding", "clip_similarity")
OF_SAMPLES = ("uid", "sha256", "shard", "offset", "num_bytes")


def score(runner: Runner) -> list[Report]:
    """Score every embedding, and match every hash."""
    config = runner.config
    check_head_weights(config)
    samples, features = fragments(runner.root, "samples"), fragments(runner.root, "features")
    check_fragments(runner.root, samples, "features", dry_run=runner.dry_run)
    about = {"blocklists": fingerprints(config.score), "heads": [_said(spec) for spec in config.score.heads]}
    wanted = [
        Fragment(name=name, made_from=[receipt, features[name], about], arguments=(name,))
        for name, receipt in samples.items()
    ]
    models = tuple(f"{spec.column}: {revision(spec)}" for spec in config.score.heads)
    return [runner.run(Step(table="scores", settings=config.score, build=_build, models=models), wanted)]


def fingerprints(config: ScoreConfig) -> dict[str, list[str]]:
    """Return the sha256 of each list, so that a list that changed in its place is matched again."""
    lists = blocklist.lists_of(config)
    return {kind: [hashlib.sha256(blocklist.read(path)).hexdigest() for path in lists[kind]] for kind in lists}


def revision(spec: HeadSpec) -> str:
    """Return the revision of a head's file with its checksum."""
    if spec.weights is None:
        return "UNTRAINED random projection, knows nothing of pictures"
    weight = registered(spec.weights)
    return f"{spec.weights} at {weight.revision}, sha256 {weight.sha256 or 'not recorded'}"


def head_field(spec: HeadSpec) -> pa.Field:
    """Return a head's column with its meaning, unit, range, direction, model and revision."""
    if spec.weights is None:
        about = {"unit": "none", "range": f"{spec.low:g}..{spec.high:g}", "direction": "none"}
        return column(spec.column, pa.float32(), "no meaning", model=spec.column, revision=revision(spec), **about)
    network = heads.network_of(spec.weights)
    return column(
        spec.column,
        pa.float32(),
        network.meaning,
        unit=network.unit,
        range=f"{network.low:g}..{network.high:g}",
        direction=network.direction,
        model=f"{spec.weights} on embeddings of {network.clip}",
        revision=revision(spec),
    )


def _said(spec: HeadSpec) -> list[str]:
    said = head_field(spec).metadata
    return sorted(f"{key.decode()}: {value.decode()}" for key, value in said.items())


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)
    listed = blocklist.load(config.score)
    index = blocklist.pdq_list(listed["pdq"])
    said = [head_field(spec) for spec in config.score.heads]
    built: dict[int, heads.Scorer] = {}

    def rate(name: str) -> Made:
        features = root.read_table(table_file("features", name), OF_FEATURES)
        samples = root.read_table(table_file("samples", name), OF_SAMPLES)
        if samples["uid"] != features["uid"]:
            raise stale(table_file("features", name))
        match = matches(root, samples, features, listed, index, config.score.blocklist_radius_bits)
        hit = match.is_valid().to_numpy(zero_copy_only=False)
        dim = features.schema.field("embedding").type.list_size
        if dim not in built:
            built[dim] = heads.Scorer([heads.load_head(spec, dim) for spec in config.score.heads])
        columns = head_columns(features["embedding"], built[dim], hit) | similarities(samples, features, hit)
        columns |= {"uid": features["uid"], "blocklist_hit": pa.array(hit), "blocklist_match": match}
        schema = scores.schema(said, features.schema.field("clip_similarity"))
        rows = conform(_with_absent(columns, len(features)), schema)
        return Made(rows=rows, counts={"blocklist_hit": int(hit.sum())})

    return rate


def head_columns(embedding: pa.ChunkedArray, scorer: heads.Scorer, hit: np.ndarray) -> dict[str, pa.Array]:
    """Return a score of each head for each embedding; null without one, and for hits of a blocklist."""
    array = embedding.combine_chunks()
    there = array.is_valid().to_numpy(zero_copy_only=False)
    flat = (array if there.all() else array.drop_null()).flatten().to_numpy(zero_copy_only=False)
    embeddings_BD = flat.reshape(-1, array.type.list_size)
    columns = {}
    for name, scored in scorer.score(embeddings_BD).items():
        values = np.zeros(len(array), np.float32)
        values[there] = scored
        columns[name] = pa.array(values, mask=~there | hit)
    return columns


def similarities(samples: pa.Table, features: pa.Table, hit: np.ndarray) -> dict[str, pa.Array]:
    """Return clip_similarity, and its best and mean over the captions of the same image file; null for hits."""
    cosine = features["clip_similarity"].combine_chunks().cast(pa.float32())
    there = cosine.is_valid().to_numpy(zero_copy_only=False)
    values = cosine.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    keys = samples["sha256"].combine_chunks().dictionary_encode()
    group = keys.indices.fill_null(len(keys.dictionary)).to_numpy(zero_copy_only=False)
    count = np.bincount(group[there], minlength=len(keys.dictionary) + 1)
    total = np.bincount(group[there], values[there], minlength=len(keys.dictionary) + 1)
    best = np.full(len(keys.dictionary) + 1, -np.inf)
    np.maximum.at(best, group[there], values[there])
    absent = hit | (count[group] == 0)
    return {
        "clip_similarity": pa.array(values.astype(np.float32), mask=~there | hit),
        "clip_similarity_best": pa.array(np.where(absent, 0, best[group]).astype(np.float32), mask=absent),
        "clip_similarity_mean": pa.array((total / np.maximum(count, 1))[group].astype(np.float32), mask=absent),
    }


def matches(
    root: Root,
    samples: pa.Table,
    features: pa.Table,
    listed: Mapping[str, frozenset[bytes]],
    index: blocklist.PdqList,
    radius_bits: int,
) -> pa.Array:
    """Return the listed hash of each sample as kind:hex, or null."""
    found: list[str | None] = [None] * len(samples)
    if listed["pdq"]:
        for at, entry in enumerate(_pdq_matches(features, index, radius_bits)):
            if entry >= 0:
                found[at] = f"pdq:{index.words[entry].tobytes().hex()}"
    wanted = {kind: {entry.hex() for entry in listed[kind]} for kind in ("md5", "sha1", "sha256") if listed[kind]}
    if wanted:
        for at, row in enumerate(samples.to_pylist()):
            for kind, value in _sums(root, row, wanted).items():
                if value in wanted[kind]:
                    found[at] = f"{kind}:{value}"
    return pa.array(found, pa.string())


def _sums(root: Root, row: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, str]:
    """Return a sample's sums of the wanted kinds; its bytes are read only for those that no table has."""
    sums = {"sha256": row["sha256"]} if "sha256" in kinds and row["sha256"] else {}
    unknown = [kind for kind in kinds if kind != "sha256"]
    if unknown and row["shard"] is not None:
        data = root.read(row["shard"], row["offset"], row["num_bytes"])
        sums |= {kind: hashlib.new(kind, data, usedforsecurity=False).hexdigest() for kind in unknown}
    return sums


def _pdq_matches(features: pa.Table, index: blocklist.PdqList, radius_bits: int) -> np.ndarray:
    there = features["pdq256"].is_valid().to_numpy()
    rows = features.filter(pa.array(there))
    own = np.frombuffer(b"".join(rows["pdq256"].to_pylist()), np.uint8).reshape(-1, 1, 32)
    turned = np.frombuffer(b"".join(rows["pdq256_turned"].to_pylist()), np.uint8).reshape(
        len(own), len(hashes.TURNS), 32
    )
    found = np.full(len(features), -1, np.int32)
    quality = rows["pdq_quality"].to_numpy()
    found[there] = blocklist.pdq_matches(np.concatenate([own, turned], axis=1), quality, index, radius_bits)
    return found


def _with_absent(columns: dict[str, Any], count: int) -> pa.Table:
    """Return the table, a column that no head fills being null."""
    absent = {field.name: pa.nulls(count, field.type) for field in scores.SCHEMA if field.name not in columns}
    return pa.table(columns | absent)


if __name__ == "__main__":
    if sys.argv[1:2] == ["calibrate"]:
        from pipelines.calibrate import calibrate

        calibrate(sys.argv[2:])
    else:
        run_step("score", score, __doc__)
