"""Near-duplicates by hash against brute force, on random, skewed and real data."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import ranking
from curate.dedup import hamming, near_duplicates
from curate.dedup.bands import WIDE_LANES, band_limits, layout
from curate.dedup.hamming import LEAST_PIECE, Confirm, near_pairs
from curate.dedup.relations import NearByHash, first_equal
from curate.dedup.survivors import survivors
from curate.hashes import pdq256, phash64
from curate.image import UnreadableImage, decode


def bits_between(left_WN, right_WN):
    """Return all distances, int64 (N left, N right)."""
    return np.bitwise_count(left_WN[:, :, None] ^ right_WN[:, None, :]).sum(axis=0, dtype=np.int64)


def brute_force(hashes, radius, rank):
    """Take samples best first; the best survivor near one stands for it."""
    near = bits_between(hashes[None], hashes[None]) <= radius
    survivor, kept = [-1] * len(hashes), []
    for position in sorted(range(len(hashes)), key=lambda at: (rank[at], at)):
        found = [other for other in kept if near[position, other]]
        survivor[position] = found[0] if found else position
        if not found:
            kept.append(position)
    return survivor


@st.composite
def clustered(draw):
    """Hashes near a few centres, with repeats, in few bits or many, and ranks with ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, centres = draw(st.integers(0, 100)), rng.integers(0, 2**64, 6, dtype=np.uint64)
    hashes = centres[rng.integers(0, 6, count)] >> np.uint64(draw(st.sampled_from([0, 0, 40, 58])))
    for _ in range(draw(st.integers(0, 8))):
        hashes ^= np.uint64(1) << rng.integers(0, draw(st.sampled_from([8, 64])), count).astype(np.uint64)
    return hashes, rng.integers(0, 20, count)


@settings(max_examples=30, deadline=None)
@given(clustered(), st.integers(0, 16), st.sampled_from([0, 30, 10**6]), st.booleans())
def test_survivors_are_brute_force(case, radius, max_pairs, banded):
    """However many pairs are held at a time, and with bands and cuts where few hashes would be met whole."""
    hashes, rank = case
    with pytest.MonkeyPatch.context() as patch:
        if banded:
            patch.setattr(hamming, "SMALL", 4)
            patch.setattr(hamming, "_worth_a_cut", lambda bands, radius, confirm: 12 if bands else 10**9)
        order = np.argsort(rank, kind="stable")
        relation = NearByHash(words_WN=hashes[None, order], radius=radius)
        dropped = survivors([relation], len(hashes), max_pairs=max_pairs)
        found, expected = np.arange(len(hashes)), brute_force(hashes, radius, rank)
        found[order[dropped.row]] = order[dropped.survivor]
        assert found.tolist() == expected
        assert near_duplicates(hashes, radius, rank).tolist() == expected


def planted(rng, words, count, most):
    """Return hashes uint64 (words, count), each third one within `most` bits of another."""
    hashes = rng.integers(0, 2**64, (words, count), dtype=np.uint64)
    for at in range(0, count, 3):
        other = rng.integers(count)
        hashes[:, at] = hashes[:, other]
        for bit in rng.choice(64 * words, rng.integers(0, most + 1), replace=False):
            hashes[bit // 64, at] ^= np.uint64(1) << np.uint64(bit % 64)
    return hashes


@pytest.mark.parametrize(("words", "radius"), [(1, 0), (1, 3), (1, 4), (1, 6), (1, 8), (1, 11), (4, 0), (4, 31)])
@pytest.mark.parametrize("itself", [True, False])
def test_all_near_pairs_are_found_and_no_others(words, radius, itself):
    """3,000 hashes: above the size that is met whole. Radius 31 on 256 bits is PDQ's: recall 1 there, too."""
    rng = np.random.default_rng(radius)
    left = planted(rng, words, 3000, radius + 2)
    right = left if itself else np.concatenate([left[:, ::7], planted(rng, words, 500, radius + 2)], axis=1)
    found = np.concatenate([np.empty((0, 2), np.int64), *near_pairs(left, None if itself else right, radius)])
    expected = np.argwhere(bits_between(left, right) <= radius)
    if itself:
        found, expected = np.sort(found, axis=1), expected[expected[:, 0] < expected[:, 1]]
    assert len(expected) > 300
    assert np.array_equal(in_order(found), expected)


def test_a_full_piece_is_continued(monkeypatch):
    hashes = planted(np.random.default_rng(2), 1, 3000, 2)
    expected = np.unique(np.sort(np.concatenate(list(near_pairs(hashes, None, 3))), axis=1), axis=0)
    monkeypatch.setattr(hamming, "PAIRS_PER_PIECE", LEAST_PIECE + 5)
    pieces = list(near_pairs(hashes, None, 3))
    assert max(map(len, pieces)) <= LEAST_PIECE + 5
    assert np.array_equal(np.unique(np.sort(np.concatenate(pieces), axis=1), axis=0), expected)


def test_lanes_beyond_the_last_hash_never_match():
    """Hashes of few bits: what is not there must not look like zero."""
    for count in range(1, 2 * WIDE_LANES + 2):
        hashes = (np.uint64(1) << np.arange(count, dtype=np.uint64) % np.uint64(60))[None]
        expected = np.argwhere(np.triu(bits_between(hashes, hashes) <= 1, 1))
        found = np.concatenate([np.empty((0, 2), np.int64), *near_pairs(hashes, None, 1)])
        assert np.array_equal(np.unique(np.sort(found, axis=1), axis=0), expected)
        others = np.zeros((1, 9), np.uint64)  # near to each single bit
        assert len(np.concatenate(list(near_pairs(others, hashes, 1)))) == 9 * count


def test_a_second_hash_confirms():
    rng = np.random.default_rng(1)
    hashes, second = planted(rng, 1, 2500, 3), planted(rng, 4, 2500, 20)
    second[:, ::3] = second[:, [0]]
    confirm = Confirm(words_4N=second, radius=31)
    found = np.concatenate(list(near_pairs(hashes, None, 4, confirm=(confirm, confirm))))
    near = (bits_between(hashes, hashes) <= 4) & (bits_between(second, second) <= 31)
    expected = np.argwhere(np.triu(near, 1))
    assert len(expected) > 100
    assert np.array_equal(np.unique(np.sort(found, axis=1), axis=0), expected)


def test_no_order_changes_the_survivors():
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**64, 10, dtype=np.uint64)[rng.integers(0, 10, 400)]
    hashes ^= np.uint64(1) << rng.integers(0, 64, 400).astype(np.uint64)
    rank, shuffle = rng.permutation(400), rng.permutation(400)
    shuffled = near_duplicates(hashes[shuffle], 2, rank[shuffle])
    assert (shuffle[shuffled] == near_duplicates(hashes, 2, rank)[shuffle]).all()


