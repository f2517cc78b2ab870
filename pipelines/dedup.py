#!/usr/bin/env python3
"""Dedup: exact bytes, error images, perceptual and semantic near-duplicates, with a survivor for each."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.config import CurationConfig
from curate.dedup.relations import NearToFixed
from curate.dedup.survivors import Dropped, survivors
from pipelines import dedup_ranking as ranking
from pipelines import dedup_verdicts as verdicts
from pipelines.command import run_step
from pipelines.dedup_blocks import SCRATCH, Blocks, NearInBlocks
from pipelines.dedup_clusters import SAMPLES_A_CLUSTER, NearInClusters, assign_clusters, num_clusters
from pipelines.dedup_index import Entry, earlier_entries, publish_entry, withdraw_entry
from pipelines.dedup_sources import (
    ROWS_A_BATCH,
    Batch,
    Source,
    evaluation_sources,
    first_of,
    in_batches,
    sources_of,
)
from pipelines.preflight import check_untrained
from pipelines.runner import Fragment, Made, Report, Runner, Step, say, shaping
from pipelines.store import Root, check_fragments, fragments
from schemas.duplicates import VERSION

ROWS_PER_CLUSTER = 20_000
"""Above this many on average, matching inside clusters costs more than choosing among more of them."""


def dedup(runner: Runner) -> list[Report]:
    """Compare every decoded sample with every other one."""
    config, root = runner.config, runner.root
    check_untrained(config)
    samples, captions, features = (fragments(root, name) for name in ("samples", "captions", "features"))
    check_fragments(root, samples, "captions", "features", dry_run=runner.dry_run)
    entries = earlier_entries(config)
    made_from = [samples, captions, features, VERSION]
    if config.dedup.radius_bits == 0 and config.dedup.confirm_pdq_bits is not None:
        made_from.append("equal hashes are confirmed")  # they were not, once
    made_from += [[entry.digest for entry in entries], evaluation_sources(config)]
    whole = Fragment(name="all", made_from=made_from, arguments=sources_of(config, entries))
    if config.dedup.index is not None:
        say(_told_of_index(config.dedup.index, entries))
    settings = shaping(config.dedup, "rows_per_block", "rows_per_group", "max_pairs")
    step = Step(table="duplicates", settings=settings, build=_build, spreads=True)
    report = runner.run(step, [whole] if features else [])
    if not runner.dry_run:
        publish_entry(config, list(features), runner.pool)
    return [report]


def _told_of_index(index: str, entries: list[Entry]) -> str:
    earlier = sum(entry.rows for entry in entries)
    return f"index {index}: {len(entries)} earlier corpora with {earlier:,} survivors"


def _build(config: CurationConfig) -> Any:
    return partial(compare, config)


def compare(config: CurationConfig, pool: Any, sources: list[Source], rows: int) -> Made:
    """Return the table's files: what became of each sample of the sources, `rows` at most in number."""
    root = Root(config.root)
    root.remove(SCRATCH, recursive=True)
    withdraw_entry(config)
    batches = in_batches(sources, rows, pool.cpus)
    blocks, fixed, sifted, same_bytes = _read(config, pool, batches, rows)
    relations: list[Any] = [same_bytes, NearInBlocks(blocks=blocks, pool=pool)]
    clusters = _clusters(config, pool, batches, blocks)
    relations += [clusters] if clusters else []
    found = survivors(relations, int(blocks.starts[-1]), fixed, config.dedup.max_pairs)
    made = _write(config, pool, batches, blocks, sifted, found, clusters)
    root.remove(SCRATCH, recursive=True)
    return made


