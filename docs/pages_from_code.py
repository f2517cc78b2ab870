"""What the pages on tables and configuration show, written from `schemas/` and the settings' dataclasses."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import pyarrow as pa

import schemas
from curate.config import CurationConfig
from pipelines.dashboard_server.settings import DashboardConfig
from schemas.column import TABLE_KEY, VERSION_KEY
from train.config import TrainConfig
from train.recipes import RECIPES
from train.sample import SampleConfig

COLUMN_HEADS = ("column", "type", "unit", "range", "direction", "meaning")
SETTING_HEADS = ("setting", "type", "default", "meaning")


def write(folder: Path) -> None:
    """Write both parts into the folder, those that have changed."""
    folder.mkdir(exist_ok=True)
    for name, text in (("tables.md", tables()), ("configuration.md", configuration())):
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def tables() -> str:
    """Return a section for each table: its columns as the files themselves say them."""
    listed = sorted(_schemas(), key=lambda each: each[0].metadata[TABLE_KEY])
    return "\n\n".join(_table_section(schema, about) for schema, about in listed) + "\n"


def _schemas() -> Iterator[tuple[pa.Schema, str]]:
    """Yield every schema of every module, with the module's sentence for the table that it is named after."""
    for found in pkgutil.iter_modules(schemas.__path__):
        module = importlib.import_module(f"schemas.{found.name}")
        about = (module.__doc__ or "").splitlines()[0]
        if hasattr(module, "schema") and not hasattr(module, "SCHEMA"):
            yield module.schema(embedding_dim=768), about
        for schema in vars(module).values():
            if isinstance(schema, pa.Schema):
                own = schema.metadata[TABLE_KEY].decode() == found.name
                yield schema, about if own else f"On the way to {found.name}."


def _table_section(schema: pa.Schema, about: str) -> str:
    said = schema.metadata or {}
    name, version = said[TABLE_KEY].decode(), said[VERSION_KEY].decode()
    rows = [_column_row(field) for field in schema]
    return "\n".join([f"## {name}", "", _cell(f"{about} Version {version}."), "", *_grid(COLUMN_HEADS, rows)])


def _column_row(field: pa.Field) -> tuple[str, ...]:
    said = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    texts = (_cell(said.get(key, "")) for key in ("unit", "range", "direction", "meaning"))
    return f"`{field.name}`", f"`{field.type}`", *texts


def configuration() -> str:
    """Return a section for each dataclass of the settings, curation's, training's and the two commands' own."""
    curation = _sections("", CurationConfig, defaults=[])
    recipes = {name: recipe() for name, recipe in RECIPES.items()}
    training = _sections("train.<model>", TrainConfig, defaults=list(recipes.items()))
    dashboard = _sections("pipelines/dashboard.py", DashboardConfig, defaults=[])
    sampling = _sections("python -m train.sample", SampleConfig, defaults=[])
    parts = [
        "## Curation",
        *curation,
        "## Training",
        "Where the recipes of base and refiner differ, both defaults are shown.",
        *training,
        "## Flags of single commands",
        *dashboard,
        *sampling,
    ]
    return "\n\n".join(parts) + "\n"


def _sections(place: str, kind: type, defaults: list[tuple[str, Any]]) -> list[str]:
    """Return the section of a dataclass and of each one inside it, once, in the order of their fields."""
    about = (kind.__doc__ or "").splitlines()[0]
    meanings = _meanings(kind)
    hints = typing.get_type_hints(kind)
    rows, inner = [], []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        shown = [(name, getattr(settings, field.name)) for name, settings in defaults]
        told = _cell(_type(hint))
        for each in _dataclasses_in(hint):
            path = f"{place}.{field.name}".lstrip(".") + ("[]" if _is_list(hint) else "")
            told = told.replace("settings", f"[settings](#{_anchor(path)})")
            inner += _sections(path, each, [(name, value) for name, value in shown if type(value) is each])
        rows.append((f"`{field.name}`", told, _default(field, shown), _cell(meanings[field.name])))
    title = f"### `{place}`" if place else "### The file"
    return ["\n".join([title, "", _cell(about), "", *_grid(SETTING_HEADS, rows)]), *inner]


def _anchor(path: str) -> str:
    return re.sub(r"[^\w-]", "", path)


def _meanings(kind: type) -> dict[str, str]:
    """Return the docstring below each field, inherited ones, too."""
    parsed = [docstring_parser.parse_from_object(each) for each in reversed(kind.__mro__) if each is not object]
    return {param.arg_name: param.description or "" for each in parsed for param in each.params}


def _default(field: dataclasses.Field, shown: list[tuple[str, Any]]) -> str:
    if shown:
        values = {name: _value(value) for name, value in shown}
        same = len(set(values.values())) == 1
        return next(iter(values.values())) if same else "; ".join(f"{name}: {value}" for name, value in values.items())
    if field.default is not dataclasses.MISSING:
        return _value(field.default)
    return _value(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "must be given"


def _value(value: Any) -> str:
    """Return a value as YAML writes it; of settings inside settings, where they are shown."""
    if dataclasses.is_dataclass(value) or (isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))):
        return "below"
    if isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
        return "; ".join(f"`{key}`: {_fields(each)}" for key, each in value.items())
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    plain = {None: "null", True: "true", False: "false"}
    return f"`{plain[value]}`" if value is None or isinstance(value, bool) else f"`{value}`"


def _fields(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in dataclasses.asdict(value).items())


def _type(hint: Any) -> str:
    """Return a type in the words of YAML."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_type, inside))
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in inside)
    if origin is tuple:
        kinds = list(dict.fromkeys(_type(each) for each in inside if each is not Ellipsis))
        return f"list of {', '.join(kinds)}"
    if origin is dict:
        return f"{_type(inside[0])} to {_type(inside[1])}"
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return words.get(hint, "settings")


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    return list(dict.fromkeys(each for inside in typing.get_args(hint) for each in _dataclasses_in(inside)))


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple or any(_is_list(each) for each in typing.get_args(hint))


def _grid(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(each) + " |" for each in (heads, ("---",) * len(heads), *rows)]


def _cell(text: str) -> str:
    """Return text as one cell: nothing but its code spans is markup."""
    parts = " ".join(text.split()).split("`")
    outside = {ord("<"): "&lt;", ord("*"): "\\*", ord("_"): "\\_", ord("["): "\\["}
    plain = [part if number % 2 else part.translate(outside) for number, part in enumerate(parts)]
    return "`".join(plain).replace("|", "\\|")