def test_skew_costs_no_square():
    """Squares of these would not end.

    A million copies, two hashes shared by 100,000 that a second hash parts, and 100,000 each near a thousand others.
    """
    assert (near_duplicates(np.full(1_000_000, 7, np.uint64), 4) == 0).all()
    second = np.random.default_rng(1).integers(0, 2**64, (4, 100_000), dtype=np.uint64)
    one_hash = NearByHash(words_WN=second[:1] >> np.uint64(63), radius=4, confirm=Confirm(words_4N=second, radius=31))
    assert len(survivors([one_hash], 100_000).row) == 0
    dense = np.random.default_rng(0).permutation(100_000).astype(np.uint64)
    found = near_duplicates(dense, 4)
    kept = dense[np.unique(found)][None]
    assert bits_between(kept, kept)[~np.eye(kept.shape[1], dtype=bool)].min() > 4
    assert np.bitwise_count(dense ^ dense[found]).max() <= 4


def test_a_shared_band_is_cut_by_the_others(monkeypatch):
    monkeypatch.setattr(hamming, "MIN_CUT", 100)
    hashes = planted(np.random.default_rng(3), 1, 6000, 4) & ~np.uint64(0xFFFF0000)
    found = np.concatenate(list(near_pairs(hashes, None, 3)))
    expected = np.argwhere(np.triu(bits_between(hashes, hashes) <= 3, 1))
    assert np.array_equal(in_order(np.sort(found, axis=1)), expected)


def in_order(pairs):
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("radius", [0, 3, 6])
def test_hashes_shared_by_many_are_met_by_the_second(monkeypatch, radius, itself):
    """A few hashes near each other, each shared by hundreds of pictures that PDQ tells apart; each pair comes once."""
    monkeypatch.setattr(hamming, "SMALL", 50)
    monkeypatch.setattr(hamming, "_worth_a_cut", lambda bands, radius, confirm: 100)
    rng = np.random.default_rng(radius)
    shared = np.array([7, 7 ^ 1 << 20, 7 ^ 3 << 40, 1 << 63], np.uint64)
    hashes, second = shared[rng.integers(0, 4, (1, 3000))], planted(rng, 4, 3000, 35)
    sides = [slice(None), slice(None)] if itself else [slice(0, 1000), slice(1000, None)]
    left, right = (hashes[:, side] for side in sides)
    confirm = [Confirm(words_4N=second[:, side], radius=31) for side in sides]
    met_by_second, join = [], hamming._join_by_second
    monkeypatch.setattr(hamming, "_join_by_second", lambda *call: met_by_second.append(call) or join(*call))
    found = np.concatenate(list(near_pairs(left, None if itself else right, radius, confirm=(confirm[0], confirm[1]))))
    near = (bits_between(left, right) <= radius) & (bits_between(confirm[0].words_4N, confirm[1].words_4N) <= 31)
    expected = np.argwhere(np.triu(near, 1) if itself else near)
    assert len(met_by_second) > 2 and len(expected) > 100
    assert np.array_equal(in_order(np.sort(found, axis=1) if itself else found), expected)


