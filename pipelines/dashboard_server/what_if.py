"""What other cut-offs would do: exact counts all the way down the funnel, and how full each aspect bucket gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from curate.config_file import as_dict
from pipelines.dashboard_server.cut_off_list import limits, recorded, with_limits
from pipelines.dashboard_server.distributions import spans
from pipelines.dashboard_server.filters import number
from pipelines.dashboard_server.index import Index

OFF = "off"
SLIDER_TAIL = 0.001
"""Share of the values on each side that a slider does not reach; a typed value does."""
FOLDER = "what_if"


def sliders(index: Index) -> list[dict[str, Any]]:
    """Return each cut-off with its recorded value and the span in which nearly all values lie."""
    named = limits(index.settings)
    found = []
    spans_of = spans(index, [limit.value_sql for limit in named], SLIDER_TAIL, "meets_cut_offs")
    for limit, (lowest, highest, low, high, rows, _) in zip(named, spans_of, strict=True):
        said = {"setting": limit.setting, "reason": limit.reason, "meaning": limit.meaning, "rows": rows}
        said |= {"drops": "below" if limit.is_minimum else "above", "recorded": limit.value}
        said |= {"low": low, "high": high, "lowest": lowest, "highest": highest, "column": limit.column}
        found.append(said)
    return found


def limits_asked(index: Index, asked: Mapping[str, str]) -> dict[str, float | None]:
    """Return a value for each cut-off: the asked one, none for `off`, or the recorded one."""
    found: dict[str, float | None] = {}
    for limit in limits(index.settings):
        text = asked.get(limit.setting)
        if text is None:
            found[limit.setting] = limit.value
        else:
            found[limit.setting] = None if text == OFF else number(limit.setting, text)
    with_limits(index.settings, found)
    return found


def what_if(index: Index, values: Mapping[str, float | None]) -> dict[str, Any]:
    """Return rows that each stage and cut-off drops, the first reason counting, and what is left by bucket."""
    early = index.rows("SELECT early_stage, count(*) FROM board GROUP BY ALL")
    rules = _rules(index, values)
    first, parameters = first_rule(index, values)
    counted = index.rows(
        f"SELECT {first} AS at, bucket, count(*) FROM board WHERE meets_cut_offs GROUP BY ALL", parameters
    )
    drops = {limit.setting: 0 for limit in limits(index.settings)} | {name: 0 for name, _, _ in rules}
    buckets: dict[int | None, int] = {}
    for at, bucket, count in counted:
        if at < 0:
            buckets[bucket] = buckets.get(bucket, 0) + count
        else:
            drops[rules[at][0]] += count
    rows_in = sum(count for _, count in early)
    meets = sum(count for _, _, count in counted)
    return {
        "rows_in": rows_in,
        "early": {stage: count for stage, count in early if stage is not None},
        "meets_cut_offs": meets,
        "cut_offs": _down(drops, meets),
        "kept": sum(buckets.values()),
        "buckets": bucket_rows(index, {at: count for at, count in buckets.items() if at is not None}),
    }


def _rules(index: Index, values: Mapping[str, float | None]) -> list[tuple[str, str, Any]]:
    """Return setting, condition and limit of each rule that looks at one sample alone, in order."""
    rules: list[tuple[str, str, Any]] = [
        (limit.setting, limit.drops_sql, values[limit.setting])
        for limit in limits(index.settings)
        if values[limit.setting] is not None
    ]
    if index.settings.languages is not None:
        rules.append(("languages", "NOT list_contains(?, language)", list(index.settings.languages)))
    return rules


def first_rule(index: Index, values: Mapping[str, float | None]) -> tuple[str, list[Any]]:
    """Return the place of the first rule that a sample fails, -1 for none, as SQL with its parameters."""
    rules = _rules(index, values)
    cases = " ".join(f"WHEN {drops} THEN {place}" for place, (_, drops, _) in enumerate(rules))
    return (f"CASE {cases} ELSE -1 END" if cases else "-1"), [value for _, _, value in rules]


def bucket_rows(index: Index, counts: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return the rows of each aspect bucket by its name."""
    named = index.buckets
    return [{"bucket": f"{named[at][0]} x {named[at][1]}", "rows": rows} for at, rows in sorted(counts.items())]


def _down(drops: dict[str, int], left: int) -> list[dict[str, Any]]:
    told = []
    for setting, count in drops.items():
        left -= count
        told.append({"setting": setting, "dropped": count, "left": left})
    return told


def save(index: Index, values: Mapping[str, float | None]) -> dict[str, str]:
    """Write the run's settings with these cut-offs below the root; returns the file's name and the changed section."""
    section = with_limits(recorded(index.root), values)
    whole = as_dict((index.root.read_json("run.json") or {}).get("config") or {})
    whole |= {"root": index.root.url, "selection": as_dict(section)}
    taken = {path.rsplit("/", 1)[-1] for path in index.root.glob(f"{FOLDER}/*.yaml")}
    place = next(n for n in range(1, len(taken) + 2) if f"selection-{n:03d}.yaml" not in taken)
    name = f"{FOLDER}/selection-{place:03d}.yaml"
    index.root.write(name, yaml.safe_dump(whole, sort_keys=False).encode())
    return {"file": name, "yaml": yaml.safe_dump({"selection": as_dict(section)}, sort_keys=False)}
