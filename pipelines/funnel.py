"""The funnel: rows in, dropped at each stage with reasons, rows out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.store import Root, fragments, manifest, table_file

STAGES = ("ingest", "embed", "score", "dedup", "captions", "selection")


def funnel(root: Root) -> dict[str, Any]:
    """Return rows in, drops by stage and reason, and rows kept, from the selection table."""
    drops: Counter[tuple[str, str]] = Counter()
    rows = kept = 0
    for name in fragments(root, "selection"):
        table = root.read_table(table_file("selection", name), ["keep", "reject_stage", "reject_reason"])
        rows += len(table)
        pairs = zip(table["reject_stage"].to_pylist(), table["reject_reason"].to_pylist(), strict=True)
        drops.update((stage, reason) for stage, reason in pairs if stage is not None)
        kept += sum(table["keep"].to_pylist())
    by_stage = {
        stage: {reason: count for (at, reason), count in sorted(drops.items()) if at == stage} for stage in STAGES
    }
    return {"rows_in": rows, "drops": by_stage, "rows_kept": kept}


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
    told += [f"note: embeddings by {model}; duplicate_semantic rests on them" for model in _untrained(root, "features")]
    told += [f"note: {model}; no cut-off uses it" for model in _untrained(root, "scores")]
    return told


def _untrained(root: Root, table: str) -> list[str]:
    return [model for model in manifest(root, table)["models"] if "UNTRAINED" in model]
