"""The funnel: rows in, dropped at each stage with reasons, rows out; and how evenly they lie in their clusters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.selection import FIGURES
from pipelines.store import Root, fragments, manifest

STAGES = ("ingest", "embed", "score", "dedup", "captions", "selection")


def funnel(root: Root) -> dict[str, Any]:
    """Return rows in, drops by stage and first reason, rows kept, and every reason's rows, from the selection table."""
    drops: Counter[tuple[str, str]] = Counter()
    found: Counter[str] = Counter()
    rows = kept = 0
    for name in fragments(root, "selection"):
        for table in _tables(root, name):
            rows, kept = rows + len(table), kept + (pc.sum(table["keep"]).as_py() or 0)
            drops.update(_drops(table))
            every = pc.value_counts(pc.list_flatten(table["reasons"]).combine_chunks()).to_pylist()
            found.update({one["values"]: one["counts"] for one in every})
    by_stage = {
        stage: {reason: count for (at, reason), count in sorted(drops.items()) if at == stage} for stage in STAGES
    }
    diversity = root.read_json(FIGURES)
    return {
        "rows_in": rows,
        "drops": by_stage,
        "rows_kept": kept,
        "all_reasons": dict(sorted(found.items())),
        "diversity": diversity,
    }


def _tables(root: Root, fragment: str) -> list[pa.Table]:
    files = manifest(root, "selection")["fragments"][fragment]["files"]
    names = ["keep", "reject_stage", "reject_reason", "reasons"]
    return [root.read_table(file, names) for file in sorted(files) if file.endswith(".parquet")]


def _drops(table: pa.Table) -> dict[tuple[str, str], int]:
    dropped = table.filter(pc.invert(table["keep"]))
    counted = dropped.group_by(["reject_stage", "reject_reason"]).aggregate([([], "count_all")]).to_pylist()
    return {(one["reject_stage"], one["reject_reason"]): one["count_all"] for one in counted}


def lines(root: Root, found: dict[str, Any]) -> list[str]:
    """Return the funnel for people, with what untrained models had to do with it."""
    told = [f"{'rows in':<34}{found['rows_in']:>10,}"]
    left = found["rows_in"]
    for stage in STAGES:
        reasons = found["drops"][stage]
        left -= sum(reasons.values())
        told.append(f"  {stage:<10} drops {sum(reasons.values()):>8,}{'':<9}{left:>10,}")
        told += [f"    {reason:<28}{count:>10,}" for reason, count in reasons.items()]
    told.append(f"{'rows kept':<34}{found['rows_kept']:>10,}")
    told += _diversity(found["diversity"])
    if manifest(root, "duplicates")["settings"]["semantic_eps"] is not None:
        models = _untrained(root, "features")
        told += [f"note: embeddings by {model}; duplicate_semantic rests on them" for model in models]
    told += [f"note: {model}; no cut-off uses it" for model in _untrained(root, "scores")]
    return told


def _diversity(said: dict[str, Any] | None) -> list[str]:
    """Return what a cap, a temperature or weights did to the clusters; nothing where nothing was asked."""
    if said is None or said["before"] == said["after"]:
        return []
    return [
        f"  clusters {when:<8}{one['samples']:>10,} samples, {one['effective_clusters']:,.1f} effective of"
        f" {one['clusters']:,} clusters, largest {one['largest_share']:.1%}"
        for when, one in said.items()
    ]


def _untrained(root: Root, table: str) -> list[str]:
    return [model for model in manifest(root, table)["models"] if "UNTRAINED" in model]
