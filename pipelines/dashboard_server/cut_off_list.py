"""The cut-offs as the dashboard sees them: setting, value, side and order. All that it knows of selection's rules."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from curate.config import SelectionConfig, Threshold
from curate.config_file import from_dict
from curate.cut_offs import DERIVED, OTHER_LANGUAGE, CutOff, active, cut_offs, resolved
from curate.verdicts import rules
from pipelines.store import MANIFEST, Root

DERIVED_SQL = {
    "shorter_side_px": "least(width_px, height_px)",
    "aspect": "greatest(width_px, height_px)::FLOAT / least(width_px, height_px)::FLOAT",
    "caption_chars": "caption_chars",
}
"""What selection computes, over the columns of the index."""
assert DERIVED_SQL.keys() == DERIVED.keys(), "what selection computes, the index computes as well"
_HELD = "caption_chars"
"""Computed by selection, a column of the index."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One cut-off: a sample is dropped where its value is below a minimum, or above a maximum."""

    setting: str
    """A field of selection, or `thresholds.<column>.min` and `.max`."""
    reason: str
    value_sql: str
    """The value, over the columns of the index."""
    is_minimum: bool
    column: str | None
    """The column that it is the value of; None where it is computed."""
    value: float | None
    """The recorded limit; None where the cut-off is off."""
    meaning: str

    @property
    def drops_sql(self) -> str:
        """The condition, with `?` for the limit, which is rounded as selection rounds it: to the values' float32."""
        return f"{self.value_sql} {'<' if self.is_minimum else '>'} ?::FLOAT"


def limits(config: SelectionConfig) -> tuple[Limit, ...]:
    """Return the cut-offs that compare one value with one limit, in the order in which they count."""
    meanings = _meanings()
    return tuple(_limit(cut, value, meanings) for cut, value in cut_offs(config))


def _limit(cut: CutOff, value: float | None, meanings: Mapping[str, str]) -> Limit:
    is_minimum, is_computed = cut.drops == "below", cut.column in DERIVED and cut.column != _HELD
    other = f"thresholds.{cut.column}.{'min' if is_minimum else 'max'}"
    return Limit(
        setting=other if cut.setting == "thresholds" else cut.setting,
        reason=cut.reason,
        value_sql=DERIVED_SQL.get(cut.column, f'"{cut.column}"'),
        is_minimum=is_minimum,
        column=None if is_computed else cut.column,
        value=value,
        meaning=meanings.get(cut.setting, ""),
    )


def later_reasons(config: SelectionConfig) -> list[str]:
    """Return the reasons of the rules behind the cut-offs that no slider stands for, in order."""
    return [reason for reason in rules(config)[len(active(config)) :] if reason != OTHER_LANGUAGE]


def recorded(root: Root) -> SelectionConfig:
    """Return selection's settings as its table was made with them, the preset spelt out; the defaults before that."""
    said = (root.read_json(f"tables/selection/{MANIFEST}") or {}).get("settings") or {}
    known = {field.name for field in fields(SelectionConfig)}
    return resolved(from_dict(SelectionConfig, {name: value for name, value in said.items() if name in known}))


def with_limits(config: SelectionConfig, values: Mapping[str, float | None]) -> SelectionConfig:
    """Return the settings with these limits by setting; raises ValueError naming what is wrong."""
    whole = {field.name for field in fields(SelectionConfig) if str(field.type).startswith("int")}
    plain: dict[str, Any] = {name: value for name, value in values.items() if not name.startswith("thresholds.")}
    for name in whole & plain.keys():
        plain[name] = None if plain[name] is None else math.ceil(plain[name])  # minima: 3.2 words are 4
    thresholds = [_moved(one, values) for one in config.thresholds]
    return replace(config, **plain, thresholds=tuple(one for one in thresholds if one is not None))


def _moved(one: Threshold, values: Mapping[str, float | None]) -> Threshold | None:
    name = f"thresholds.{one.column}"
    low, high = values.get(f"{name}.min", one.min), values.get(f"{name}.max", one.max)
    return None if low is None and high is None else Threshold(column=one.column, min=low, max=high)


def _meanings() -> dict[str, str]:
    """Return what each setting says of itself, from the docstrings below the fields."""
    body = ast.parse(inspect.getsource(SelectionConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, said in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = str(said.value.value)
    return found
