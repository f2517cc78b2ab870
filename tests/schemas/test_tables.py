"""Each table is known by its name, and a newer one is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import schemas
from pipelines.store import Root, parquet_bytes
from schemas.column import TABLE_KEY, VERSION_KEY, NewerTable
from schemas.tables import TABLES, check_version


def test_every_schema_is_known():
    modules = {path.stem for path in Path(schemas.__file__).parent.glob("*.py")} - {"__init__", "column", "tables"}
    assert set(TABLES) == modules | {"texts", "caption_counts"}  # both of captions.py


@pytest.mark.parametrize("name", TABLES)
def test_a_newer_version_is_refused_where_it_is_read(name, tmp_path):
    known, root = TABLES[name], Root(str(tmp_path))
    newer = known.with_metadata(known.metadata | {VERSION_KEY: str(int(known.metadata[VERSION_KEY]) + 1).encode()})
    root.write("known.parquet", parquet_bytes(known.empty_table()))
    root.write("newer.parquet", parquet_bytes(newer.empty_table()))
    assert root.read_table("known.parquet").schema.metadata[TABLE_KEY] == name.encode()
    with pytest.raises(NewerTable, match=rf"newer.parquet: table {name} has version \d+, this program reads up to"):
        root.read_table("newer.parquet")


def test_other_files_have_no_version():
    check_version(pa.schema([("a", pa.int8())]), "a.parquet")
