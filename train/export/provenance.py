"""What curation recorded of the samples that a network saw: its run.json, their sources and licences."""

from __future__ import annotations

import glob
import json
import tempfile
from dataclasses import dataclass
from typing import Any

import duckdb
import fsspec

MEMORY_LIMIT = "2GB"
"""Most that the join of the two tables holds; the rest goes to the temporary folder."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Training samples of the shards."""

    samples: int
    """All of them."""
    by_source: dict[tuple[str, str | None], int]
    """By source and licence; None where the source gave no licence."""


def curation_record(root: str) -> dict[str, Any] | None:
    """Return the run.json that a whole curation leaves under the root, or None where there is none."""
    fs, path = fsspec.core.url_to_fs(root)
    return json.loads(fs.cat_file(f"{path}/run.json")) if fs.exists(f"{path}/run.json") else None


def sources_and_licences(root: str) -> Counts | None:
    """Count the training samples by source and licence; None where the shards came without tables."""
    fs, path = fsspec.core.url_to_fs(root)
    shards, samples = (_files(fs, path, table) for table in ("shards", "samples"))
    if not shards:
        return None
    with tempfile.TemporaryDirectory() as spill, duckdb.connect() as database:
        database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'; SET temp_directory = '{spill}'")
        if "file" not in fs.protocol:
            database.register_filesystem(fs)
        listed = ", ".join(shards)
        database.execute(f"CREATE VIEW kept AS SELECT uid, source FROM read_parquet([{listed}]) WHERE split = 'train'")
        licence, joined = "NULL", ""
        if samples:
            database.execute(f"CREATE VIEW samples AS SELECT uid, license FROM read_parquet([{', '.join(samples)}])")
            licence, joined = "samples.license", "LEFT JOIN samples USING (uid)"
        rows = database.execute(
            f"SELECT kept.source, {licence}, count(*) FROM kept {joined} GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    counted = {(source, said): count for source, said, count in rows}
    return Counts(samples=sum(counted.values()), by_source=counted)


def _files(fs: Any, path: str, table: str) -> list[str]:
    """Return the table's parquet files as DuckDB names them, as text of SQL."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    prefix = "" if "file" in fs.protocol else f"{protocol}://"
    found = sorted(fs.glob(f"{glob.escape(path)}/tables/{table}/*.parquet"))
    return ["'" + f"{prefix}{file}".replace("'", "''") + "'" for file in found]
