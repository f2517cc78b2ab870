"""Every table by its name, so that a file says whether this program can read it."""

import pyarrow as pa

from schemas import (
    captions,
    duplicates,
    features,
    fetches,
    latents,
    plan,
    recaptions,
    samples,
    scores,
    selection,
    shards,
    urls,
)
from schemas.column import TABLE_KEY, VERSION_KEY, NewerTable

_OF_MODULES = (captions, duplicates, fetches, latents, plan, recaptions, samples, scores, selection, shards, urls)
TABLES: dict[str, pa.Schema] = {
    schema.metadata[TABLE_KEY].decode(): schema
    for schema in (captions.TEXTS, captions.COUNTS, *(module.SCHEMA for module in _OF_MODULES))
}
TABLES["features"] = features.schema(embedding_dim=0)


def check_version(found: pa.Schema, where: str) -> None:
    """Raise NewerTable where a file of one of the tables has a version above the one this code knows."""
    metadata = found.metadata or {}
    check_known(metadata.get(TABLE_KEY, b"").decode(), int(metadata.get(VERSION_KEY, b"0")), where)


def version_of(name: str) -> int | None:
    """Return the version of a table's schema; None for a table that has none."""
    known = TABLES.get(name)
    return None if known is None else int(known.metadata[VERSION_KEY])


def check_known(name: str, version: int | None, where: str) -> None:
    """Raise NewerTable where the version is above the one this code knows."""
    newest = version_of(name)
    if newest is not None and version is not None and version > newest:
        raise NewerTable(f"{where}: table {name} has version {version}, this program reads up to {newest}: update it")
