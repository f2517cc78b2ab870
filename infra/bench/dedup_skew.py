"""Skewed hashes at a size and at twice that size: what costs no square takes about twice as long. One JSON line a case.

    python infra/bench/dedup_skew.py [--count 5000000] [--radius 4]

Each measurement has a process of its own, whose peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PDQ_RADIUS = 31
WARM_UP = 20_000


def copies(count: int) -> np.ndarray:
    """Return one hash over and over."""
    return np.full(count, 0x123456789ABCDEF0, np.uint64)


def band(count: int) -> np.ndarray:
    """Return random hashes, of which each tenth has the same 16 bits."""
    hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    hashes[::10] &= ~np.uint64(0xFFFF)
    return hashes


def cube(count: int) -> np.ndarray:
    """Return a tenth as many hashes as they fill all values of their lowest bits: each has thousands near it."""
    return np.random.default_rng(0).permutation(count // 10).astype(np.uint64)


def shared(count: int) -> np.ndarray:
    """Return one hash for a tenth as many pictures, which a second hash tells apart."""
    return copies(count // 10)


CASES = {each.__name__: each for each in (copies, band, cube, shared)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5_000_000)
    parser.add_argument("--radius", type=int, default=4)
    arguments = parser.parse_args()
    for case in CASES:
        once, twice = (apart(case, size, arguments.radius) for size in (arguments.count, 2 * arguments.count))
        grown = round(twice["seconds"] / once["seconds"], 2)
        said = {"bench": "dedup_skew", "case": case, "radius_bits": arguments.radius}
        print(json.dumps(said | {"once": once, "twice": twice, "times_for_twice_as_many": grown}), flush=True)


def apart(case: str, count: int, radius: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case, count, radius))


def measure(case: str, count: int, radius: int) -> dict[str, float]:
    answer(case, WARM_UP, radius)  # compiled, or read from the cache, before the clock starts
    hashes = len(CASES[case](count))
    seconds, survivors = answer(case, count, radius)
    peak_gb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return {"hashes": hashes, "seconds": round(seconds, 2), "survivors": survivors, "peak_gb": peak_gb}


def answer(case: str, count: int, radius: int) -> tuple[float, int]:
    """Return the seconds from hashes to survivors, and the number of these."""
    from curate.dedup.hamming import Confirm
    from curate.dedup.relations import NearByHash
    from curate.dedup.survivors import survivors

    hashes, confirm = CASES[case](count), None
    if case == shared.__name__:
        second = np.random.default_rng(1).integers(0, 2**64, (4, len(hashes)), dtype=np.uint64)
        confirm = Confirm(words_4N=second, radius=PDQ_RADIUS)
    started = time.perf_counter()
    dropped = survivors([NearByHash(words_WN=hashes[None], radius=radius, confirm=confirm)], len(hashes))
    return time.perf_counter() - started, len(hashes) - len(dropped.row)


if __name__ == "__main__":
    main()
