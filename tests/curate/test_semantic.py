"""Semantic near-duplicates against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedup import semantic

WIDTH = 96


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def embeddings(count: int, spread: float, seed: int, width: int = WIDTH) -> np.ndarray:
    """Return unit float16 (count, width) around a few centres: the smaller the spread, the denser."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(count // 8, 1), width))
    return unit(centres[rng.integers(0, len(centres), count)] + spread * rng.standard_normal((count, width)))


def cosines(embeddings_ND: np.ndarray) -> np.ndarray:
    wide = embeddings_ND.astype(np.float64)
    return wide @ wide.T


def near_matrix(embeddings_ND: np.ndarray, rows_of: list[np.ndarray], least_cosine: float) -> np.ndarray:
    """Return which pairs of different rows are near and share a cluster, bool (N, N)."""
    shared = np.zeros((len(embeddings_ND), len(embeddings_ND)), bool)
    for rows in rows_of:
        shared[np.ix_(rows, rows)] = True
    near = shared & (cosines(embeddings_ND) > least_cosine)
    np.fill_diagonal(near, False)
    return near


def found_pairs(embeddings_ND: np.ndarray, rows_of: list[np.ndarray], least_cosine: float) -> set[tuple[int, ...]]:
    pieces = semantic.near_pairs(embeddings_ND, rows_of, least_cosine)
    return {tuple(pair) for piece in pieces for pair in piece.tolist()}


def clustered(embeddings_ND: np.ndarray, clusters: int, nearest: int) -> list[np.ndarray]:
    centroids = semantic.fit_clusters(embeddings_ND, clusters=clusters, seed=0)
    members = semantic.nearest_clusters(embeddings_ND, centroids, nearest)
    return semantic.cluster_rows(members, len(centroids))


