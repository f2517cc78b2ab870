"""Near-duplicate survivors of 64-bit hashes, beside faiss and imagededup in the same run. One JSON line for each case.

The hashes are like a crawl's: planted clusters of up to thousands, 12 % exact repeats, the rest random.
`seconds` has the join alone (every near pair of the distinct hashes, marked) and `near_duplicates_seconds` the whole
answer, each the fastest of three; each case runs in a process of its own, so that its peak of memory is its own.

    python infra/bench/near_duplicates.py [--count 1000000 10000000] [--radius 3 4 6 10]

faiss and imagededup list pairs. faiss runs up to --faiss-most hashes, imagededup up to --imagededup-most
(`make peers` installs it in an environment of its own; without it the line says so).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

PEERS_PYTHON = PROJECT / ".venv-peers" / "bin" / "python"
WARM_UP = 5000
"""More than are met whole, so that every kernel is compiled, or read from the cache, before the clock starts."""
REPEATS = 3
"""Timings of which the fastest is told, ours and faiss's: a single one of a tenth of a second is mostly noise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, nargs="+", default=[5_000, 1_000_000, 10_000_000])
    parser.add_argument("--radius", type=int, nargs="+", default=[3, 4, 6, 10])
    parser.add_argument("--faiss-most", type=int, default=1_000_000)
    parser.add_argument("--faiss-radius", type=int, default=3, help="faiss takes minutes above it at 1 million")
    parser.add_argument("--imagededup-most", type=int, default=5_000)
    arguments = parser.parse_args()
    joins: dict[tuple[int, int], float] = {}
    answers: dict[tuple[int, int], float] = {}
    for count in arguments.count:
        for radius in arguments.radius:
            contenders: dict[str, Callable[[int, int], dict]] = {"darkroom": darkroom}
            if count <= arguments.faiss_most and radius <= arguments.faiss_radius:
                contenders["faiss_multihash"] = faiss_multihash
            if count <= arguments.imagededup_most and radius <= arguments.faiss_radius:
                contenders["imagededup_bktree"] = imagededup_bktree
            found = {name: apart(contender, count, radius) for name, contender in contenders.items()}
            joins[count, radius] = found["darkroom"]["seconds"]
            answers[count, radius] = found["darkroom"]["near_duplicates_seconds"]
            print(json.dumps(line(count, radius, found)), flush=True)
    grown = {"join": growth(joins), "answer": growth(answers)}
    print(json.dumps({"bench": "near_duplicates_growth", "times_for_ten_times_as_many": grown}), flush=True)


def growth(seconds: dict[tuple[int, int], float]) -> dict[str, float]:
    """Return by count and radius how many times as long ten times as many hashes take."""
    return {
        f"{count} r={radius}": round(seconds[10 * count, radius] / took, 1)
        for (count, radius), took in seconds.items()
        if (10 * count, radius) in seconds
    }


def line(count: int, radius: int, found: dict[str, dict]) -> dict[str, object]:
    """Return what one case found, with how many times as fast it was as each peer that lists the same pairs."""
    own = found["darkroom"]
    peers = {name: said for name, said in found.items() if name != "darkroom" and "seconds" in said}
    return {
        "bench": "near_duplicates",
        "count": count,
        "radius_bits": radius,
        **{name: said for name, said in found.items()},
        "same_pairs": {name: said["pairs"] == own["pairs"] for name, said in peers.items()},
        "times_as_fast": {name: round(said["seconds"] / own["seconds"], 1) for name, said in peers.items()},
        "machine": platform.processor() or platform.machine(),
    }


