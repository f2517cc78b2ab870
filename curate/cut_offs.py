"""The cut-offs of selection as data: a reason, a column, and the side on which a sample is dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from curate.bad_input import BadInput
from curate.config import DedupConfig, ScoreConfig, SelectionConfig
from schemas import captions, features, scores

DERIVED = {"shorter_side_px": "features", "aspect": "features", "caption_chars": "captions"}
"""What is computed from several columns, or from text, and the table it comes from."""
OF_HEADS = ("aesthetic", "nsfw_prob", "watermark_prob")
"""Columns of scores that are there whether a head fills them or not."""
OTHER_LANGUAGE = "other_language"
CLUSTER_CAP = "cluster_cap"
BLOCKLIST = "blocklist"


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """Drops samples whose value lies on one side of the configured one; a sample without a value stays."""

    reason: str
    setting: str
    column: str
    drops: Literal["below", "above"]


CUT_OFFS = (
    CutOff(reason="too_small", setting="min_side_px", column="shorter_side_px", drops="below"),
    CutOff(reason="extreme_aspect", setting="max_aspect", column="aspect", drops="above"),
    CutOff(reason="few_words", setting="min_caption_words", column="num_words", drops="below"),
    CutOff(reason="few_characters", setting="min_caption_chars", column="caption_chars", drops="below"),
    CutOff(reason="low_entropy", setting="min_entropy_bits", column="entropy_bits", drops="below"),
    CutOff(reason="low_sharpness", setting="min_sharpness", column="sharpness", drops="below"),
    CutOff(reason="unsafe", setting="max_nsfw_prob", column="nsfw_prob", drops="above"),
    CutOff(reason="watermark", setting="max_watermark_prob", column="watermark_prob", drops="above"),
    CutOff(reason="low_aesthetic", setting="min_aesthetic", column="aesthetic", drops="below"),
    CutOff(reason="low_clip_similarity", setting="min_clip_similarity", column="clip_similarity", drops="below"),
)
"""In this order; the first reason counts. Behind them come `thresholds`, in their own order."""

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "datacomp_basic": {
        "min_side_px": 200,
        "max_aspect": 3.0,
        "min_caption_words": 3,
        "min_caption_chars": 6,
        "languages": ("en",),
    },
}
"""datacomp_basic: Gadre et al., DataComp (2023), basic filtering, as `load_uids_with_basic_filter_helper` of its
baselines has it: English, more than 2 words, more than 5 characters, shorter side >= 200 px, aspect <= 3."""


def resolved(selection: SelectionConfig) -> SelectionConfig:
    """Return the settings with what the preset sets."""
    return replace(selection, **PRESETS[selection.preset], preset="none")


def cut_offs(selection: SelectionConfig) -> list[tuple[CutOff, float | None]]:
    """Return all cut-offs with their values, in order; None is off. Thresholds have both sides."""
    named: list[tuple[CutOff, float | None]] = [(cut, getattr(selection, cut.setting)) for cut in CUT_OFFS]
    for said in selection.thresholds:
        for side, value, word in (("below", said.min, "low"), ("above", said.max, "high")):
            reason = f"{word}_{said.column}"
            named.append((CutOff(reason=reason, setting="thresholds", column=said.column, drops=side), value))  # type: ignore[arg-type]
    return named


def active(selection: SelectionConfig) -> list[tuple[CutOff, float]]:
    """Return the cut-offs that are on, with their values, in order."""
    return [(cut, value) for cut, value in cut_offs(selection) if value is not None]


def dropped(cut: CutOff, value: float, measured: np.ndarray) -> np.ndarray:
    """Return which samples a cut-off drops, bool (N,); NaN is none. The value is rounded as the column is."""
    return measured < value if cut.drops == "below" else measured > value


def columns(selection: SelectionConfig) -> dict[str, str]:
    """Return the columns of numbers that the settings ask for, each with the setting that does."""
    asked = {cut.column: f"selection.{cut.setting}" for cut, _ in active(selection)}
    asked |= {said.column: "selection.quantiles" for said in selection.quantiles}
    asked |= {said.column: "selection.top_fractions" for said in selection.top_fractions}
    return asked | {column: setting for column, setting in _ranking(selection)}


def _ranking(selection: SelectionConfig) -> list[tuple[str, str]]:
    by = [(said.rank_by, "selection.quotas") for said in selection.quotas]
    if selection.diversity is not None:
        by.append((selection.diversity.rank_by, "selection.diversity"))
    return [(column, setting) for column, setting in by if column is not None]


def table_of(column: str, score: ScoreConfig) -> str | None:
    """Return the table that a column of numbers is in; None where there is none of that name."""
    if column in DERIVED:
        return DERIVED[column]
    known = {
        "scores": {head.column for head in score.heads} | set(_numbers(scores.SCHEMA)),
        "captions": _numbers(captions.SCHEMA),
        "features": _numbers(features.schema(1)),
    }
    return next((table for table, names in known.items() if column in names), None)


def _numbers(schema: Any) -> set[str]:
    return {field.name for field in schema if str(field.type).startswith(("int", "float", "half", "double"))}


def check(selection: SelectionConfig, score: ScoreConfig, dedup: DedupConfig | None = None) -> None:
    """Raise ValueError for a column that is not there, a score that no trained head gives, or clusters without any."""
    heads = {head.column: head for head in score.heads}
    for column, setting in columns(resolved(selection)).items():
        if column in heads and heads[column].weights is None:
            raise BadInput(f"{setting}: the head of {column} is untrained and knows nothing of pictures: set null")
        if column in OF_HEADS and column not in heads:
            raise BadInput(f"{setting}: no head in score.heads gives {column}: add one, or set null")
        if table_of(column, score) is None:
            raise BadInput(f"{setting}: no column of numbers is called {column!r}: see docs/selection_and_export.md")
    if selection.diversity is not None and dedup is not None and dedup.semantic_eps is None:
        raise BadInput("selection.diversity: dedup.semantic_eps = None makes no clusters: set it, or diversity: null")
