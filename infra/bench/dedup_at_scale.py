"""What the join by hash costs at a billion: a model fitted to measurements on this machine. One JSON line.

Blocks of B hashes meet themselves and each other; a task is one pair of blocks. The seconds of a task are fitted as
a B + b B^2 (reading and sorting are linear, the comparisons inside the 65,536 values of a band are not).

    python infra/bench/dedup_at_scale.py [--radius 4] [--total 1000000000] [--nodes 10] [--cores 32]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from near_duplicates import crawl_hashes  # noqa: E402

from curate.dedup.relations import NearByHash  # noqa: E402

SIZES = (1_000_000, 2_000_000, 5_000_000, 10_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--total", type=int, default=1_000_000_000)
    parser.add_argument("--block", type=int, default=10_000_000)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--cores", type=int, default=32, help="of a node")
    arguments = parser.parse_args()
    print(json.dumps(predict(arguments)))


def predict(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure both kinds of task, fit them, and add up the tasks of the whole."""
    for two in (False, True):
        measure(100_000, arguments.radius, two)  # compiled, or read from the cache, before the clock starts
    own, other = ([measure(size, arguments.radius, two) for size in SIZES] for two in (False, True))
    of_own, of_other = (cost(seconds, arguments.block) for seconds in (own, other))
    blocks = -(-arguments.total // arguments.block)
    cores = len(os.sched_getaffinity(0))
    core_seconds = cores * (blocks * of_own + blocks * (blocks - 1) / 2 * of_other)
    return {
        "bench": "dedup_at_scale",
        "radius_bits": arguments.radius,
        "sizes": SIZES,
        "seconds_block_with_itself": np.round(own, 3).tolist(),
        "seconds_two_blocks": np.round(other, 3).tolist(),
        "cores_here": cores,
        "total": arguments.total,
        "tasks": blocks * (blocks + 1) // 2,
        "core_hours": round(core_seconds / 3600, 2),
        "minutes": round(core_seconds / (arguments.nodes * arguments.cores) / 60, 1),
        "read_tb": round(8 * arguments.block * blocks**2 / 1e12, 2),
        "nodes": arguments.nodes,
        "cores_of_a_node": arguments.cores,
    }


def measure(size: int, radius: int, two: bool) -> float:
    """Return the seconds in which one block meets itself, or two blocks of that size each other."""
    words = crawl_hashes(2 * size if two else size, seed=1)[None]
    relation, rows = NearByHash(words_WN=words, radius=radius), np.arange(words.shape[1])
    started = time.perf_counter()
    _ = relation.met(rows[:size], rows[size:]) if two else relation.marked(rows)
    return time.perf_counter() - started


def cost(seconds: list[float], block: int) -> float:
    """Return the fitted seconds a + b of a task on blocks of `block` hashes, neither below 0."""
    sizes = np.array(SIZES, float)
    terms = np.stack([sizes, sizes**2], axis=1) / np.array([block, block**2])
    relative = terms / np.array(seconds)[:, None]
    linear, square = np.maximum(np.linalg.lstsq(relative, np.ones(len(sizes)), rcond=None)[0], 0)
    return float(linear + square)


if __name__ == "__main__":
    main()