def apart(contender: Callable[[int, int], dict], count: int, radius: int) -> dict:
    """Run a contender in a process of its own; returns what it says, with the peak of its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (contender.__name__, count, radius))


def _measured(name: str, count: int, radius: int) -> dict:
    said = globals()[name](count, radius)
    return said | {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}


def crawl_hashes(count: int, seed: int) -> np.ndarray:
    """Return uint64 hashes (count,)."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for centre in rng.integers(0, 2**64, count // 1000, dtype=np.uint64):
        members = rng.integers(0, count, int(min(2 + rng.pareto(1.2) * 2, 3000)))
        hashes[members] = centre
        for _ in range(3):
            hashes[members] ^= np.uint64(1) << rng.integers(0, 64, len(members)).astype(np.uint64)
    repeats = rng.integers(0, count, count * 12 // 100)
    hashes[repeats] = hashes[rng.integers(0, count, len(repeats))]
    return hashes


def darkroom(count: int, radius: int) -> dict:
    from curate.dedup import near_duplicates
    from curate.dedup.hamming import near_pairs

    hashes = crawl_hashes(count, seed=0)
    near_duplicates(hashes[:WARM_UP], radius)
    answers = [_answer(hashes, radius) for _ in range(REPEATS)]
    distinct = np.unique(hashes)
    joined = min(_join_seconds(distinct, radius) for _ in range(REPEATS))
    pairs = count_once(near_pairs(distinct[None], None, radius)) if count <= 1_000_000 else None
    return {
        "seconds": round(joined, 3),
        "near_duplicates_seconds": round(min(answers)[0], 3),
        "distinct": len(distinct),
        "pairs": pairs,
        "survivors": answers[0][1],
    }


def _answer(hashes: np.ndarray, radius: int) -> tuple[float, int]:
    """Return the seconds that the whole answer takes, and the number of survivors."""
    from curate.dedup import near_duplicates

    started = time.perf_counter()
    survivor = near_duplicates(hashes, radius)
    return time.perf_counter() - started, int((survivor == np.arange(len(hashes))).sum())


def _join_seconds(distinct: np.ndarray, radius: int) -> float:
    from curate.dedup.hamming import near_pairs

    is_near = np.zeros(len(distinct), bool)
    started = time.perf_counter()
    for piece in near_pairs(distinct[None], None, radius):
        is_near[piece] = True
    return time.perf_counter() - started


def count_once(pieces) -> int:  # noqa: ANN001 - an iterator of pairs
    """Return the number of different pairs."""
    pairs = np.sort(np.concatenate([np.empty((0, 2), np.int64), *pieces]), axis=1)
    return len(np.unique(pairs[:, 0] << 32 | pairs[:, 1]))


def faiss_multihash(count: int, radius: int) -> dict:
    """Use faiss's multi-index hashing: 4 maps of 16 bits, with as many flips as recall 1 needs."""
    import faiss

    distinct = np.unique(crawl_hashes(count, seed=0))
    codes = np.ascontiguousarray(distinct).view(np.uint8).reshape(-1, 8)
    timed = [_faiss_pairs(codes, radius) for _ in range(REPEATS)]
    return {"seconds": round(min(timed)[0], 3), "pairs": timed[0][1], "version": faiss.__version__}


def _faiss_pairs(codes: np.ndarray, radius: int) -> tuple[float, int]:
    """Return the seconds that index and search take, and the number of near pairs."""
    import faiss

    started = time.perf_counter()
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = radius // 4
    index.add(codes)
    limits, _, found = index.range_search(codes, radius + 1)
    rows = np.repeat(np.arange(len(codes)), np.diff(limits).astype(np.int64))
    return time.perf_counter() - started, int((rows < found).sum())


def imagededup_bktree(count: int, radius: int) -> dict:
    if not PEERS_PYTHON.exists():
        return {"skipped": "imagededup is not installed: make peers"}
    distinct = np.unique(crawl_hashes(count, seed=0))
    hashes = {str(at): f"{value:016x}" for at, value in enumerate(distinct.tolist())}
    asked = json.dumps({"hashes": hashes, "radius": radius})
    done = subprocess.run([PEERS_PYTHON, "-c", _BKTREE], input=asked, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


_BKTREE = """
import json, sys, time
from imagededup.handlers.search.bktree import BKTree
from imagededup.methods.hashing import Hashing
asked = json.load(sys.stdin)
started = time.perf_counter()
tree = BKTree(asked["hashes"], Hashing.hamming_distance)
found = [tree.search(query=value, tol=asked["radius"]) for value in asked["hashes"].values()]
pairs = (sum(map(len, found)) - len(found)) // 2
print(json.dumps({"seconds": round(time.perf_counter() - started, 3), "pairs": pairs}))
"""


if __name__ == "__main__":
    main()
