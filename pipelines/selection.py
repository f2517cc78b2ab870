#!/usr/bin/env python3
"""Selection: keep or drop each sample, with exactly one reason. The only step that knows cut-offs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.config import CurationConfig
from curate.cut_offs import check, select
from pipelines.command import run_step
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, fragments, table_file
from schemas.column import conform
from schemas.selection import SCHEMA

JOINED = ("samples", "features", "captions", "scores")
COLUMNS = {
    "samples": ["uid", "status"],
    "features": ["uid", "status", "width_px", "height_px", "entropy_bits", "sharpness"],
    "captions": ["uid", "caption_reason"],
    "scores": ["uid", "aesthetic", "nsfw_prob", "watermark_prob", "clip_similarity", "blocklist_hit"],
    "duplicates": ["uid", "is_survivor", "kind", "semantic_cluster"],
}


def selection(runner: Runner) -> list[Report]:
    """Apply the cut-offs to every sample."""
    config = runner.config
    check(config.selection, config.score)
    tables = {table: fragments(runner.root, table) for table in JOINED}
    duplicates = fragments(runner.root, "duplicates")
    wanted = [
        Fragment(name=name, made_from=[[tables[table][name] for table in JOINED], duplicates], arguments=(name,))
        for name in tables["samples"]
    ]
    return [runner.run(Step(table="selection", settings=config.selection, build=_build), wanted)]


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)

    def choose(name: str) -> Made:
        tables = {table: root.read_table(table_file(table, name), COLUMNS[table]) for table in COLUMNS}
        chosen = conform(select(**tables, config=config.selection), SCHEMA)
        assert len(chosen) == len(tables["samples"]), f"{name}: the tables differ"
        reasons = [reason or "kept" for reason in chosen["reject_reason"].to_pylist()]
        return Made(rows=chosen, counts={reason: reasons.count(reason) for reason in sorted(set(reasons))})

    return choose


if __name__ == "__main__":
    run_step("selection", selection, __doc__)
