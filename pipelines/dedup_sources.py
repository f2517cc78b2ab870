"""What dedup reads: fragments of the root's tables and files of the index, in batches that a task reads at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curate.config import CurationConfig
from curate.dedup.records import SAMPLE_COLUMNS
from pipelines.dedup_index import Entry, read_index
from pipelines.store import Root, manifest, stale, table_file

ROWS_A_BATCH = 1_250_000
MIN_BATCHES = 64


@dataclass(frozen=True, kw_only=True)
class Source:
    """One fragment of the root's tables, or one file of the index."""

    fragment: str
    in_index: bool = False


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sources that follow each other."""

    first: int
    """Number of the first one."""
    sources: tuple[Source, ...]

    def numbered(self) -> list[tuple[int, Source]]:
        return list(enumerate(self.sources, self.first))


def sources_of(config: CurationConfig, entries: list[Entry]) -> tuple[list[Source], int]:
    """Return the fragments of the corpus and those of what was curated before, and how many rows they have at most."""
    features = manifest(Root(config.root), "features")
    own = [Source(fragment=name) for name in sorted(features["fragments"])]
    earlier = [Source(fragment=file, in_index=True) for entry in entries for file in entry.files]
    return [*own, *earlier], features["rows"] + sum(entry.rows for entry in entries)


def in_batches(sources: Sequence[Source], rows: int, cpus: int) -> list[Batch]:
    """Return the sources in batches of about ROWS_A_BATCH of their `rows`: what moves between tasks is a file for each.

    Without them, a hundred thousand fragments would make as many files, read piece by piece by each task that follows.
    """
    count = min(len(sources), max(MIN_BATCHES, 4 * cpus, -(-rows // ROWS_A_BATCH)))
    edges = [len(sources) * at // count for at in range(count + 1)] if count else [0]
    return [Batch(first=a, sources=tuple(sources[a:b])) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def first_of(batches: Sequence[Batch]) -> np.ndarray:
    """Return the number of each batch's first source, int64 (batches,)."""
    return np.array([batch.first for batch in batches], np.int64)


def batch_of(fragment: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the batch that each source of a given number is in."""
    return np.searchsorted(first, fragment, side="right") - 1


def evaluation_sources(config: CurationConfig) -> list[str]:
    """Return the sources that training must not see."""
    web = [source.name for source in config.web if source.evaluation]
    return sorted(web + [source.name for source in config.dumps if source.evaluation])


def read_rows(
    config: CurationConfig, source: Source, columns: Sequence[str], more: Sequence[str] = SAMPLE_COLUMNS
) -> pa.Table:
    """Return what dedup compares of a source's samples: `columns` of its features, `more` of samples."""
    if source.in_index:
        return read_index(source.fragment, columns)
    root = Root(config.root)
    samples = root.read_table(table_file("samples", source.fragment), ["uid", *more])
    captions = root.read_table(table_file("captions", source.fragment), ["caption_reason"])
    rows = root.read_table(table_file("features", source.fragment), columns)
    if len(samples) != len(captions):
        raise stale(table_file("captions", source.fragment))
    if samples["uid"] != rows["uid"]:
        raise stale(table_file("features", source.fragment))
    rows = rows.append_column("caption_fine", captions["caption_reason"].is_null())
    for name in more:
        rows = rows.append_column(name, samples[name])
    return rows.replace_schema_metadata(None)