def test_first_equal_is_the_first_row_with_the_keys():
    rng = np.random.default_rng(0)
    keys = [rng.integers(0, 12, 5000).astype(np.uint64) for _ in range(3)]
    _, first, inverse = np.unique(np.stack(keys), axis=1, return_index=True, return_inverse=True)
    assert np.array_equal(first_equal(keys), first[inverse.ravel()])


def test_a_layout_is_a_stable_sort_by_the_band():
    words = planted(np.random.default_rng(0), 4, 1000, 9)
    for band in range(16):
        values = words[band // 4] >> np.uint64(16 * (band % 4)) & np.uint64(0xFFFF)
        made = layout(words, band)
        assert np.array_equal(made.order, np.argsort(values, kind="stable"))
        assert np.array_equal(made.words_WN, words[:, made.order])
        assert np.array_equal(made.starts, np.searchsorted(np.sort(values), np.arange(65537)))


def test_band_limits_keep_the_pigeonhole():
    for bands in (1, 3, 4, 16):
        for radius in range(40):
            assert sum(limit + 1 for limit in band_limits(radius, bands)) == radius + 1


@pytest.mark.parametrize(
    ("hashes", "radius", "rank", "told"),
    [
        (np.zeros(2, np.uint64), 17, None, r"radius = 17: must be 0\.\.16"),
        (np.zeros(2, np.int64), 3, None, "hashes of type int64"),
        (np.zeros(2, np.uint64), 3, np.zeros(3, np.int64), r"rank of type int64 and shape \(3,\): must be .*\(2,\)"),
        (np.zeros(2, np.uint64), 3, np.zeros(2), "rank of type float64"),
        (np.zeros(2, np.uint64), 2.5, None, r"radius = 2\.5: must be"),
    ],
)
def test_what_cannot_be_searched_is_refused(hashes, radius, rank, told):
    with pytest.raises(ValueError, match=told):
        near_duplicates(hashes, radius, rank)


def test_ranking_takes_its_terms_in_order():
    uid = np.array([[0, 2], [0, 1], [0, 3], [9, 9], [0, 4], [0, 5]], np.uint64)
    ahead = np.array([False, False, False, True, False, False])
    fine = np.array([True, True, True, True, False, True])
    area_px, sharpness = np.array([4, 4, 9, 1, 4, 4]), np.array([1.0, 1.01, 0, 0, 1, 7])
    keys = ranking.keys(ahead, area_px, np.full(6, 90.0), sharpness, fine)
    assert ranking.order(keys, uid).tolist() == [3, 2, 5, 1, 0, 4]
    winner, loser = np.array([3, 2, 5, 1, 0]), np.array([2, 5, 1, 0, 4])
    told = [ranking.TERMS[at] for at in ranking.won_by(keys[winner], keys[loser])]
    assert told == ["earlier", "resolution", "technical quality", "uid", "caption"]


def test_the_less_compressed_copy_wins_however_sharp_its_artefacts_are():
    jpeg_quality = np.array([60, 92, 95, np.nan, 9, 100])
    sharpness = np.array([9000.0, 100.0, 100.2, 50.0, 9e9, 0.0])
    keys = ranking.keys(np.zeros(6, bool), np.ones(6, int), jpeg_quality, sharpness, np.ones(6, bool))
    uid = np.stack([np.zeros(6), np.arange(6)], axis=1).astype(np.uint64)
    assert ranking.order(keys, uid).tolist() == [3, 5, 2, 1, 0, 4]  # 92 and 95 are one step: sharpness decides
    assert set(ranking.won_by(keys[[3, 5, 2, 1]], keys[[5, 2, 1, 0]]).tolist()) == {2}


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["dup_history", "dup_caltech", "dup_imagededup", "dup_pdq"])
@pytest.mark.parametrize("radius", [4, 8])
def test_real_pictures_are_brute_force_by_both_hashes(shared, folder, radius):
    images = []
    for line in (shared / folder / "groups.jsonl").read_text().splitlines():
        try:
            images.append(decode((shared / folder / json.loads(line)["file"]).read_bytes(), 120))
        except UnreadableImage:
            continue
    hashes = np.array([phash64(image) for image in images], np.uint64)
    assert near_duplicates(hashes, radius).tolist() == brute_force(hashes, radius, range(len(hashes)))
    pdq = np.stack([np.frombuffer(pdq256(image)[0], ">u8") for image in images], axis=1).astype(np.uint64)
    found = np.concatenate([np.empty((0, 2), np.int64), *near_pairs(pdq, None, 31)])
    expected = np.argwhere(np.triu(bits_between(pdq, pdq) <= 31, 1))
    assert np.array_equal(np.unique(np.sort(found, axis=1), axis=0), expected)