CASES = [
    pytest.param(embeddings(120, 0.2, seed=1), id="random"),
    pytest.param(embeddings(80, 1e9, seed=2), id="nothing_near"),
    pytest.param(unit(1 + 0.05 * np.random.default_rng(3).standard_normal((80, WIDTH))), id="all_near"),
    pytest.param(embeddings(90, 0.2, seed=4, width=7), id="narrow"),
    pytest.param(np.eye(80, 300, dtype=np.float16)[np.arange(80) // 2], id="outlying_columns"),
    pytest.param(embeddings(0, 0.2, seed=5), id="no_row"),
    pytest.param(embeddings(1, 0.2, seed=5), id="one_row"),
    pytest.param(embeddings(2, 0.01, seed=5), id="two_rows"),
    pytest.param(np.zeros((5, WIDTH), np.float16), id="zeros"),
]


@pytest.mark.parametrize("block", [7, 512])
@pytest.mark.parametrize("embeddings_ND", CASES)
def test_equals_brute_force_in_shared_clusters(embeddings_ND, block, monkeypatch):
    monkeypatch.setattr(semantic, "BLOCK_ROWS", block)
    monkeypatch.setattr(semantic, "BLOCK_COLUMNS", 2 * block)
    rows_of = clustered(embeddings_ND, clusters=5, nearest=2)
    near = near_matrix(embeddings_ND, rows_of, 0.95)
    assert found_pairs(embeddings_ND, rows_of, 0.95) == {(i, j) for i, j in np.argwhere(near).tolist() if i < j}
    assert semantic.mark_near(embeddings_ND, rows_of, 0.95).tolist() == near.any(axis=1).tolist()

    of, among = np.arange(len(near))[1::3], np.setdiff1d(np.arange(len(near)), np.arange(len(near))[1::3])
    smallest = [int(among[near[row, among]][0]) if near[row, among].any() else -1 for row in of]
    assert semantic.nearest_survivors(embeddings_ND, rows_of, 0.95, of, among).tolist() == smallest


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 60),
    width=st.integers(1, 150),
    spread=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    least_cosine=st.floats(0.3, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_embeddings_equal_brute_force_in_one_cluster(count, width, spread, least_cosine, seed):
    embeddings_ND, rows_of = embeddings(count, spread, seed, width), [np.arange(count)]
    near = near_matrix(embeddings_ND, rows_of, least_cosine)
    expected = {(i, j) for i, j in np.argwhere(near).tolist() if i < j}
    assert found_pairs(embeddings_ND, rows_of, least_cosine) == expected


def test_exact_cosine_is_exact():
    embeddings_ND = embeddings(100, 0.3, seed=6, width=768)
    embeddings_ND[0, :3] = [6e-8, -6e-8, 3e-5]  # subnormal in float16
    i, j = np.divmod(np.arange(100 * 100), 100)
    assert semantic.exact_cosine(embeddings_ND, i, j).tolist() == cosines(embeddings_ND)[i, j].tolist()


def test_exact_cosine_decides_at_the_limit():
    embeddings_ND = embeddings(60, 0.2, seed=7)
    rows_of, cosine = [np.arange(60)], cosines(embeddings_ND)
    limit = np.sort(cosine[np.triu_indices(60, 1)])[-20]
    assert len(found_pairs(embeddings_ND, rows_of, float(limit))) == 19
    assert len(found_pairs(embeddings_ND, rows_of, float(np.nextafter(limit, 0)))) == 20


def test_a_dense_cluster_is_not_compared_in_full(monkeypatch):
    monkeypatch.setattr(semantic, "BLOCK_ROWS", 64)
    monkeypatch.setattr(semantic, "BLOCK_COLUMNS", 64)
    calls = []
    candidates = semantic._Search.candidates

    def counted(*blocks):
        calls.append(blocks)
        return candidates(*blocks)

    monkeypatch.setattr(semantic._Search, "candidates", counted)
    dense = unit(1 + 0.05 * np.random.default_rng(8).standard_normal((640, WIDTH)))
    assert semantic.mark_near(dense, [np.arange(640)], 0.95).tolist() == [True] * 640
    assert len(calls) == 10


def test_products_have_shapes_that_cuda_takes(monkeypatch):
    """cuBLAS multiplies codes only from 17 rows on, and where the other sides are multiples of 8."""
    shapes, multiply = [], torch._int_mm

    def noted(left, right, *, out):
        shapes.append((left.shape[0] > 16, left.shape[1] % 8, right.shape[1] % 8, out.is_contiguous()))
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "_int_mm", noted)
    monkeypatch.setattr(semantic, "BLOCK_ROWS", 64)
    dense = unit(1 + 0.05 * np.random.default_rng(8).standard_normal((90, 13)))
    rows_of = clustered(dense, clusters=5, nearest=2)
    semantic.mark_near(dense, rows_of, 0.95)
    found_pairs(dense, rows_of, 0.95)
    semantic.nearest_survivors(dense, rows_of, 0.95, np.arange(45, 90), np.arange(45))
    assert len(shapes) > 20 and set(shapes) == {(True, 0, 0, True)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("embeddings_ND", CASES)
def test_a_gpu_finds_what_the_processor_finds(embeddings_ND):
    on = {}
    for device in ("cpu", "cuda"):
        centroids = semantic.fit_clusters(embeddings_ND, clusters=5, seed=0, device=device)
        members = semantic.nearest_clusters(embeddings_ND, centroids, 2, device)
        rows_of = semantic.cluster_rows(members, len(centroids))
        pairs = [piece.tolist() for piece in semantic.near_pairs(embeddings_ND, rows_of, 0.95, device)]
        marked = semantic.mark_near(embeddings_ND, rows_of, 0.95, device)
        on[device] = centroids.tobytes(), members.tolist(), pairs, marked.tolist()
    assert on["cuda"] == on["cpu"]


def test_nearest_clusters_are_ordered_and_ties_go_to_the_smaller():
    centroids = np.eye(4, dtype=np.float32)
    centroids[3] = centroids[1]
    samples = unit(np.array([[3.0, 2, 1, 0], [0, 1, 0, 0], [0, 1, 2, 0]]))
    nearest = semantic.nearest_clusters(samples, centroids, 3)
    assert (nearest.dtype, nearest.tolist()) == (np.int32, [[0, 1, 3], [1, 3, 0], [2, 1, 3]])
    assert semantic.nearest_clusters(samples, centroids, 9).shape == (3, 4)


def test_nearest_clusters_do_not_depend_on_the_blocks(monkeypatch):
    samples = embeddings(500, 0.5, seed=9)
    centroids = semantic.fit_clusters(samples, clusters=20, seed=0)
    whole = semantic.nearest_clusters(samples, centroids, 2)
    monkeypatch.setattr(semantic, "ASSIGNED_PRODUCTS", 1)
    assert semantic.nearest_clusters(samples, centroids, 2).tolist() == whole.tolist()
    cosine = samples.astype(np.float64) @ centroids.T.astype(np.float64)
    best = np.take_along_axis(cosine, whole[:, :1].astype(np.int64), axis=1)[:, 0]
    assert (cosine.max(axis=1) - best).max() < 0.02  # no further than the codes are rounded


def test_clusters_are_unit_length_and_the_same_again():
    samples = embeddings(300, 0.3, seed=10)
    centroids = semantic.fit_clusters(samples, clusters=12, seed=4)
    assert (centroids.dtype, centroids.shape) == (np.float32, (12, WIDTH))
    assert np.abs(np.linalg.norm(centroids, axis=1) - 1).max() < 1e-6
    assert centroids.tobytes() == semantic.fit_clusters(samples, clusters=12, seed=4).tobytes()
    assert centroids.tobytes() != semantic.fit_clusters(samples, clusters=12, seed=5).tobytes()


def test_clusters_find_the_groups():
    samples = unit(np.repeat(np.eye(3, WIDTH), 20, axis=0) + 0.01)
    centroids = semantic.fit_clusters(samples, clusters=30, seed=0)
    assert (samples.astype(np.float32) @ centroids.T).max(axis=1).min() > 0.99


def test_equal_samples_leave_clusters_empty():
    samples = unit(np.ones((10, WIDTH)))
    centroids = semantic.fit_clusters(samples, clusters=4, seed=0)
    rows_of = semantic.cluster_rows(semantic.nearest_clusters(samples, centroids, 1), 4)
    assert [rows.tolist() for rows in rows_of] == [list(range(10)), [], [], []]


def test_cluster_rows_are_ascending():
    members = np.array([[2, 0], [0, 1], [2, 1], [0, 2]], np.int32)
    rows_of = semantic.cluster_rows(members, 4)
    assert [rows.tolist() for rows in rows_of] == [[0, 1, 3], [1, 2], [0, 2, 3], []]
    assert {rows.dtype for rows in rows_of} == {np.dtype(np.int64)}


def test_reads_a_memory_map(tmp_path):
    embeddings_ND = embeddings(100, 0.2, seed=11)
    np.save(tmp_path / "e.npy", embeddings_ND)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    rows_of = clustered(mapped, clusters=3, nearest=2)
    assert found_pairs(mapped, rows_of, 0.95) == found_pairs(embeddings_ND, rows_of, 0.95)


@pytest.mark.parametrize("wrong", [[1, 1], [1, np.nan]])
def test_embeddings_that_are_not_unit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"embeddings\[1\] is longer than 1 or NaN: normalise it"):
        semantic.mark_near(np.array([[1, 0], wrong], np.float16), [np.arange(2)], 0.95)


def test_pairs_that_the_first_columns_cannot_rule_out(monkeypatch):
    monkeypatch.setattr(semantic._Search, "head_columns", lambda *_: 64)
    heads = np.repeat(embeddings(20, 1e9, seed=12, width=64), 10, axis=0)  # equal in the head, different behind it
    embeddings_ND = unit(np.hstack([heads, 0.3 * embeddings(200, 0.3, seed=13)]).astype(np.float64))
    near = near_matrix(embeddings_ND, [np.arange(200)], 0.95)
    expected = {(i, j) for i, j in np.argwhere(near).tolist() if i < j}
    assert 0 < len(expected) < 900 and found_pairs(embeddings_ND, [np.arange(200)], 0.95) == expected
