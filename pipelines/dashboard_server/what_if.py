"""What other cut-offs would do: exact counts all the way down the funnel, and how full each aspect bucket gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from curate.config_file import as_dict
from pipelines.dashboard_server.cut_off_list import can_be_off, checked, limits, recorded
from pipelines.dashboard_server.distributions import span
from pipelines.dashboard_server.filters import number
from pipelines.dashboard_server.index import Index
from pipelines.dashboard_server.tables import readable

OFF = "off"
SLIDER_TAIL = 0.001
"""Share of the values on each side that a slider does not reach; a typed value does."""
FOLDER = "what_if"


def sliders(index: Index) -> list[dict[str, Any]]:
    """Return each cut-off with its recorded value and the span in which nearly all values lie."""
    found = []
    for limit in limits():
        lowest, highest, low, high, rows, _ = span(index, limit.value_sql, SLIDER_TAIL, "meets_cut_offs")
        said = {"setting": limit.setting, "reason": limit.reason, "meaning": limit.meaning, "rows": rows}
        said |= {"drops": "below" if limit.is_minimum else "above", "recorded": index.settings.get(limit.setting)}
        said |= {"low": low, "high": high, "lowest": lowest, "highest": highest, "column": limit.column}
        said |= {"can_be_off": can_be_off(limit.setting)}
        found.append(said)
    return found


def limits_asked(index: Index, asked: Mapping[str, str]) -> dict[str, float | None]:
    """Return a value for each cut-off: the asked one, none for `off`, or the recorded one."""
    found: dict[str, float | None] = {}
    for limit in limits():
        text = asked.get(limit.setting)
        if text is None:
            found[limit.setting] = index.settings.get(limit.setting)
        else:
            found[limit.setting] = None if text == OFF else number(limit.setting, text)
    checked(found, index.settings)
    return found


def what_if(index: Index, values: Mapping[str, float | None]) -> dict[str, Any]:
    """Return rows that each stage and cut-off drops, the first reason counting, and what is left by bucket."""
    early = index.rows("SELECT early_stage, count(*) FROM board GROUP BY ALL")
    active = [(limit, values[limit.setting]) for limit in limits() if values[limit.setting] is not None]
    cases = " ".join(f"WHEN {limit.drops_sql} THEN {place}" for place, (limit, _) in enumerate(active))
    first = f"CASE {cases} ELSE -1 END" if cases else "-1"
    counted = index.rows(
        f"SELECT {first} AS at, bucket, count(*) FROM board WHERE meets_cut_offs GROUP BY ALL",
        [value for _, value in active],
    )
    drops = {limit.setting: 0 for limit in limits()}
    buckets: dict[int | None, int] = {}
    for at, bucket, count in counted:
        if at < 0:
            buckets[bucket] = buckets.get(bucket, 0) + count
        else:
            drops[active[at][0].setting] += count
    rows_in = sum(count for _, count in early)
    meets = sum(count for _, _, count in counted)
    return {
        "rows_in": rows_in,
        "early": {stage: count for stage, count in early if stage is not None},
        "meets_cut_offs": meets,
        "cut_offs": _down(drops, meets),
        "kept": sum(buckets.values()),
        "buckets": [
            {"bucket": f"{index.buckets[at][0]} x {index.buckets[at][1]}", "rows": count}
            for at, count in sorted(buckets.items(), key=lambda item: -1 if item[0] is None else item[0])
            if at is not None
        ],
    }


def _down(drops: dict[str, int], left: int) -> list[dict[str, Any]]:
    told = []
    for setting, count in drops.items():
        left -= count
        told.append({"setting": setting, "dropped": count, "left": left})
    return told


def save(index: Index, values: Mapping[str, float | None]) -> dict[str, str]:
    """Write the run's settings with these cut-offs below the root; returns the file's name and the changed section."""
    section = checked(dict(values), recorded(index.root))
    whole = as_dict((index.root.read_json("run.json") or {}).get("config") or {})
    whole |= {"root": index.root.url, "selection": as_dict(section)}
    taken = {path.rsplit("/", 1)[-1] for path in index.root.glob(f"{FOLDER}/*.yaml")}
    place = next(n for n in range(1, len(taken) + 2) if f"selection-{n:03d}.yaml" not in taken)
    name = f"{FOLDER}/selection-{place:03d}.yaml"
    index.root.write(name, yaml.safe_dump(whole, sort_keys=False).encode())
    return {"file": name, "yaml": yaml.safe_dump({"selection": as_dict(section)}, sort_keys=False)}


def without_a_slider(index: Index) -> dict[str, int]:
    """Return rows that selection dropped for reasons that no slider stands for."""
    if readable(index.root, "selection").state == "missing":
        return {}
    known = [limit.reason for limit in limits()]
    marks = ", ".join("?" * len(known))
    return dict(
        index.rows(
            f"SELECT reason, count(*) FROM board WHERE meets_cut_offs AND reason NOT IN ({marks}) GROUP BY reason",
            known,
        )
    )
