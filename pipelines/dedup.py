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
from curate.dedup.survivors import Dropped, survivors
from pipelines import dedup_tasks as tasks
from pipelines.command import run_step
from pipelines.dedup_blocks import SCRATCH, Blocks, NearInBlocks
from pipelines.dedup_clusters import (
    SAMPLES_A_CLUSTER,
    NearInClusters,
    assign_clusters,
    cluster_file,
    num_clusters,
)
from pipelines.dedup_index import Entry, earlier_entries, publish_entry, withdraw_entry
from pipelines.runner import Fragment, Made, Report, Runner, Step, say, shaping
from pipelines.store import Root, fragments, manifest
from schemas.duplicates import VERSION

ROWS_PER_CLUSTER = 20_000
"""Above this many on average, matching inside clusters costs more than choosing among more of them."""


def dedup(runner: Runner) -> list[Report]:
    """Compare every decoded sample with every other one."""
    config, root = runner.config, runner.root
    samples, captions, features = (fragments(root, name) for name in ("samples", "captions", "features"))
    entries = earlier_entries(config)
    made_from = [samples, captions, features, VERSION]
    made_from += [[entry.digest for entry in entries], tasks.evaluation_sources(config)]
    whole = Fragment(name="all", made_from=made_from, arguments=sources_of(config, entries))
    _say_what_is_compared(config, entries, manifest(root, "features")["rows"])
    settings = shaping(config.dedup, "rows_per_block", "rows_per_group", "max_pairs")
    step = Step(table="duplicates", settings=settings, build=_build, spreads=True)
    report = runner.run(step, [whole] if features else [])
    publish_entry(config, list(features))
    return [report]


def sources_of(config: CurationConfig, entries: list[Entry]) -> tuple[list[tasks.Source], int]:
    """Return the fragments of the corpus and those of what was curated before, and how many rows they have at most."""
    features = manifest(Root(config.root), "features")
    own = [tasks.Source(fragment=name) for name in sorted(features["fragments"])]
    earlier = [tasks.Source(fragment=file, in_index=True) for entry in entries for file in entry.files]
    return [*own, *earlier], features["rows"] + sum(entry.rows for entry in entries)


def _say_what_is_compared(config: CurationConfig, entries: list[Entry], own: int) -> None:
    earlier = sum(entry.rows for entry in entries)
    if config.dedup.index is not None:
        say(f"index {config.dedup.index}: {len(entries)} earlier corpora with {earlier:,} survivors")
    clusters, searched = num_clusters(config.dedup, own + earlier), (own + earlier) * config.dedup.semantic_nearest
    if config.dedup.semantic_eps is not None and searched > ROWS_PER_CLUSTER * clusters:
        say(
            f"warning: {clusters:,} semantic clusters are few: {searched // clusters:,} samples are searched in each; "
            f"raise dedup.semantic_sample, or set dedup.semantic_clusters to {(own + earlier) // SAMPLES_A_CLUSTER:,}"
        )


def _build(config: CurationConfig) -> Any:
    return partial(compare, config)


def compare(config: CurationConfig, pool: Any, sources: list[tasks.Source], rows: int) -> Made:
    """Return the table's files: what became of each sample of the sources, `rows` at most in number."""
    root = Root(config.root)
    root.remove(SCRATCH, recursive=True)
    withdraw_entry(config)
    blocks, fixed, sifted = _read(config, pool, sources, rows)
    relations: list[Any] = [NearInBlocks(blocks=blocks, pool=pool)]
    clusters = _clusters(config, pool, sources, blocks)
    relations += [clusters] if clusters else []
    found = survivors(relations, int(blocks.starts[-1]), fixed, config.dedup.max_pairs)
    made = _write(config, pool, sources, blocks, sifted, found, clusters)
    root.remove(SCRATCH, recursive=True)
    return made


def _read(
    config: CurationConfig, pool: Any, sources: list[tasks.Source], rows: int
) -> tuple[Blocks, int, list[tasks.Sifted]]:
    """Bring equal bytes together, then order what is left by rank in blocks; returns how many are ahead."""
    num_blocks = max(1, -(-rows // config.dedup.rows_per_block))
    step = max(1, rows // (num_blocks * tasks.KEYS_A_BLOCK))
    drawn = pool.map(tasks.sample_keys, [(config, source, step) for source in sources]) if num_blocks > 1 else ()
    cuts = tasks.cuts(np.concatenate([np.empty(0, "S24"), *drawn]), num_blocks)
    num_blocks = len(cuts) + 1
    parts = max(pool.cpus, -(-rows // tasks.ROWS_A_PART))
    described = list(pool.map(tasks.describe, [(config, at, source, parts) for at, source in enumerate(sources)]))
    by_bytes = pool.share([made.by_bytes for made in described])
    calls = [(config, by_bytes, part, cuts, len(sources)) for part in range(parts)]
    sifted = list(pool.map(tasks.sift, calls))
    Root(config.root).remove(f"{SCRATCH}/bytes", recursive=True)
    shared, width = pool.share(sifted), pool.node_cpus
    sizes = list(pool.map(tasks.make_block, [(config, shared, block, width) for block in range(num_blocks)], width))
    Root(config.root).remove(f"{SCRATCH}/rank", recursive=True)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    blocks = Blocks(root=config.root, config=config.dedup, starts=starts, threads=width)
    return blocks, sum(made.ahead for made in described), sifted


def _clusters(config: CurationConfig, pool: Any, sources: list[tasks.Source], blocks: Blocks) -> NearInClusters | None:
    """Return the relation between embeddings; None where the semantic step is off, or there are none."""
    if config.dedup.semantic_eps is None or blocks.starts[-1] == 0:
        return None
    calls = [(blocks, block, len(sources)) for block in range(len(blocks))]
    places = list(pool.map(tasks.places_by_fragment, calls))
    return assign_clusters(config, pool, sources, int(blocks.starts[-1]), places)


def _write(
    config: CurationConfig,
    pool: Any,
    sources: list[tasks.Source],
    blocks: Blocks,
    sifted: list[tasks.Sifted],
    found: Dropped,
    clusters: NearInClusters | None,
) -> Made:
    """Say of each dropped sample why, and write the table fragment by fragment."""
    dropped, kept, by = found.row, found.survivor, found.by
    one_minus_cosine = np.full(len(dropped), np.nan)
    if clusters is not None:
        one_minus_cosine[by == 1] = clusters.distance(dropped[by == 1], kept[by == 1])
    edges, calls = np.searchsorted(dropped, blocks.starts), []
    for block in range(len(blocks)):
        at = slice(edges[block], edges[block + 1])
        calls.append((blocks, block, dropped[at], kept[at], by[at], one_minus_cosine[at], len(sources)))
    said = pool.share([made.errors for made in sifted] + list(pool.map(tasks.explain, calls)))
    to_write = [
        (config, number, source, said, cluster_file(number) if clusters else "")
        for number, source in enumerate(sources)
        if not source.in_index
    ]
    written = list(pool.map(tasks.write_fragment, to_write))
    counts = {name: sum(made.counts.get(name, 0) for made in written) for name in tasks.COUNTED}
    files = {made.path: made.file for made in written}
    return Made(rows=None, files=files, counts=counts, num_rows=sum(made.rows for made in written))


if __name__ == "__main__":
    run_step("dedup", dedup, __doc__)
