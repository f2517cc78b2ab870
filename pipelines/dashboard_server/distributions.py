"""Distributions: numbers in bins of kept and dropped samples, outliers in bins of their own, and what occurs most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.dashboard_server.cut_off_list import DERIVED_SQL, limits
from pipelines.dashboard_server.filters import one_of, value_sql
from pipelines.dashboard_server.index import Index

BINS = 40
TAIL = 0.005
"""Share of the values on each side that goes into the bins for outliers."""
QUANTILE_ROWS = 200_000
WORDS = {
    "source": "source",
    "host": "domain",
    "language": "language",
    "license": "licence",
    "format": "file format",
    "bucket": "aspect bucket, height x width in px",
}
MOST_SHOWN = 20
COMPUTED = {
    "caption_chars": ("length of the cleaned caption", "characters", "captions", "0.."),
    "shorter_side_px": ("shorter side of the picture", "px", "features", "1.."),
    "aspect": ("longer side over shorter side", "", "features", "1.."),
}
"""Numbers that no table holds: meaning, unit, the table they are computed from, range."""
assert COMPUTED.keys() == DERIVED_SQL.keys(), "each has a meaning"


def listed(index: Index) -> dict[str, Any]:
    """Return the names of what can be shown, with what the schemas say of each number."""
    numbers = [asdict(said) | {"computed": False} for said in index.numbers.values()]
    empty = {"direction": "", "model": "", "revision": "", "computed": True}
    keys = ("name", "meaning", "unit", "table", "range")
    numbers += [dict(zip(keys, (name, *said), strict=True)) | empty for name, said in COMPUTED.items()]
    return {"numbers": numbers, "words": [{"name": name, "meaning": said} for name, said in WORDS.items()]}


def histogram(index: Index, name: str) -> dict[str, Any]:
    """Return bins [low, high) with kept and dropped rows; the first and the last have open ends, with the outliers."""
    value = value_sql(index, "name", name)
    lowest, highest, low, high, count, whole = spans(index, [value], TAIL)[0]
    said: dict[str, Any] = {"name": name, "rows": count, "lowest": lowest, "highest": highest, "bins": []}
    said["cut_offs"] = [
        {"value": limit.value, "drops": "below" if limit.is_minimum else "above"}
        for limit in limits(index.settings)
        if limit.value_sql == value and limit.value is not None
    ]
    if not count:
        return said
    low, width = _grid(low, high, lowest, whole)
    counted = index.rows(
        f"""SELECT least(greatest(floor((v - ?) / ?), -1), ?)::INTEGER AS bin,
            count(*) FILTER (keep), count(*) FILTER (keep = false), count(*) FILTER (keep IS NULL)
        FROM (SELECT ({value})::DOUBLE AS v, keep FROM board WHERE v IS NOT NULL) GROUP BY bin ORDER BY bin""",
        [low, width, BINS],
    )
    for place, kept, dropped, undecided in counted:
        edges = {"low": low + place * width, "high": low + (place + 1) * width}
        if place == -1:
            edges = {"low": lowest, "high": low}
        elif place == BINS:
            edges = {"low": low + BINS * width, "high": highest}
        said["bins"].append(edges | {"place": place, "kept": kept, "dropped": dropped, "undecided": undecided})
    return said | {"low": low, "width": width}


def spans(index: Index, values_sql: Sequence[str], tail: float, condition: str = "true") -> list[tuple[Any, ...]]:
    """Return smallest and largest value, the quantiles `tail` and 1 - `tail`, the count, and whether all are whole.

    Above QUANTILE_ROWS rows the quantiles are of every n-th row: they only say where an axis begins and ends.
    """
    every = max(1, index.rows("SELECT count(*) FROM board")[0][0] // QUANTILE_ROWS)
    numbers = ", ".join(f"({value})::DOUBLE AS v{at}" for at, value in enumerate(values_sql))
    of_all = "min(v{0}), max(v{0}), count(v{0}), coalesce(bool_and(v{0} = floor(v{0})), false)"
    of_some = f"approx_quantile(v{{0}}, {tail}), approx_quantile(v{{0}}, {1 - tail})"

    def scan(asked: str, rows: str) -> list[tuple[Any, ...]]:
        columns = ", ".join(asked.format(at) for at in range(len(values_sql)))
        found = index.rows(f"SELECT {columns} FROM (SELECT {numbers} FROM board WHERE {rows})")[0]
        each = len(found) // len(values_sql)
        return [found[first : first + each] for first in range(0, len(found), each)]

    ends = scan(of_some, f"{condition} AND number % {every} = 0")
    return [
        (lowest, highest, lowest if low is None else low, highest if high is None else high, count, whole)
        for (lowest, highest, count, whole), (low, high) in zip(scan(of_all, condition), ends, strict=True)
    ]


def _grid(low: float, high: float, lowest: float, whole: bool) -> tuple[float, float]:
    """Return where the bins begin and how wide they are: whole numbers get whole bins."""
    if high <= low:
        return (low - 0.5, 1.0 / BINS) if not whole else (low, 1.0)
    if whole:
        width = max(1.0, -(-(high - low + 1) // BINS))
        return float(int(low)), float(width)
    return (lowest if lowest >= low - (high - low) / BINS else low), (high - low) / BINS * 1.0001


def most_frequent(index: Index, name: str) -> dict[str, Any]:
    """Return the most frequent values of a column of words with kept and dropped rows, and how many are not shown."""
    one_of("name", name, WORDS)
    counted = index.rows(
        f"""WITH grouped AS (
            SELECT {name}::VARCHAR AS value, count(*) AS rows, count(*) FILTER (keep) AS kept,
                count(*) FILTER (keep = false) AS dropped
            FROM board WHERE {name} IS NOT NULL AND {name}::VARCHAR <> '' GROUP BY value)
        SELECT *, count(*) OVER (), sum(rows) OVER ()::BIGINT FROM grouped ORDER BY rows DESC, value LIMIT ?""",
        [MOST_SHOWN],
    )
    values = [
        {"value": _bucket_name(index, value) if name == "bucket" else value, "key": value}
        | {"rows": rows, "kept": kept, "dropped": dropped}
        for value, rows, kept, dropped, _, _ in counted
    ]
    kinds, total = counted[0][4:] if counted else (0, 0)
    shown = sum(value["rows"] for value in values)
    return {"name": name, "values": values, "others": kinds - len(values), "rows_of_others": total - shown}


def _bucket_name(index: Index, place: str) -> str:
    height_px, width_px = index.buckets[int(place)]
    return f"{height_px} x {width_px}"
