"""The index: one row for each sample, with what the tables say of it, in DuckDB on the disk.

The tables are joined fragment by fragment as they are read, so that neither a join nor a sort over all rows is ever
needed; questions are then scans of a few columns. A fragment that was made again is read again.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.bad_input import BadInput
from curate.buckets import ladder
from curate.config import ExportConfig
from curate.sample import TAKEN_DOWN
from pipelines.dashboard_server.cut_off_list import recorded
from pipelines.dashboard_server.tables import SHOWN, Readable, lacking, read_rows, readable, schema_of
from pipelines.store import MANIFEST, Root, digest
from pipelines.taken_down import read_taken_down
from schemas.tables import TABLES

ROWS_BITS = 24
"""A sample's number is its fragment's number, shifted by this many bits, plus its row."""
TEXT, WHOLE, REAL, FLAG = pa.string(), pa.int64(), pa.float32(), pa.bool_()
READ = {
    "samples": {
        **{name: TEXT for name in ("uid", "source", "url", "caption", "shard", "license", "format", "status")},
        "offset": WHOLE,
        "num_bytes": WHOLE,
    },
    "captions": {"uid": TEXT, "caption_clean": TEXT, "language": TEXT, "caption_reason": TEXT},
    "features": {"uid": TEXT, "status": TEXT},
    "duplicates": {
        **{name: TEXT for name in ("uid", "cluster_id", "survivor_uid", "kind", "won_by")},
        "distance": REAL,
        "is_survivor": FLAG,
        "semantic_cluster": pa.int32(),
    },
    "scores": {"uid": TEXT, "blocklist_hit": FLAG},
    "selection": {"uid": TEXT, "keep": FLAG, "reject_stage": TEXT, "reject_reason": TEXT},
}
"""Columns of each table that the index holds, beside its numbers."""
GONE = "a file of the tables went away while they were read, as when a step makes it anew: refresh"
MEASURED_IN = ("captions", "features", "scores")
"""Tables whose columns of numbers are distributions."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A column of numbers, and what its table says of it."""

    name: str
    table: str
    meaning: str
    unit: str
    range: str
    direction: str
    model: str
    revision: str


