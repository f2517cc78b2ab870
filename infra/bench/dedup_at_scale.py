"""What dedup costs at a billion, from parquet to parquet: a model fitted to measurements here. One JSON line.

The join: blocks of B hashes meet themselves and each other; a task is one pair of blocks. Its core seconds are fitted
as a B + b B^2 (reading and sorting are linear, the comparisons inside the 65,536 values of a band are not).
The rounds: the rows that have a near one meet once more, block by block, for their survivors; fitted likewise.
Embeddings: each is compared with every centroid, to fit them (on one node) and to find its clusters, and with its
clusters' members.
All else is linear in the number of samples: the tasks of the step on tables like a crawl's, by name. Left out: what a
remote store adds, and the driver's own work.

    python infra/bench/dedup_at_scale.py [--radius 4] [--total 1000000000] [--nodes 10] [--cores 32] [--clusters 100000]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from dedup_step import write_tables  # noqa: E402
from near_duplicates import crawl_hashes  # noqa: E402
from semantic import unit  # noqa: E402

from curate.config import CurationConfig, DedupConfig  # noqa: E402
from curate.dedup import semantic  # noqa: E402
from curate.dedup.relations import NearByHash  # noqa: E402
from pipelines.dedup import compare  # noqa: E402
from pipelines.dedup_sources import sources_of  # noqa: E402
from pipelines.store import Root  # noqa: E402

SIZES = (1_000_000, 2_000_000, 5_000_000, 10_000_000)
TABLE_ROWS = (500_000, 1_000_000, 2_000_000)
OF_THE_JOIN = ("_met", "_pairs")
WIDTH, ALIKE = 768, 0.5
"""Of embeddings: their width, and the cosine between two of one cluster that are no duplicates."""
ASSIGNED, CENTROIDS = 20_000, 1000
NEAREST, DRAWN_A_CLUSTER, ITERATIONS = 3, 50, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--total", type=int, default=1_000_000_000)
    parser.add_argument("--block", type=int, default=10_000_000)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--cores", type=int, default=32, help="of a node")
    parser.add_argument("--clusters", type=int, default=100_000, help="dedup.semantic_clusters")
    arguments = parser.parse_args()
    print(json.dumps(predict(arguments)))


def predict(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure both kinds of task, fit them, and add up the tasks of the whole."""
    for two in (False, True):
        measure(100_000, arguments.radius, two)  # compiled, or read from the cache, before the clock starts
    own, other = ([measure(size, arguments.radius, two) for size in SIZES] for two in (False, True))
    of_own, of_other = (cost(seconds, arguments.block) for seconds in (own, other))
    again = [measure_round(size, arguments.radius) for size in SIZES]
    blocks = -(-arguments.total // arguments.block)
    pairs_of_blocks = blocks * (blocks - 1) / 2
    join = blocks * of_own + pairs_of_blocks * of_other
    rounds = blocks * of_own + pairs_of_blocks * cost(again, arguments.block)
    tables = seconds_a_million(arguments.radius)
    core_seconds = join + rounds + sum(tables.values()) * arguments.total / 1e6
    embeddings = embedding_seconds(arguments.total, arguments.clusters)
    spread, on_one = arguments.nodes * arguments.cores, arguments.cores
    minutes_of_embeddings = (embeddings["fit"] / on_one + (embeddings["assign"] + embeddings["compare"]) / spread) / 60
    return {
        "bench": "dedup_at_scale",
        "radius_bits": arguments.radius,
        "sizes": SIZES,
        "core_seconds_block_with_itself": np.round(own, 3).tolist(),
        "core_seconds_two_blocks": np.round(other, 3).tolist(),
        "total": arguments.total,
        "tasks": blocks * (blocks + 1) // 2,
        "core_seconds_a_million_by_task": {name: round(seconds, 3) for name, seconds in tables.items()},
        "core_seconds_round": np.round(again, 3).tolist(),
        "core_hours_of_the_join": round(join / 3600, 2),
        "core_hours_of_the_rounds": round(rounds / 3600, 2),
        "core_hours": round(core_seconds / 3600, 2),
        "minutes": round(core_seconds / spread / 60, 1),
        "clusters": arguments.clusters,
        "core_hours_of_embeddings": {name: round(seconds / 3600, 1) for name, seconds in embeddings.items()},
        "minutes_of_embeddings": round(minutes_of_embeddings),
        "read_tb": round(8 * arguments.block * blocks**2 / 1e12, 2),
        "nodes": arguments.nodes,
        "cores_of_a_node": arguments.cores,
    }


def seconds_a_million(radius: int) -> dict[str, float]:
    """Return the core seconds of each task of the step but the join, fitted as a line through zero over TABLE_ROWS."""
    _step(TABLE_ROWS[0], radius)  # compiled, or read from the cache, before the clock starts
    by_size = [_step(rows, radius) for rows in TABLE_ROWS]
    rows = np.array(TABLE_ROWS) / 1e6
    names = sorted(set().union(*by_size) - set(OF_THE_JOIN))
    seconds = {name: np.array([said.get(name, 0.0) for said in by_size]) for name in names}
    return {name: float(rows @ took / (rows @ rows)) for name, took in seconds.items()}


def _step(rows: int, radius: int) -> dict[str, float]:
    """Return the seconds of each kind of task, one after the other in this process."""
    with tempfile.TemporaryDirectory() as folder:
        settings = DedupConfig(radius_bits=radius, semantic_eps=None)
        config, pool = CurationConfig(root=folder, dedup=settings), OneByOne()
        write_tables(Root(folder), rows)
        compare(config, pool, *sources_of(config, []))
    return pool.seconds


class OneByOne:
    """The pool of the step without a cluster, on one core: tasks are timed by name."""

    cpus = node_cpus = 1

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def share(self, value: Any) -> Any:
        return value

    def map(self, function: Callable, calls: Sequence[tuple], threads: int = 1, gpu: bool = False) -> Iterator[Any]:
        for call in calls:
            started = time.process_time()
            value = function(*call)
            took = time.process_time() - started
            self.seconds[function.__name__] = self.seconds.get(function.__name__, 0.0) + took
            yield value


def measure(size: int, radius: int, two: bool) -> float:
    """Return the core seconds in which one block meets itself, or two blocks of that size each other."""
    words = crawl_hashes(2 * size if two else size, seed=1)[None]
    relation, rows = NearByHash(words_WN=words, radius=radius), np.arange(words.shape[1])
    started = time.process_time()
    _ = relation.met(rows[:size], rows[size:]) if two else relation.marked(rows)
    return time.process_time() - started


def measure_round(size: int, radius: int) -> float:
    """Return the core seconds in which the near rows of one block look for survivors among those of another."""
    words = crawl_hashes(2 * size, seed=1)[None]
    relation = NearByHash(words_WN=words, radius=radius)
    near = np.flatnonzero(relation.marked(np.arange(2 * size)))
    started = time.process_time()
    relation.nearest(near[near >= size], near[near < size])
    return time.process_time() - started


def embedding_seconds(total: int, clusters: int) -> dict[str, float]:
    """Return the core seconds to fit the clusters, to find those of each embedding, and to compare their members."""
    rng, members = np.random.default_rng(0), min(total, NEAREST * total // clusters)
    cluster_ND = unit(np.sqrt(1 - ALIKE) * directions(rng, members) + np.sqrt(ALIKE) * directions(rng, 1))
    cluster_ND = cluster_ND.astype(np.float16)
    centroids_KD, assigned_ND = directions(rng, CENTROIDS), directions(rng, ASSIGNED).astype(np.float16)
    semantic.mark_near(cluster_ND[:100], [np.arange(100)], 0.95)  # compiled before the clock starts
    semantic.nearest_clusters(assigned_ND[:100], centroids_KD, NEAREST)
    started = time.process_time()
    semantic.nearest_clusters(assigned_ND, centroids_KD, NEAREST)
    a_product = (time.process_time() - started) / (ASSIGNED * CENTROIDS)
    started = time.process_time()
    semantic.mark_near(cluster_ND, [np.arange(members)], 0.95)
    a_cluster = time.process_time() - started
    fitted = ITERATIONS * min(total, DRAWN_A_CLUSTER * clusters)
    return {
        "fit": a_product * fitted * clusters,
        "assign": a_product * total * clusters,
        "compare": a_cluster * clusters,
    }


def directions(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return random unit vectors, float32 (count, WIDTH); two of them are nearly at right angles."""
    return unit(rng.standard_normal((count, WIDTH), dtype=np.float32))


def cost(seconds: list[float], block: int) -> float:
    """Return the fitted core seconds a + b of a task on blocks of `block` hashes, neither below 0."""
    sizes = np.array(SIZES, float)
    terms = np.stack([sizes, sizes**2], axis=1) / np.array([block, block**2])
    relative = terms / np.array(seconds)[:, None]
    linear, square = np.maximum(np.linalg.lstsq(relative, np.ones(len(sizes)), rcond=None)[0], 0)
    return float(linear + square)


if __name__ == "__main__":
    main()
