"""Near-duplicates against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import ranking
from curate.config import DedupConfig
from curate.dedup import near_duplicates
from curate.dedup.corpus import Corpus, find_duplicates
from curate.dedup.hamming import band_limits, near_pairs
from curate.dedup.semantic import semantic_pairs
from curate.dedup.survivors import greedy


def distance(a: int, b: int) -> int:
    return bin(int(a) ^ int(b)).count("1")


def brute_force(hashes, radius, rank):
    """Take samples best first; the best survivor near one stands for it."""
    survivor, kept = [-1] * len(hashes), []
    for position in sorted(range(len(hashes)), key=lambda at: (rank[at], at)):
        near = [other for other in kept if distance(hashes[position], hashes[other]) <= radius]
        survivor[position] = near[0] if near else position
        if not near:
            kept.append(position)
    return survivor


@st.composite
def clustered(draw):
    """Hashes near a few centres, with repeats, and ranks with ties."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    count, centres = draw(st.integers(0, 120)), rng.integers(0, 2**64, 6, dtype=np.uint64)
    hashes = centres[rng.integers(0, 6, count)]
    for _ in range(draw(st.integers(0, 8))):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    return hashes, rng.integers(0, 20, count)


@settings(max_examples=60, deadline=None)
@given(clustered(), st.integers(0, 12))
def test_near_duplicates_is_brute_force(case, radius):
    hashes, rank = case
    assert near_duplicates(hashes, radius, rank).tolist() == brute_force(hashes, radius, rank)


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 6, 8, 16])
def test_near_pairs_lists_each_pair_once(radius):
    rng = np.random.default_rng(radius)
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    hashes = np.unique(centres[rng.integers(0, 4, 300)] ^ (np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64)))
    expected = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if distance(hashes[i], hashes[j]) <= radius
    ]
    assert [tuple(pair) for pair in near_pairs(hashes, radius)] == expected


def test_no_order_changes_the_survivors():
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**64, 10, dtype=np.uint64)[rng.integers(0, 10, 400)]
    hashes ^= np.uint64(1) << rng.integers(0, 64, 400).astype(np.uint64)
    rank = rng.permutation(400)
    expected = near_duplicates(hashes, 2, rank)
    shuffle = rng.permutation(400)
    shuffled = near_duplicates(hashes[shuffle], 2, rank[shuffle])
    assert (shuffle[shuffled] == expected[shuffle]).all()


def test_band_limits_keep_the_pigeonhole():
    for radius in range(17):
        assert sum(band_limits(radius) + 1) == radius + 1


def test_a_radius_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"radius = 17: must be 0\.\.16"):
        near_duplicates(np.zeros(2, np.uint64), 17)


def test_both_relations_decide_together():
    """0 and 1 are near by hash, 1 and 2 by embedding: 1 goes, so 2 stays."""
    hashes = np.array([0, 1, 0xFFFF], np.uint64)
    found = greedy(hashes, np.ones(3, bool), 1, np.array([[1, 2]]))
    assert found.survivor.tolist() == [0, 0, 2]
    assert found.by_hash.tolist() == [False, True, False]


def test_semantic_pairs_are_brute_force_where_all_clusters_are_searched():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 16))
    embeddings = centres[rng.integers(0, 20, 300)] + 0.15 * rng.standard_normal((300, 16))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)
    found = semantic_pairs(embeddings, eps=0.1, clusters=5, sample=200, nearest=5, seed=0)
    cosine = embeddings.astype(np.float32) @ embeddings.astype(np.float32).T
    i, j = np.nonzero(np.triu(cosine > 0.9, 1))
    assert len(i) > 50
    assert sorted(map(tuple, found.pairs.tolist())) == sorted(zip(i.tolist(), j.tolist(), strict=True))


def corpus(rows: list[dict]) -> Corpus:
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((len(rows), 8))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    uid = np.array([row["uid"] for row in rows])
    area = np.array([row.get("area", 100) for row in rows])
    fine = np.ones(len(rows), bool)
    return Corpus(
        uid=uid,
        sha256=np.array([row["sha256"] for row in rows]),
        caption=np.array([row.get("caption", "") for row in rows]),
        phash64=np.array([row["phash64"] for row in rows], np.uint64),
        entropy_bits=np.array([row.get("entropy", 7.0) for row in rows], np.float32),
        policy=ranking.terms(area, np.zeros(len(rows)), fine, uid),
        embedding=embedding.astype(np.float16),
    )


CONFIG = DedupConfig(radius_bits=2, error_image_captions=3, semantic_eps=None)


def test_kinds_survivors_and_distances():
    rows = [
        {"uid": "a", "sha256": "s1", "phash64": 0, "area": 50},
        {"uid": "b", "sha256": "s2", "phash64": 1, "area": 100},
        {"uid": "c", "sha256": "s2", "phash64": 1, "area": 100},
        {"uid": "d", "sha256": "s3", "phash64": 2**63 - 1, "area": 10},
    ]
    found = find_duplicates(corpus(rows), CONFIG)
    assert found.survivor.tolist() == [1, 1, 1, 3]
    assert found.kind.tolist() == ["perceptual", None, "exact", None]
    assert found.distance[:3].tolist()[::2] == [1.0, 0.0]
    assert np.isnan(found.distance[1])


def test_an_error_image_has_no_survivor_and_stands_for_nobody():
    rows = [{"uid": f"e{n}", "sha256": "gone", "caption": f"c{n}", "phash64": 0, "area": 999} for n in range(3)]
    rows.append({"uid": "x", "sha256": "other", "phash64": 0})
    found = find_duplicates(corpus(rows), CONFIG)
    assert found.survivor.tolist() == [-1, -1, -1, 3]
    assert found.kind.tolist() == ["error_image"] * 3 + [None]


def test_flat_pictures_do_not_match_perceptually():
    rows = [{"uid": str(n), "sha256": str(n), "phash64": 0, "entropy": 0.5} for n in range(4)]
    found = find_duplicates(corpus(rows), CONFIG)
    assert found.survivor.tolist() == [0, 1, 2, 3]
    assert found.is_flat.all()


def test_ranking_takes_its_terms_in_order():
    uids = np.array(["b", "a", "c"])
    policy = ranking.terms(np.array([4, 4, 9]), np.array([1.0, 1.0, 0.0]), np.array([True, True, True]), uids)
    assert ranking.rank(policy).tolist() == [2, 1, 0]
    assert ranking.won_by(policy, np.array([2, 1]), np.array([0, 0])) == ["resolution", "uid"]
