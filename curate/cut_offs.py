"""The cut-offs of selection as data, and the one reason for each sample that is not kept."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from curate.config import ScoreConfig, SelectionConfig


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """Drops samples for which `drops` holds; `?` stands for the configured value."""

    reason: str
    setting: str
    drops: str
    score: str | None = None


CUT_OFFS = (
    CutOff(reason="too_small", setting="min_side_px", drops="least(f.width_px, f.height_px) < ?"),
    CutOff(
        reason="extreme_aspect",
        setting="max_aspect",
        drops="greatest(f.width_px, f.height_px)::DOUBLE / least(f.width_px, f.height_px) > ?",
    ),
    CutOff(reason="low_entropy", setting="min_entropy_bits", drops="f.entropy_bits < ?"),
    CutOff(reason="low_sharpness", setting="min_sharpness", drops="f.sharpness < ?"),
    CutOff(reason="unsafe", setting="max_nsfw_prob", drops="r.nsfw_prob > ?", score="nsfw_prob"),
    CutOff(reason="watermark", setting="max_watermark_prob", drops="r.watermark_prob > ?", score="watermark_prob"),
    CutOff(reason="low_aesthetic", setting="min_aesthetic", drops="r.aesthetic < ?", score="aesthetic"),
    CutOff(reason="low_clip_similarity", setting="min_clip_similarity", drops="r.clip_similarity < ?"),
)
"""In this order; the first reason counts."""

BLOCKLIST = "blocklist"


def check(selection: SelectionConfig, score: ScoreConfig) -> None:
    """Raise ValueError where a cut-off is set on a score that no head, or only an untrained one, gives."""
    heads = {head.column: head for head in score.heads}
    for cut in CUT_OFFS:
        if cut.score is None or getattr(selection, cut.setting) is None:
            continue
        told = f"selection.{cut.setting} = {getattr(selection, cut.setting)}: "
        if cut.score not in heads:
            raise ValueError(f"{told}no head in score.heads gives {cut.score}: add one, or set null")
        if heads[cut.score].weights is None:
            raise ValueError(f"{told}its head is untrained and knows nothing of pictures: set null")


def select(
    samples: pa.Table,
    features: pa.Table,
    captions: pa.Table,
    scores: pa.Table,
    duplicates: pa.Table,
    config: SelectionConfig,
) -> pa.Table:
    """Return uid, keep, reject_stage, reject_reason, diversity_cluster and weight, by uid.

    Reasons are looked for in the order of the flow: ingest, embed, blocklist, dedup, captions,
    then the cut-offs; the first one counts.
    """
    active = [(cut, getattr(config, cut.setting)) for cut in CUT_OFFS if getattr(config, cut.setting) is not None]
    cuts = "\n".join(f"WHEN {cut.drops} THEN '{cut.reason}'" for cut, _ in active)
    with duckdb.connect() as database:
        for name, rows in (("s", samples), ("f", features), ("c", captions), ("r", scores), ("d", duplicates)):
            database.register(f"{name}_rows", rows)
        query = _QUERY.format(cuts=cuts)
        return database.sql(query, params=[value for _, value in active]).to_arrow_table()


_QUERY = """
    WITH judged AS (
        SELECT s.uid, d.semantic_cluster AS diversity_cluster,
            CASE WHEN s.status <> 'ok' THEN 'ingest'
                 WHEN f.status <> 'ok' THEN 'embed'
                 WHEN r.blocklist_hit THEN 'score'
                 WHEN NOT d.is_survivor THEN 'dedup'
                 WHEN c.caption_reason IS NOT NULL THEN 'captions'
                 ELSE 'selection' END AS stage,
            CASE WHEN s.status <> 'ok' THEN s.status
                 WHEN f.status <> 'ok' THEN f.status
                 WHEN r.blocklist_hit THEN 'blocklist'
                 WHEN NOT d.is_survivor THEN 'duplicate_' || d.kind
                 WHEN c.caption_reason IS NOT NULL THEN c.caption_reason
                 {cuts}
                 ELSE NULL END AS reason
        FROM s_rows s JOIN f_rows f USING (uid) JOIN c_rows c USING (uid) JOIN r_rows r USING (uid)
            LEFT JOIN d_rows d USING (uid))
    SELECT uid, reason IS NULL AS keep, CASE WHEN reason IS NULL THEN NULL ELSE stage END AS reject_stage,
        reason AS reject_reason, diversity_cluster, 1.0::FLOAT AS weight
    FROM judged ORDER BY uid
"""