class Index:
    """The tables of one root, joined; every thread asks through a cursor of its own."""

    def __init__(self, root: Root, *, file: str | None = None, memory_mb: int = 600, unchecked: bool = False) -> None:
        self.root = root
        self._scratch = None if file else tempfile.mkdtemp(prefix="darkroom-dashboard-")
        path = file or f"{self._scratch}/index.duckdb"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.database = duckdb.connect(
                path, config={"memory_limit": f"{memory_mb}MB", "preserve_insertion_order": False}
            )
        except duckdb.IOException as error:
            raise BadInput(f"index = {path}: {error}; name a file of its own for each dashboard") from error
        self._reading = threading.Lock()
        self._unchecked = unchecked
        self.tables: dict[str, Readable] = {name: Readable(name, {}, None) for name in SHOWN}
        self.numbers: dict[str, Number] = {}
        self.notes: list[str] = []
        self.error: str | None = None
        self.version = self.looks = 0
        self._derived: dict[str, int] = {}
        self._deriving = threading.Lock()
        self.counting = threading.Lock()
        """For questions that hold something of every sample in memory: one at a time."""
        self.read = self.wanted = 0

    def look(self) -> None:
        """Find out which fragments there are and what they hold; the index is there afterwards, empty or as it was."""
        with self._reading:
            self.tables = {name: readable(self.root, name) for name in SHOWN}
            self.settings = recorded(self.root)
            self.buckets = _buckets(self.root)
            self.blocklists_known = self._unchecked or _no_blocklists(self.root)
            self.taken_down = read_taken_down(self.root)
            self.numbers = _numbers(self.root, self.tables)
            self.notes = _notes(self.root, self.tables)
            self._prepare()
            self._stale()
            self.looks += 1

    def refresh(self) -> None:
        """Read what is new or was made again; what is gone is removed."""
        self.look()
        with self._reading:
            self._read_fragments()
        self.error = None

    def refresh_in_background(self) -> None:
        """Refresh, and keep what went wrong for the page to tell."""
        try:
            self.refresh()
        except Exception as error:
            self.error = GONE if type(error) is FileNotFoundError else f"{type(error).__name__}: {error}"
            raise

    def derive(self, table: str, query: str) -> None:
        """Make a table from the board, unless it was made from the board as it is now."""
        with self._deriving:
            version = self.version
            if self._derived.get(table) != version:
                with self.database.cursor() as cursor:
                    cursor.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")
                self._derived[table] = version

    def close(self) -> None:
        """Let go of the database, and of its file where it is a temporary one."""
        with self._reading:
            self.database.close()
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def rows(self, query: str, parameters: Any = ()) -> list[tuple]:
        """Return the answer of one of this program's own queries; values go in as parameters."""
        with self.database.cursor() as cursor:
            return cursor.execute(query, parameters).fetchall()

    def dicts(self, query: str, parameters: Any = ()) -> list[dict[str, Any]]:
        """Return the answer as one dictionary for each row."""
        with self.database.cursor() as cursor:
            found = cursor.execute(query, parameters)
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def numpy(self, query: str, parameters: Any = ()) -> dict[str, Any]:
        """Return the answer as arrays by column."""
        with self.database.cursor() as cursor:
            return cursor.execute(query, parameters).fetchnumpy()

    def arrow(self, query: str, parameters: Any = ()) -> pa.Table:
        """Return the answer as a table with its types."""
        with self.database.cursor() as cursor:
            return cursor.sql(query, params=list(parameters)).to_arrow_table()

    def stretches(self, query: str, parameters: Any, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the answer some rows at a time, in no order; an empty stretch comes first, so that there is one."""
        with self.database.cursor() as cursor:
            answer = cursor.sql(query, params=list(parameters)).to_arrow_reader(rows)
            yield pa.RecordBatch.from_pylist([], schema=answer.schema)
            yield from answer

    def _prepare(self) -> None:
        """Create the tables; an index with other columns, settings or buckets is begun anew."""
        away = [sorted(hashes) for hashes in vars(self.taken_down).values()]
        shape = digest([list(self.numbers), self.buckets, self.blocklists_known, self.root.url, away, 3])
        self.database.execute("CREATE TABLE IF NOT EXISTS shape (shape VARCHAR)")
        if self.rows("SELECT shape FROM shape") != [(shape,)]:
            for name in ("board", "fragments"):
                self.database.execute(f"DROP TABLE IF EXISTS {name}")
            self.database.execute("DELETE FROM shape")
            self.database.execute("INSERT INTO shape VALUES (?)", [shape])
        self.database.execute("CREATE TABLE IF NOT EXISTS fragments (name VARCHAR, number BIGINT, digest VARCHAR)")
        empty = {table: _empty(self._wanted(table)) for table in SHOWN}
        with self.database.cursor() as cursor:
            self._register(cursor, empty, 0)
            cursor.execute(f"CREATE TABLE IF NOT EXISTS board AS {self._join()}")

    def _stale(self) -> dict[str, str]:
        """Return the digests of the fragments that are still to be read, by name, and note how many there are."""
        wanted = {
            name: digest([self.tables[table].fragments.get(name) for table in SHOWN])
            for name in self.tables["samples"].fragments
        }
        there = dict(self.rows("SELECT name, digest FROM fragments"))
        stale = {name: said for name, said in wanted.items() if there.get(name) != said}
        self.read, self.wanted = len(wanted) - len(stale), len(wanted)
        return stale

    def _read_fragments(self) -> None:
        numbers = dict(self.rows("SELECT name, number FROM fragments"))
        for name in set(numbers) - set(self.tables["samples"].fragments):
            self._forget(name, numbers[name])
        following = 1 + max(numbers.values(), default=-1)
        for name, said in self._stale().items():
            if name in numbers:
                number = numbers[name]
                self._forget(name, number)
            else:
                number, following = following, following + 1
            self._add(name, number, said)
            self.read += 1
            self.version += 1
        pa.default_memory_pool().release_unused()

    def _forget(self, name: str, number: int) -> None:
        self.database.execute("DELETE FROM fragments WHERE name = ?", [name])
        span = [number << ROWS_BITS, (number + 1) << ROWS_BITS]
        self.database.execute("DELETE FROM board WHERE number >= ? AND number < ?", span)
        self.version += 1

    def _add(self, name: str, number: int, said: str) -> None:
        found = {
            table: read_rows(self.root, table, name, self._wanted(table))
            if name in self.tables[table].fragments
            else _empty(self._wanted(table))
            for table in SHOWN
        }
        with self.database.cursor() as cursor:
            self._register(cursor, found, number)
            cursor.execute("BEGIN")
            cursor.execute(f"INSERT INTO board {self._join()} ORDER BY number")
            cursor.execute("INSERT INTO fragments VALUES (?, ?, ?)", [name, number, said])
            cursor.execute("COMMIT")

    def _register(self, cursor: Any, found: dict[str, pa.Table], number: int) -> None:
        samples = found["samples"]
        numbers = pa.array(np.arange(len(samples), dtype=np.int64) + (number << ROWS_BITS))
        away = pa.array(self.taken_down.rows(samples))
        found = found | {"samples": samples.append_column("number", numbers).append_column("taken_down", away)}
        features = found["features"]
        found["features"] = features.append_column("bucket", _bucket_of(features, self.buckets))
        for table, rows in found.items():
            cursor.register(f"{table}_rows", rows)

    def _wanted(self, table: str) -> pa.Schema:
        columns = dict(READ[table])
        if table == "samples":
            columns |= dict.fromkeys(self.taken_down.columns(), TEXT)
        for said in self.numbers.values():
            if said.table == table or said.name == "clip_similarity" and table in ("features", "scores"):
                columns[said.name] = pa.float32()
        if table == "features":
            columns |= {"width_px": pa.int32(), "height_px": pa.int32()}
        return pa.schema(list(columns.items()))

    def _join(self) -> str:
        alias = {"captions": "c", "features": "f", "scores": "r"}
        numbers = [
            "CASE WHEN r.uid IS NULL THEN f.clip_similarity ELSE r.clip_similarity END AS clip_similarity"
            if said.name == "clip_similarity"
            else f'{alias[said.table]}."{said.name}"'
            for said in self.numbers.values()
            if said.name not in ("width_px", "height_px")
        ]
        unchecked = "false" if self.blocklists_known else "s.shard IS NOT NULL AND r.uid IS NULL"
        return _JOIN.format(numbers=",\n".join(numbers), unchecked=unchecked, taken_down=TAKEN_DOWN)


_JOIN = r"""
    SELECT s.number, s.uid, s.source, regexp_extract(lower(s.url), '^https?://([^/?#]+)', 1) AS host,
        s.caption, c.caption_clean, length(c.caption_clean) AS caption_chars, c.language,
        s.license, s.format, s.shard, s."offset", s.num_bytes, f.width_px, f.height_px, f.bucket,
        d.cluster_id, d.survivor_uid, d.kind, d.distance, d.is_survivor, d.won_by, d.semantic_cluster,
        {numbers},
        s.taken_down OR coalesce(r.blocklist_hit, {unchecked}) AS hidden,
        CASE WHEN s.taken_down OR s.status <> 'ok' THEN 'ingest' WHEN f.status <> 'ok' THEN 'embed'
            WHEN r.blocklist_hit THEN 'score' WHEN NOT d.is_survivor THEN 'dedup'
            WHEN c.caption_reason IS NOT NULL THEN 'captions' END AS early_stage,
        CASE WHEN s.taken_down THEN '{taken_down}' WHEN s.status <> 'ok' THEN s.status
            WHEN f.status <> 'ok' THEN f.status WHEN r.blocklist_hit THEN 'blocklist'
            WHEN NOT d.is_survivor THEN 'duplicate_' || d.kind
            ELSE c.caption_reason END AS early_reason,
        early_stage IS NULL AS meets_cut_offs,
        CASE WHEN n.uid IS NULL THEN early_stage ELSE n.reject_stage END AS stage,
        CASE WHEN n.uid IS NULL THEN early_reason ELSE n.reject_reason END AS reason,
        CASE WHEN n.uid IS NOT NULL THEN n.keep WHEN early_stage IS NOT NULL THEN false END AS keep
    FROM samples_rows s LEFT JOIN captions_rows c USING (uid) LEFT JOIN features_rows f USING (uid)
        LEFT JOIN duplicates_rows d USING (uid) LEFT JOIN scores_rows r USING (uid)
        LEFT JOIN selection_rows n USING (uid)
"""
"""`early_` is what drops a sample before any cut-off; `stage` and `reason` are selection's word once it has spoken."""


def _empty(schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([], schema=schema)


def _numbers(root: Root, tables: dict[str, Readable]) -> dict[str, Number]:
    """Return the columns of numbers that the tables have, or would have once they are made."""
    found: dict[str, Number] = {}
    for table in MEASURED_IN:
        names = list(tables[table].fragments)
        schema = schema_of(root, table, names[0]) if names else TABLES[table]
        for field in schema:
            if not (pa.types.is_floating(field.type) or pa.types.is_signed_integer(field.type)):
                continue
            said = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
            words = {key: said.get(key, "") for key in ("meaning", "unit", "range", "direction", "model", "revision")}
            found[field.name] = Number(name=field.name, table=table, **words)
    return found


def _notes(root: Root, tables: dict[str, Readable]) -> list[str]:
    """Return what a person must know to read the pages: missing tables and columns, and untrained models."""
    notes = [table.told for table in tables.values() if table.told]
    for name, table in tables.items():
        missing = lacking(root, name, next(iter(table.fragments))) if table.fragments else []
        if missing:
            notes.append(f"table {name} has no column {', '.join(missing)}: an earlier version made it")
        models = (table.manifest or {}).get("models") or []
        notes += [f"{name}: {model}" for model in models if "UNTRAINED" in model]
    return notes


def _no_blocklists(root: Root) -> bool:
    """Return whether it is known that the run compares its pictures with no blocklist."""
    said = root.read_json(f"tables/scores/{MANIFEST}") or {}
    settings = said.get("settings")
    return settings is not None and not any(value for name, value in settings.items() if name.startswith("blocklists_"))


def _buckets(root: Root) -> tuple[tuple[int, int], ...]:
    """Return the aspect buckets of the export, by its own settings once it has run; the defaults before."""
    said = (root.read_json(f"tables/plan/{MANIFEST}") or {}).get("settings")
    said = said or ((root.read_json("run.json") or {}).get("config") or {}).get("export") or {}
    default = ExportConfig()
    return ladder(said.get("resolution_px", default.resolution_px), said.get("multiple_px", default.multiple_px))


def _bucket_of(features: pa.Table, buckets: tuple[tuple[int, int], ...]) -> pa.Array:
    """Return the place of each picture's bucket, as `curate.buckets.nearest` chooses it; null without a picture."""
    order = sorted(range(len(buckets)), key=lambda at: -buckets[at][0] * buckets[at][1])
    aspects = np.log([buckets[at][0] / buckets[at][1] for at in order])
    there = pc.and_(pc.is_valid(features["width_px"]), pc.is_valid(features["height_px"])).to_numpy()
    height, width = (pc.fill_null(features[f"{side}_px"], 1).to_numpy() for side in ("height", "width"))
    wanted = np.log(height / width)
    nearest = np.abs(wanted[:, None] - aspects[None, :]).argmin(axis=1)
    return pa.array(np.array(order, np.int16)[nearest], mask=~np.asarray(there, bool))
