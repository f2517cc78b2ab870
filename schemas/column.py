"""Columns and tables with their meaning: unit, range, direction, model and revision as field metadata."""

from __future__ import annotations

import pyarrow as pa

TABLE_KEY = b"darkroom_table"
VERSION_KEY = b"darkroom_version"


class NewerTable(ValueError):
    """A table was written by a newer version than this one can read."""


def column(
    name: str,
    kind: pa.DataType,
    meaning: str,
    *,
    unit: str = "",
    range: str = "",
    direction: str = "",
    model: str = "",
    revision: str = "",
) -> pa.Field:
    """Return a field whose metadata says what its values mean; empty entries are left out."""
    said = {"meaning": meaning, "unit": unit, "range": range, "direction": direction}
    said |= {"model": model, "revision": revision}
    return pa.field(name, kind, metadata={key: value for key, value in said.items() if value})


def table(name: str, version: int, fields: list[pa.Field]) -> pa.Schema:
    """Return a schema that carries its table's name and version."""
    return pa.schema(fields, metadata={TABLE_KEY: name.encode(), VERSION_KEY: str(version).encode()})


def with_model(schema: pa.Schema, names: list[str], model: str, revision: str) -> pa.Schema:
    """Return the schema with model and revision said on the named columns."""
    for name in names:
        index = schema.get_field_index(name)
        old = schema.field(index)
        said = (old.metadata or {}) | {b"model": model.encode(), b"revision": revision.encode()}
        schema = schema.set(index, old.with_metadata(said))
    return schema


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table in the schema's order and types; columns it does not name are kept behind them.

    Raises KeyError for a missing column and pa.ArrowInvalid for a value that does not fit.
    """
    named = [rows.column(field.name).cast(field.type) for field in schema]
    extra = [name for name in rows.column_names if name not in schema.names]
    fields = [*schema, *(rows.schema.field(name) for name in extra)]
    return pa.table(
        [*named, *(rows.column(name) for name in extra)], schema=pa.schema(fields, metadata=schema.metadata)
    )
