#!/usr/bin/env python3
"""Captions: repaired captions, their language and counts, and the first rule that each one breaks."""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import caption_rules
from curate.clip_tokens import token_counter
from curate.config import CaptionsConfig, CurationConfig
from curate.language import identifier
from curate.personal_data import mask
from curate.profanity import Profanity, lists_of
from curate.recaption import GENERATED, ORIGINAL, is_chosen
from pipelines import caption_counts
from pipelines.command import run_step
from pipelines.recaption import recaption
from pipelines.runner import Fragment, Made, Report, Runner, Step
from pipelines.store import Root, fragments, made_as, manifest, table_file
from schemas.captions import SCHEMA, TEXTS
from schemas.column import conform


def captions(runner: Runner) -> list[Report]:
    """Repair each caption, count equal and near ones over the corpus, then judge each one."""
    config = runner.config
    reports = [] if config.captions.recaption.model is None else [recaption(runner)]
    offered = fragments(runner.root, "samples")
    generated = fragments(runner.root, "recaptions") if reports else {}
    reports.append(
        runner.run(
            Step(table="texts", settings=_of_texts(config.captions), build=_build_texts),
            [
                Fragment(name=name, made_from=[receipt, generated.get(name)], arguments=(name,))
                for name, receipt in offered.items()
            ],
        )
    )
    texts = fragments(runner.root, "texts")
    rows = int(manifest(runner.root, "texts")["rows"])
    reports.append(
        runner.run(
            Step(table="caption_counts", settings=None, build=_build_counts, spreads=True),
            [Fragment(name="all", made_from=texts, arguments=(sorted(texts), rows))] if texts else [],
        )
    )
    counted = {} if not texts else manifest(runner.root, "caption_counts")["fragments"]["all"]["files"]
    lists = [hashlib.sha256(data).hexdigest() for _, data in sorted(lists_of(config.captions).items())]
    wanted = [
        Fragment(
            name=name,
            made_from=[receipt, made_as(counted[table_file("caption_counts", name)]), lists],
            arguments=(name,),
        )
        for name, receipt in texts.items()
    ]
    reports.append(runner.run(Step(table="captions", settings=config.captions, build=_build), wanted))
    return reports


def _of_texts(config: CaptionsConfig) -> dict[str, Any]:
    """Return what shapes a text, the repair's version included; the other settings are cut-offs and judge it only."""
    generated = {"recaption": config.recaption} if config.recaption.model else {}
    return {"repair": caption_rules.REPAIR_VERSION, "personal_data": config.personal_data} | {
        name: {"model": value.model, "share": value.share} for name, value in generated.items()
    }


def _build_texts(config: CurationConfig) -> Any:
    root = Root(config.root)

    def read(name: str) -> Made:
        rows = root.read_table(table_file("samples", name), ["uid", "caption"])
        found = rows["caption"].to_pylist()
        source = [ORIGINAL] * len(rows)
        if config.captions.recaption.model is not None:
            new = root.read_table(table_file("recaptions", name), ["uid", "caption_generated"])
            assert new["uid"] == rows["uid"], f"{name}: samples and recaptions differ"
            for at, (uid, text) in enumerate(
                zip(*(new[column].to_pylist() for column in new.column_names), strict=True)
            ):
                if text and is_chosen(uid, config.captions.recaption.share):
                    found[at], source[at] = text, GENERATED
        return Made(rows=read_texts(rows["uid"], found, source, config.captions))

    return read


def read_texts(uid: pa.ChunkedArray, offered: list[str | None], source: list[str], config: CaptionsConfig) -> pa.Table:
    """Return rows of texts."""
    identify, count_tokens = identifier(), token_counter()
    repaired = [caption_rules.repair(caption) for caption in offered]
    masked = [text and mask(text) for text in repaired]
    personal = [text != without for text, without in zip(repaired, masked, strict=True)]
    texts = masked if config.personal_data == "mask" else repaired
    languages = [identify(text) if text else (None, None) for text in texts]
    return conform(
        pa.table(
            {
                "uid": uid,
                "caption_clean": pa.array(texts, pa.string()),
                "caption_source": source,
                "personal_data": pa.array(personal, pa.bool_()),
                "language": pa.array([language for language, _ in languages], pa.string()),
                "language_prob": pa.array([probability for _, probability in languages], pa.float32()),
                "num_words": pa.array([len(text.split()) if text else 0 for text in texts], pa.int32()),
                "num_clip_tokens": pa.array([count_tokens(text or "") for text in texts], pa.int32()),
                "equal_key": pa.array([text and caption_rules.equal_key(text) for text in texts], pa.uint64()),
                "near_key": pa.array([text and caption_rules.near_key(text) for text in texts], pa.uint64()),
            }
        ),
        TEXTS,
    )


def _build_counts(config: CurationConfig) -> Any:
    return partial(caption_counts.count, config)


def _build(config: CurationConfig) -> Any:
    root = Root(config.root)
    lists = {name: data.decode("utf-8").splitlines() for name, data in lists_of(config.captions).items()}
    profanity = Profanity(lists, config.captions.profanity_everywhere, config.captions.profanity_allowed)

    def judge(name: str) -> Made:
        texts = root.read_table(table_file("texts", name))
        counts = root.read_table(table_file("caption_counts", name))
        assert texts["uid"] == counts["uid"], f"{name}: texts and caption_counts differ"
        reasons = judge_texts(texts, counts, config.captions, profanity)
        rows = texts.drop_columns(["equal_key", "near_key"])
        for column in ("caption_count", "near_caption_count"):
            rows = rows.append_column(column, counts[column])
        rows = conform(rows.append_column("caption_reason", pa.array(reasons, pa.string())), SCHEMA)
        told = [reason or "fine" for reason in reasons]
        return Made(
            rows=rows.replace_schema_metadata(SCHEMA.metadata), counts={r: told.count(r) for r in sorted(set(told))}
        )

    return judge


def judge_texts(texts: pa.Table, counts: pa.Table, config: CaptionsConfig, profanity: Profanity) -> list[str | None]:
    """Return the first reason against each row of texts, or None."""
    columns = [texts[name].to_pylist() for name in _JUDGED] + [
        counts[name].to_pylist() for name in counts.column_names[1:]
    ]
    return [
        caption_rules.first_reason(
            caption_rules.describe(
                text=text or "",
                language=language,
                language_prob=probability or 0.0,
                clip_tokens=tokens,
                had_personal_data=personal,
                equal_count=count,
                near_count=near,
            ),
            config,
            profanity,
        )
        for text, language, probability, tokens, personal, count, near in zip(*columns, strict=True)
    ]


_JUDGED = ("caption_clean", "language", "language_prob", "num_clip_tokens", "personal_data")


if __name__ == "__main__":
    run_step("captions", captions, __doc__)
