"""One sample: everything that every table says of it, its duplicates, and what looks like it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.dashboard_server.browse import tiles
from pipelines.dashboard_server.filters import SHOWN
from pipelines.dashboard_server.index import ROWS_BITS, Index
from pipelines.dashboard_server.tables import SHOWN as TABLES_SHOWN
from pipelines.dashboard_server.tables import read_stretches, schema_of
from pipelines.store import table_file

NOT_TOLD = ("embedding", "phash64_turned", "shard", "offset")
"""Columns that are no use to a reader, or say where a file lies."""
MOST_DUPLICATES = 60
MOST_COMPARED = 200_000
ROWS_AT_ONCE = 10_000
NEAREST = 24


def sample(index: Index, uid: str) -> dict[str, Any]:
    """Return a sample's tile, its row in each table with meanings, and its duplicates; raises LookupError."""
    found = index.rows(f"SELECT number, cluster_id FROM board WHERE uid = ? AND {SHOWN}", [uid])
    if not found:
        raise LookupError(uid)
    number, cluster_id = found[0]
    return {
        "tile": tiles(index, [number])[0],
        "history": _history(index, uid, _fragment(index, number)),
        "duplicates": _members(index, cluster_id),
    }


def like(index: Index, uid: str) -> dict[str, Any]:
    """Return the samples whose embeddings are nearest by cosine, and how many were compared.

    Embeddings stay in the tables; those of the sample's own fragment come first, then the other fragments, until
    MOST_COMPARED samples were compared. Raises LookupError.
    """
    found = index.rows(f"SELECT number FROM board WHERE uid = ? AND {SHOWN}", [uid])
    if not found:
        raise LookupError(uid)
    own = _fragment(index, found[0][0])
    query = next(
        (vectors_ND[at] for uids, vectors_ND in _embeddings(index, own) for at in np.flatnonzero(uids == uid)), None
    )
    best: list[tuple[float, str]] = []
    compared = 0
    for uids, vectors_ND in () if query is None else _all_embeddings(index, own):
        cosines = vectors_ND @ query
        compared += len(cosines)
        nearest = np.argsort(-cosines, kind="stable")[: NEAREST + 1]
        best = sorted([*best, *((float(cosines[i]), str(uids[i])) for i in nearest)], key=lambda pair: -pair[0])
        best = [pair for pair in best if pair[1] != uid][:NEAREST]
        if compared >= MOST_COMPARED:
            break
    total = index.rows("SELECT count(*) FROM board WHERE shard IS NOT NULL AND early_stage IS DISTINCT FROM 'embed'")[
        0
    ][0]
    return {"tiles": _with_cosines(index, best), "compared": compared, "of": total}


def _with_cosines(index: Index, best: list[tuple[float, str]]) -> list[dict[str, Any]]:
    if not best:
        return []
    marks = ", ".join("?" * len(best))
    numbers = dict(index.rows(f"SELECT uid, number FROM board WHERE uid IN ({marks})", [uid for _, uid in best]))
    cosine = {numbers[uid]: value for value, uid in best if uid in numbers}
    return [tile | {"value": cosine[tile["number"]]} for tile in tiles(index, list(cosine))]


def _all_embeddings(index: Index, own: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the embeddings of every fragment, those of one fragment first."""
    for name in [own, *(name for name in index.tables["features"].fragments if name != own)]:
        yield from _embeddings(index, name)


def _embeddings(index: Index, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield uids (N,) and float32 embeddings (N, D) of a fragment's samples that have one, a stretch at a time."""
    for rows in read_stretches(index.root, "features", name, ["uid", "embedding"], ROWS_AT_ONCE):
        embedding = rows["embedding"]
        there = embedding.is_valid().to_numpy(zero_copy_only=False)
        flat = embedding.drop_null().flatten().to_numpy(zero_copy_only=False)
        vectors_ND = flat.reshape(-1, embedding.type.list_size).astype(np.float32)
        yield np.array(rows["uid"].to_pylist(), object)[there], vectors_ND


def _fragment(index: Index, number: int) -> str:
    return index.rows("SELECT name FROM fragments WHERE number = ?", [number >> ROWS_BITS])[0][0]


def _history(index: Index, uid: str, fragment: str) -> list[dict[str, Any]]:
    """Return what each table says of the sample, column by column with unit, range, direction and model."""
    told: list[dict[str, Any]] = []
    for table in TABLES_SHOWN:
        if fragment not in index.tables[table].fragments:
            told.append({"table": table, "columns": [], "note": index.tables[table].told})
            continue
        schema = schema_of(index.root, table, fragment)
        names = [name for name in schema.names if name not in NOT_TOLD]
        rows = index.root.read_table(table_file(table, fragment), names)
        at = [place for place, found in enumerate(rows["uid"].to_pylist()) if found == uid]
        row = rows.slice(at[0], 1).to_pylist()[0] if at else {}
        columns = [
            {key.decode(): value.decode() for key, value in (schema.field(name).metadata or {}).items()}
            | {"name": name, "value": _plain(row[name])}
            for name in names
            if row.get(name) is not None
        ]
        told.append({"table": table, "columns": columns, "note": ""})
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and abs(value) >= 2**53:
        return f"{value:016x}"
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _members(index: Index, cluster_id: str | None) -> list[dict[str, Any]]:
    """Return the members of a sample's cluster, the survivor first."""
    if cluster_id is None:
        return []
    rows = index.dicts(
        f"""SELECT number, kind, distance, is_survivor, won_by FROM board WHERE cluster_id = ? AND {SHOWN}
        ORDER BY NOT is_survivor, distance NULLS LAST, uid LIMIT ?""",
        [cluster_id, MOST_DUPLICATES],
    )
    by_number = {tile["number"]: tile for tile in tiles(index, [row["number"] for row in rows])}
    return [by_number[row["number"]] | row for row in rows] if len(rows) > 1 else []