def _read(
    config: CurationConfig, pool: Any, batches: list[Batch], rows: int
) -> tuple[Blocks, int, list[ranking.Sifted], NearToFixed]:
    """Bring equal bytes together, then order what is left by rank in blocks; returns how many are ahead, too."""
    cuts, parts, width = _cuts(config, pool, batches, rows), max(pool.cpus, -(-rows // ROWS_A_BATCH)), pool.node_cpus
    calls: list[tuple] = [(config, number, batch, parts) for number, batch in enumerate(batches)]
    described = list(pool.map(ranking.describe, calls))
    by_bytes = pool.share([made.by_bytes for made in described])
    calls = [(config, by_bytes, part, cuts, first_of(batches)) for part in range(parts)]
    sifted = list(pool.map(ranking.sift, calls))
    Root(config.root).remove(f"{SCRATCH}/bytes", recursive=True)
    shared = pool.share(sifted)
    calls = [(config, shared, block, width) for block in range(len(cuts) + 1)]
    ordered = list(pool.map(ranking.make_block, calls, width))
    Root(config.root).remove(f"{SCRATCH}/rank", recursive=True)
    starts = np.concatenate([[0], np.cumsum([block.rows for block in ordered])])
    blocks = Blocks(root=config.root, config=config.dedup, starts=starts, threads=width)
    return blocks, sum(made.ahead for made in described), sifted, ranking.same_bytes_ahead(ordered, starts)


def _cuts(config: CurationConfig, pool: Any, batches: list[Batch], rows: int) -> np.ndarray:
    """Return the keys between blocks of about `rows_per_block` rows."""
    num_blocks = max(1, -(-rows // config.dedup.rows_per_block))
    step = max(1, rows // (num_blocks * ranking.KEYS_A_BLOCK))
    drawn = pool.map(ranking.sample_keys, [(config, batch, step) for batch in batches]) if num_blocks > 1 else ()
    return ranking.cuts(np.concatenate([np.empty(0, "S24"), *drawn]), num_blocks)


def _clusters(config: CurationConfig, pool: Any, batches: list[Batch], blocks: Blocks) -> NearInClusters | None:
    """Return the relation between embeddings; None where the semantic step is off, or there are none."""
    rows = int(blocks.starts[-1])
    if config.dedup.semantic_eps is None or rows == 0:
        return None
    clusters, searched = num_clusters(config.dedup, rows), rows * config.dedup.semantic_nearest
    if searched > ROWS_PER_CLUSTER * clusters:
        say(
            f"warning: {clusters:,} semantic clusters are few: {searched // clusters:,} samples are searched in each; "
            f"raise dedup.semantic_sample, or set dedup.semantic_clusters to {rows // SAMPLES_A_CLUSTER:,}"
        )
    return assign_clusters(config, pool, batches, blocks)


def _write(
    config: CurationConfig,
    pool: Any,
    batches: list[Batch],
    blocks: Blocks,
    sifted: list[ranking.Sifted],
    found: Dropped,
    clusters: NearInClusters | None,
) -> Made:
    """Say of each dropped sample why, and write the table fragment by fragment."""
    dropped, kept, by = found.row, found.survivor, found.by
    one_minus_cosine = np.full(len(dropped), np.nan)
    if clusters is not None:
        semantic = by == verdicts.KINDS.index(verdicts.SEMANTIC)
        one_minus_cosine[semantic] = clusters.distance(dropped[semantic], kept[semantic])
    edges, calls = np.searchsorted(dropped, blocks.starts), []
    for block in range(len(blocks)):
        at = slice(edges[block], edges[block + 1])
        calls.append((blocks, block, dropped[at], kept[at], by[at], one_minus_cosine[at], first_of(batches)))
    said = pool.share([made.errors for made in sifted] + list(pool.map(verdicts.explain, calls)))
    to_write = [(config, number, batch, said, clusters is not None) for number, batch in enumerate(batches)]
    written = [made for batch in pool.map(verdicts.write_batch, to_write) for made in batch]
    counts = {name: sum(made.counts.get(name, 0) for made in written) for name in verdicts.COUNTED}
    files = {made.path: made.file for made in written}
    return Made(rows=None, files=files, counts=counts, num_rows=sum(made.rows for made in written))


if __name__ == "__main__":
    run_step("dedup", dedup, __doc__)
