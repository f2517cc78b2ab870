"""Near-duplicate search over 64-bit hashes, beside faiss in the same run. One JSON line for each case.

The hashes are like a crawl's: planted clusters of up to thousands, 12 % exact repeats, the rest random.

    python infra/bench/near_duplicates.py [--count 1000000] [--radius 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from curate.dedup.hamming import near_pairs  # noqa: E402


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


def ours(unique: np.ndarray, radius: int) -> set[tuple[int, int]]:
    return set(map(tuple, near_pairs(unique, radius).tolist()))


def of_faiss(unique: np.ndarray, radius: int) -> set[tuple[int, int]]:
    """Return the pairs of faiss's multi-index hashing: 4 maps of 16 bits, with as many flips as recall 1 needs."""
    codes = np.ascontiguousarray(unique).view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = radius // 4
    index.add(codes)
    limits, _, found = index.range_search(codes, radius + 1)
    rows = np.repeat(np.arange(len(unique)), np.diff(limits).astype(np.int64))
    ahead = rows < found
    return set(zip(rows[ahead].tolist(), found[ahead].tolist(), strict=True))


def measure(count: int, radius: int) -> dict[str, object]:
    unique = np.unique(crawl_hashes(count, seed=0))
    near_pairs(unique[:1000], radius)  # compiled, or read from the cache, before the clock starts
    seconds, pairs = {}, {}
    for name, search in (("darkroom", ours), ("faiss_multihash", of_faiss)):
        started = time.perf_counter()
        pairs[name] = search(unique, radius)
        seconds[name] = time.perf_counter() - started
    return {
        "bench": "near_duplicates",
        "count": count,
        "unique": len(unique),
        "radius_bits": radius,
        "pairs": len(pairs["darkroom"]),
        "same_pairs": pairs["darkroom"] == pairs["faiss_multihash"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "times_as_fast": round(seconds["faiss_multihash"] / seconds["darkroom"], 1),
        "machine": platform.processor() or platform.machine(),
        "faiss": faiss.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--radius", type=int, nargs="+", default=[3])
    arguments = parser.parse_args()
    for count in arguments.count:
        for radius in arguments.radius:
            print(json.dumps(measure(count, radius)), flush=True)


if __name__ == "__main__":
    main()
