"""Semantic near-duplicates of planted embeddings, beside faiss on the same data. One JSON line for each case.

One row in ten is a near-duplicate of another, with a cosine uniform in [0.95, 1). The others are random directions
(`none`, where clusters help least) or lie around centres (`clustered`). faiss gets the same number of clusters, and
searches each item in one of them, in float32. Each contender has a process of its own, whose peak memory is its own.

    python infra/bench/semantic.py [--count 1000000] [--structure none] [--clusters 500] [--nearest 3]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

WIDTH = 768
LEAST_COSINE = 0.95
POINTS_PER_CLUSTER = 50
ITERATIONS = 8
BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class Case:
    count: int
    structure: str
    clusters: int
    nearest: int
    folder: Path

    def embeddings(self) -> np.ndarray:
        return np.load(self.folder / "embeddings.npy", mmap_mode="r")

    def sample(self) -> np.ndarray:
        """Return the rows that clusters are fitted on, float16."""
        size = min(self.count, POINTS_PER_CLUSTER * self.clusters)
        return self.embeddings()[np.sort(np.random.default_rng(1).choice(self.count, size, replace=False))]


def plant(case: Case) -> None:
    """Write the embeddings and the planted pairs that float16 leaves near."""
    from curate.dedup.semantic import exact_cosine

    rng = np.random.default_rng(0)
    embeddings = np.lib.format.open_memmap(
        case.folder / "embeddings.npy", mode="w+", dtype=np.float16, shape=(case.count, WIDTH)
    )
    centres = unit(rng.standard_normal((max(case.count // 500, 1), WIDTH), dtype=np.float32))
    for first in range(0, case.count, BLOCK):
        rows = embeddings[first : first + BLOCK]
        directions = unit(rng.standard_normal(rows.shape, dtype=np.float32))
        at = centres[rng.integers(0, len(centres), len(rows))] if case.structure == "clustered" else 0
        rows[:] = unit(directions + at)
    source, copy = rng.permutation(case.count)[: case.count // 10 * 2].reshape(2, -1)
    for first in range(0, len(source), BLOCK):
        original = embeddings[source[first : first + BLOCK]].astype(np.float32)
        other = rng.standard_normal(original.shape, dtype=np.float32)
        other = unit(other - (other * original).sum(axis=1, keepdims=True) * original)
        cosine = rng.uniform(LEAST_COSINE, 1, (len(original), 1)).astype(np.float32)
        embeddings[copy[first : first + BLOCK]] = cosine * original + np.sqrt(1 - cosine**2) * other
    near = exact_cosine(embeddings, source, copy) > LEAST_COSINE
    np.save(case.folder / "planted.npy", np.stack([source, copy], axis=1)[near])


def unit(directions: np.ndarray) -> np.ndarray:
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def ours(case: Case) -> dict[str, object]:
    from curate.dedup import semantic

    def search(embeddings: np.ndarray, sample: np.ndarray, clusters: int) -> tuple[np.ndarray, dict[str, float]]:
        clock = [time.perf_counter()]
        centroids = semantic.fit_clusters(sample, clusters=clusters, seed=0, iterations=ITERATIONS)
        clock.append(time.perf_counter())
        members = semantic.nearest_clusters(embeddings, centroids, case.nearest)
        clock.append(time.perf_counter())
        rows_of = semantic.cluster_rows(members, len(centroids))
        is_near = semantic.mark_near(embeddings, rows_of, LEAST_COSINE)
        clock.append(time.perf_counter())
        return is_near, dict(zip(("fit", "nearest", "pairs"), np.diff(clock).round(2).tolist(), strict=True))

    embeddings = case.embeddings()
    search(embeddings[:500], embeddings[:100], 4)  # compiled, or read from the cache, before the clock starts
    return measured(case, lambda: search(embeddings, case.sample(), case.clusters))


def of_faiss(case: Case) -> dict[str, object]:
    import faiss

    def search() -> tuple[np.ndarray, dict[str, float]]:
        clock, embeddings = [time.perf_counter()], case.embeddings()
        means = faiss.Kmeans(
            WIDTH, case.clusters, niter=ITERATIONS, spherical=True, seed=1, max_points_per_centroid=POINTS_PER_CLUSTER
        )
        means.train(case.sample().astype(np.float32))
        clock.append(time.perf_counter())
        own = np.concatenate(
            [
                means.index.search(embeddings[first : first + 65536].astype(np.float32), 1)[1][:, 0]
                for first in range(0, case.count, 65536)
            ]
        )
        clock.append(time.perf_counter())
        is_near = np.zeros(case.count, bool)
        for rows in np.split(np.argsort(own, kind="stable"), np.cumsum(np.bincount(own))[:-1]):
            mark_in_float32(embeddings[rows].astype(np.float32), rows, is_near)
        clock.append(time.perf_counter())
        return is_near, dict(zip(("fit", "nearest", "pairs"), np.diff(clock).round(2).tolist(), strict=True))

    return measured(case, search)


def mark_in_float32(points: np.ndarray, rows: np.ndarray, is_near: np.ndarray) -> None:
    for left in range(0, len(rows), BLOCK):
        for right in range(left, len(rows), BLOCK):
            cosine = points[left : left + BLOCK] @ points[right : right + BLOCK].T
            if left == right:
                np.fill_diagonal(cosine, 0)
            near = cosine > LEAST_COSINE
            is_near[rows[left : left + BLOCK][near.any(axis=1)]] = True
            is_near[rows[right : right + BLOCK][near.any(axis=0)]] = True


def measured(case: Case, search: Callable[[], tuple[np.ndarray, dict[str, float]]]) -> dict[str, object]:
    started = time.perf_counter()
    is_near, parts = search()
    seconds = time.perf_counter() - started
    planted = np.load(case.folder / "planted.npy")
    return {
        "seconds": round(seconds, 2),
        "parts": parts,
        "recall": round(float(is_near[planted].all(axis=1).mean()), 4),
        "marked": int(is_near.sum()),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def alone(work: Callable[[Case], Any], case: Case) -> Any:
    """Run in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (case,))


def measure(case: Case) -> dict[str, object]:
    alone(plant, case)
    darkroom, faiss = alone(ours, case), alone(of_faiss, case)
    return {
        "bench": "semantic",
        "count": case.count,
        "width": WIDTH,
        "structure": case.structure,
        "clusters": case.clusters,
        "nearest": {"darkroom": case.nearest, "faiss": 1},
        "darkroom": darkroom,
        "faiss": faiss,
        "times_as_fast": round(faiss["seconds"] / darkroom["seconds"], 2),
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--structure", nargs="+", default=["none", "clustered"], choices=["none", "clustered"])
    parser.add_argument("--clusters", type=int, help="default: one for 2,000 rows, at least 50")
    parser.add_argument("--nearest", type=int, default=3)
    arguments = parser.parse_args()
    for count in arguments.count:
        for structure in arguments.structure:
            with tempfile.TemporaryDirectory() as folder:
                case = Case(
                    count=count,
                    structure=structure,
                    clusters=arguments.clusters or max(count // 2000, 50),
                    nearest=arguments.nearest,
                    folder=Path(folder),
                )
                print(json.dumps(measure(case)), flush=True)


if __name__ == "__main__":
    main()
