"""Which samples are meant: a fixed set of conditions, whose values go in as parameters and never as SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dashboard_server.cut_off_list import DERIVED_SQL
from pipelines.dashboard_server.index import Index

KEPT = {"yes": "keep", "no": "NOT keep", "undecided": "keep IS NULL"}
EQUAL = ("source", "language", "host", "license", "format", "stage", "reason", "kind", "cluster_id")
LARGEST = 3.4028234e38
"""The largest number of 32 bits, as the index holds them."""
SHOWN = "NOT hidden"
"""Hits of a blocklist, and what has not been compared with one, are in no list."""


def where(index: Index, asked: Mapping[str, str]) -> tuple[str, list[Any]]:
    """Return the condition and its parameters; raises ValueError for a value that makes no sense."""
    conditions: list[str] = [SHOWN]
    values: list[Any] = []
    for name in EQUAL:
        if asked.get(name):
            conditions.append(f"{name} = ?")
            values.append(asked[name])
    kept = asked.get("kept")
    if kept:
        conditions.append(KEPT[one_of("kept", kept, KEPT)])
    if asked.get("bucket"):
        conditions.append("bucket = ?")
        values.append(whole("bucket", asked["bucket"], 0, 2**31 - 1))
    if asked.get("text"):
        conditions.append("contains(lower(coalesce(caption_clean, caption)), lower(?))")
        values.append(asked["text"])
    score = asked.get("score")
    if score:
        value = value_sql(index, "score", score)
        for name, sign in (("low", ">="), ("high", "<="), ("below", "<")):
            if asked.get(name):
                conditions.append(f"{value} {sign} ?")
                values.append(number(name, asked[name]))
    return " AND ".join(conditions), values


def value_sql(index: Index, field: str, name: str) -> str:
    """Return a number of the samples over the columns of the index; raises ValueError for another name."""
    one_of(field, name, {*index.numbers, *DERIVED_SQL})
    return DERIVED_SQL.get(name, f'"{name}"')


def one_of(name: str, value: str, known: Any) -> str:
    """Return the value; raises ValueError where it is not one of those."""
    if value not in known:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(sorted(known))}")
    return value


def number(name: str, value: str) -> float:
    """Return a finite number; raises ValueError naming the field."""
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"{name} = {value!r}: must be a number") from None
    if not abs(found) <= LARGEST:
        raise ValueError(f"{name} = {value!r}: must be within {LARGEST:g} of 0")
    return found


def whole(name: str, value: str, low: int, high: int) -> int:
    """Return a whole number in low..high; raises ValueError naming the field."""
    found = number(name, value)
    if found != int(found) or not low <= found <= high:
        raise ValueError(f"{name} = {value!r}: must be a whole number, {low}..{high}")
    return int(found)
