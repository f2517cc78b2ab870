"""The cut-offs as the dashboard sees them: setting, value, side and order. All that it knows of selection's rules."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import asdict, dataclass
from typing import Any

from curate.config import SelectionConfig
from curate.cut_offs import CUT_OFFS
from pipelines.store import MANIFEST, Root

_FORM = re.compile(r"(?P<value>.+?) (?P<sign>[<>]) \?")
_ALIAS = re.compile(r"\b[a-z]\.(?=[a-z])")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One cut-off: a sample is dropped where its value is below a minimum, or above a maximum."""

    setting: str
    reason: str
    value_sql: str
    """The value, over the columns of the index."""
    is_minimum: bool
    column: str | None
    """The column that it is the value of; None where it is computed."""
    meaning: str

    @property
    def drops_sql(self) -> str:
        """The condition, with `?` for the limit."""
        return f"{self.value_sql} {'<' if self.is_minimum else '>'} ?"


def limits() -> tuple[Limit, ...]:
    """Return the cut-offs that compare one value with one limit, in the order in which they count."""
    meanings = _meanings()
    found = []
    for cut in CUT_OFFS:
        form = _FORM.fullmatch(cut.drops)
        if form is None:
            continue
        value = _ALIAS.sub("", form["value"])
        column = value if value.isidentifier() else None
        found.append(
            Limit(
                setting=cut.setting,
                reason=cut.reason,
                value_sql=value,
                is_minimum=form["sign"] == "<",
                column=column,
                meaning=meanings.get(cut.setting, ""),
            )
        )
    return tuple(found)


def without_slider() -> list[str]:
    """Return the settings of cut-offs that are no comparison with one limit."""
    known = {limit.setting for limit in limits()}
    return [cut.setting for cut in CUT_OFFS if cut.setting not in known]


def recorded(root: Root) -> dict[str, Any]:
    """Return the selection's settings as its table was made with them; the defaults before it was made."""
    manifest = root.read_json(f"tables/selection/{MANIFEST}")
    return asdict(SelectionConfig()) | ((manifest or {}).get("settings") or {})


def can_be_off(setting: str) -> bool:
    """Return whether null switches a cut-off off."""
    return "None" in str(SelectionConfig.__dataclass_fields__[setting].type)


def checked(values: dict[str, float | None], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with these limits; raises ValueError naming what is wrong."""
    known = SelectionConfig.__dataclass_fields__
    whole = {name for name, field in known.items() if str(field.type).startswith("int")}
    given = {name: int(value) if name in whole and value is not None else value for name, value in values.items()}
    for name, value in given.items():
        if value is None and not can_be_off(name):
            raise ValueError(f"{name} = off: selection always has this cut-off; give a number")
    said: dict[str, Any] = {name: value for name, value in (settings | given).items() if name in known}
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    SelectionConfig(**plain)
    return said


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
