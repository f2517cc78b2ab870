"""The funnel as the page shows it: drops by stage and reason, by source, language or host; the speed of each step."""

from __future__ import annotations

from typing import Any

from pipelines.dashboard_server.index import Index
from pipelines.funnel import STAGES
from pipelines.store import MADE_BY, MANIFEST

SPLITS = {"source": "source", "language": "language", "host": "host"}
MOST_SHOWN = 12
POLICY_AT_INGEST = ("opt_out_", "license_not_allowed", "not_requested", "host_paused", "repeated")
DEFECTS_LATER = ("duplicate_error_image", "caption_missing")


def is_defect(stage: str, reason: str) -> bool:
    """Return whether a sample is broken or cannot be had; every other drop is a choice of the settings."""
    if stage in ("ingest", "embed"):
        return not reason.startswith(POLICY_AT_INGEST)
    return reason in DEFECTS_LATER


def funnel(index: Index) -> dict[str, Any]:
    """Return rows in, drops by stage and reason, rows kept, and rows that no step has decided on yet."""
    counted = index.rows("SELECT stage, reason, keep, count(*) FROM board GROUP BY ALL")
    rows_in = sum(row[3] for row in counted)
    stages, left = [], rows_in
    known = [*STAGES, *sorted({row[0] for row in counted if row[0] and row[0] not in STAGES})]
    for stage in known:
        reasons: dict[str, int] = {}
        for at, reason, _, count in counted:
            if at == stage:
                reasons[reason] = reasons.get(reason, 0) + count
        left -= sum(reasons.values())
        listed = [
            {"reason": reason, "rows": count, "is_defect": is_defect(stage, reason)}
            for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ]
        stages.append({"stage": stage, "rows": sum(reasons.values()), "left": left, "reasons": listed})
    kept = sum(count for _, _, keep, count in counted if keep)
    return {"rows_in": rows_in, "stages": stages, "rows_kept": kept, "undecided": left - kept}


def split(index: Index, by: str) -> dict[str, Any]:
    """Return kept and dropped rows by stage for the most frequent values of a column; the others are added up."""
    column = SPLITS[by]
    counted = index.rows(
        f"""WITH common AS (SELECT {column} AS value FROM board WHERE {column} <> '' GROUP BY value
            ORDER BY count(*) DESC, value LIMIT ?)
        SELECT CASE WHEN {column} IN (FROM common) THEN {column} END AS value,
            CASE WHEN keep THEN 'kept' ELSE coalesce(stage, 'undecided') END AS outcome, count(*)
        FROM board GROUP BY ALL""",
        [MOST_SHOWN],
    )
    values: dict[str | None, dict[str, int]] = {}
    for value, outcome, count in counted:
        values.setdefault(value, {})[outcome] = count
    listed = [{"value": value, "rows": sum(found.values()), "outcomes": found} for value, found in values.items()]
    named = {name for found in values.values() for name in found} - {"kept", "undecided"}
    stages = [*STAGES, *sorted(named - set(STAGES))]
    return {
        "by": by,
        "stages": stages,
        "values": sorted(listed, key=lambda item: (item["value"] is None, -item["rows"], item["value"])),
    }


def steps(index: Index) -> list[dict[str, Any]]:
    """Return seconds, rows and rows/s of each table that is complete, as its last run recorded them."""
    found = []
    for table, step in MADE_BY.items():
        said = index.root.read_json(f"tables/{table}/{MANIFEST}")
        if said is None or "seconds" not in said:
            continue
        seconds, made = said["seconds"], said.get("fragments_made", 0)
        whole = made == len(said["fragments"]) and seconds > 0
        row = {"table": table, "step": step, "rows": said["rows"], "seconds": seconds, "fragments_made": made}
        found.append(row | {"rows_per_s": said["rows"] / seconds if whole else None})
    return found
