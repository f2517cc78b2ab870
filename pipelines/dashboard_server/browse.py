"""Lists of samples: any place of a filtered list, what a tile says, and what lies near a cut-off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from pipelines.dashboard_server.cut_off_list import Limit
from pipelines.dashboard_server.filters import SHOWN, value_sql, where
from pipelines.dashboard_server.index import Index

MOST_AT_ONCE = 200
LISTS_KEPT = 3


class Lists:
    """The numbers of the samples of the last filtered lists, so that any place of one is found at once."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lists: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def page(self, asked: Mapping[str, str], first: int, count: int) -> dict[str, Any]:
        """Return how many samples there are and what the tiles from place `first` on say."""
        numbers = self._numbers(asked)
        return {"rows": len(numbers), "first": first, "tiles": tiles(self._index, numbers[first : first + count])}

    def _numbers(self, asked: Mapping[str, str]) -> np.ndarray:
        condition, values = where(self._index, asked)
        order = "number"
        if asked.get("sort"):
            value = value_sql(self._index, "sort", asked["sort"])
            order = f"{value} {'DESC' if asked.get('descending') else 'ASC'} NULLS LAST, number"
        key = (self._index.version, condition, tuple(values), order)
        with self._lock:
            if key not in self._lists:
                query = f"SELECT number FROM board WHERE {condition} ORDER BY {order}"
                self._lists[key] = np.asarray(self._index.numpy(query, values)["number"], np.int64)
            self._lists.move_to_end(key)
            while len(self._lists) > LISTS_KEPT:
                self._lists.popitem(last=False)
            return self._lists[key]


def tiles(index: Index, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Return what a tile says of each of those samples that may be shown, in that order."""
    wanted = [int(number) for number in numbers][:MOST_AT_ONCE]
    if not wanted:
        return []
    marks = ", ".join("?" * len(wanted))
    found = index.dicts(f"SELECT {_tile(index)} FROM board WHERE number IN ({marks}) AND {SHOWN}", wanted)
    by_number = {row["number"]: row for row in found}
    return [by_number[number] for number in wanted if number in by_number]


def near(index: Index, limit: Limit, value: float, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return the samples nearest to a limit on its dropped and its kept side, of those that come to the cut-offs."""
    below = ("<", "<=")[not limit.is_minimum], "DESC"
    above = (">", ">=")[limit.is_minimum], "ASC"
    sides = {"dropped": below, "kept": above} if limit.is_minimum else {"kept": below, "dropped": above}
    found = {}
    for side, (sign, order) in sides.items():
        rows = index.rows(
            f"""SELECT number, {limit.value_sql} AS value FROM board
            WHERE meets_cut_offs AND {SHOWN} AND {limit.value_sql} {sign} ?::FLOAT
            ORDER BY value {order}, number LIMIT ?""",
            [value, count],
        )
        by_number = {tile["number"]: tile for tile in tiles(index, [row[0] for row in rows])}
        found[side] = [by_number[number] | {"value": said} for number, said in rows if number in by_number]
    return found


def unsafe_sql(index: Index) -> str:
    """Return the condition for pictures that are blurred until they are asked for; an untrained head knows of none."""
    head = index.numbers.get("nsfw_prob")
    if head is None or "UNTRAINED" in head.revision:
        return "coalesce(reason = 'unsafe', false)"
    cut_off = index.settings.max_nsfw_prob
    limit = 0.5 if cut_off is None else min(0.5, float(cut_off))
    return f"coalesce(reason = 'unsafe' OR nsfw_prob > {limit!r}, false)"


def _tile(index: Index) -> str:
    return f"""number, uid, coalesce(caption_clean, caption) AS caption, stage, reason, keep,
        shard IS NOT NULL AND early_stage IS DISTINCT FROM 'embed' AS has_picture,
        width_px, height_px, {unsafe_sql(index)} AS is_unsafe"""
