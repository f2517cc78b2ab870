#!/usr/bin/env python3
"""Captions: repaired captions, their language and counts, and the first rule that each one breaks."""

from __future__ import annotations

import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import caption_rules
from curate.config import CaptionsConfig, CurationConfig
from pipelines.command import run_step
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, fragments, table_file
from schemas.captions import SCHEMA

COUNTS_SCHEMA = pa.schema([("text_hash", pa.string()), ("count", pa.int64())])


def captions(runner: Runner) -> list[Report]:
    """Count equal captions over the corpus, then judge each one."""
    offered = fragments(runner.root, "samples")
    counted = runner.run(
        Step(table="caption_counts", settings=None, build=_build_counts),
        [Fragment(name="all", made_from=offered, arguments=(sorted(offered),))] if offered else [],
    )
    counts = fragments(runner.root, "caption_counts")
    judged = runner.run(
        Step(table="captions", settings=runner.config.captions, build=_build),
        [Fragment(name=name, made_from=[receipt, counts], arguments=(name,)) for name, receipt in offered.items()],
    )
    return [counted, judged]


def _build_counts(config: CurationConfig) -> Any:
    """Count captions that occur more than once, case and spaces apart. DuckDB spills to disk."""
    root = Root(config.root)

    def count(names: list[str]) -> Made:
        with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
            database.execute("CREATE TABLE texts (text_hash VARCHAR)")
            for name in names:
                rows = root.read_table(table_file("samples", name), ["caption"])
                database.register("rows", rows)
                database.execute(f"INSERT INTO texts SELECT {_TEXT_HASH} FROM rows WHERE caption IS NOT NULL")
                database.unregister("rows")
            counted = database.sql(
                "SELECT text_hash, count(*) AS count FROM texts GROUP BY text_hash "
                "HAVING count(*) > 1 ORDER BY text_hash"
            ).to_arrow_table()
        return Made(rows=counted.cast(COUNTS_SCHEMA))

    return count


_TEXT_HASH = r"md5(lower(trim(regexp_replace(caption, '\s+', ' ', 'g'))))"


def _build(config: CurationConfig) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify
    tokenize = _tokenizer()
    root = Root(config.root)

    def judge(name: str) -> Made:
        rows = root.read_table(table_file("samples", name), ["uid", "caption"])
        counts = _counts(root, rows)
        judged = [
            judge_caption(uid, caption, count, config.captions, identify, tokenize)
            for uid, caption, count in zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), counts, strict=True)
        ]
        return Made(rows=pa.Table.from_pylist(judged, schema=SCHEMA), counts=_reasons(judged))

    return judge


def judge_caption(
    uid: str, caption: str | None, count: int, config: CaptionsConfig, identify: Any, tokenize: Any
) -> dict[str, Any]:
    """Return one row of captions."""
    text = caption_rules.clean(caption, config)
    language, probability = identify(text) if text else (None, None)
    reason = (
        caption_rules.first_reason(text, config)
        or caption_rules.language_reason(language, float(probability or 0), config)
        or caption_rules.count_reason(count, config)
    )
    return {
        "uid": uid,
        "caption_clean": text,
        "language": language,
        "language_prob": None if probability is None else float(probability),
        "num_words": len((text or "").split()),
        "num_clip_tokens": 2 + len(tokenize(text)) if text else 2,
        "caption_count": count,
        "caption_reason": reason,
    }


def _counts(root: Root, rows: pa.Table) -> list[int]:
    """Return how often each caption occurs in the corpus; 1 for a missing one."""
    counted = root.read_table(table_file("caption_counts", "all"))
    with duckdb.connect() as database:
        database.register("rows", rows.append_column("position", pa.array(range(len(rows)))))
        database.register("counted", counted)
        found = database.execute(
            f"SELECT coalesce(count, 1) FROM (SELECT position, {_TEXT_HASH} AS text_hash FROM rows) "
            "LEFT JOIN counted USING (text_hash) ORDER BY position"
        ).fetchall()
    return [row[0] for row in found]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    """Return CLIP's byte-pair encoding without end marks, padding or truncation."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer().encode


def _reasons(judged: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in judged:
        reason = row["caption_reason"] or "fine"
        counts[reason] = counts.get(reason, 0) + 1
    return counts


if __name__ == "__main__":
    run_step("captions", captions, __doc__)
