import numpy as np
import pytest

from curate.blocklist import BITS, parse, pdq_list, pdq_matches

PDQ = "ab" * 32
MD5, SHA1, SHA256 = "0a" * 16, "1B" * 20, "2c" * 32


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("pdq", [PDQ, "", "# comment", "cd" * 32]),
        ("pdq", ["hash,quality,file", f"{PDQ},100,a b.jpg", f'"{"cd" * 32}",49,"c,d.jpg"']),
        ("pdq", [f"{PDQ}, 2024-01-01", f"{'CD' * 32}; why"]),
        ("pdq", ["type;hash", f"pdq;{PDQ}", f"pdq;{'cd' * 32}"]),
        ("md5", [f"{MD5}  a picture.jpg", f"{'0b' * 16} *b.jpg"]),
        ("md5", ["%%%% HASHDEEP-1.0", "%%%% size,md5,sha256,filename", "## $ hashdeep", f"12,{MD5},{SHA256},a.jpg"]),
        ("md5", ["\ufeffmd5\tsha256", f"{MD5}\t{SHA256}", f"\t{SHA256}"]),
        ("md5", [f"md5:{MD5}"]),
        ("sha1", ['"SHA-1","MD5","FileName"', f'"{SHA1}","{MD5}","a,b.jpg"']),
        ("sha256", ["Note,SHA-256", f"first,{SHA256}"]),
        ("sha256", [f"\\{SHA256}  odd\\nname.jpg"]),
    ],
)
def test_the_usual_files_are_read(kind, lines):
    found = parse(lines, "list", kind)
    expected = {"pdq": PDQ, "md5": MD5, "sha1": SHA1, "sha256": SHA256}[kind]
    assert bytes.fromhex(expected) in found
    assert all(len(entry) * 8 == BITS[kind] for entry in found)
    whole = [line for line in lines if line and not line.startswith(("#", "%", "\t"))]
    headed = len(lines) > 1 and expected.lower() not in whole[0].lower()
    assert len(found) == len(whole) - headed


@pytest.mark.parametrize("line", ["not a hash", MD5, SHA256[:-1], "secret, words", f"{SHA256}0"])
def test_another_line_is_named_and_not_shown(line):
    with pytest.raises(ValueError, match="^bad.txt, line 2: has no sha256 hash of 64 hex characters$"):
        parse([SHA256, line], "bad.txt", "sha256")


def test_a_table_without_the_kind_is_refused():
    with pytest.raises(ValueError, match="line 1: has no sha1 hash"):
        parse(["name,size", f"a,{SHA1}"], "list", "sha1")


def away(hash_: np.ndarray, bits: int, seed: int) -> np.ndarray:
    """Return the hash with that many bits changed."""
    changed = np.unpackbits(hash_)
    changed[np.random.default_rng(seed).choice(256, bits, replace=False)] ^= 1
    return np.packbits(changed)


def test_matches_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    listed = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    listed[:, 5] = 7  # a band that they share
    near = [away(listed[rng.integers(300)], bits, seed) for seed, bits in enumerate(range(60))]
    rows = np.concatenate([near, rng.integers(0, 256, (100, 32), dtype=np.uint8)])[:, None]
    index = pdq_list(frozenset(entry.tobytes() for entry in listed))
    ordered = index.words.view(np.uint8)
    distance = np.bitwise_count(rows ^ ordered[None]).sum(axis=2)
    for radius in (0, 15, 31):
        expected = np.where(distance.min(axis=1) <= radius, distance.argmin(axis=1), -1)
        found = pdq_matches(rows, np.full(len(rows), 50), index, radius)
        assert found.tolist() == expected.tolist()
    assert (expected >= 0).sum() == 32


def test_a_turn_is_matched_and_low_quality_is_not():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (4, 8, 32), dtype=np.uint8)
    index = pdq_list(
        frozenset([rows[1, 6].tobytes(), away(rows[2, 3], 31, 0).tobytes(), away(rows[3, 0], 32, 1).tobytes()])
    )
    assert (pdq_matches(rows, np.array([100, 50, 50, 100]), index, 31) >= 0).tolist() == [False, True, True, False]
    assert (pdq_matches(rows, np.array([100, 49, 50, 100]), index, 31) >= 0).tolist() == [False, False, True, False]


def test_no_list_matches_nothing():
    assert pdq_matches(np.zeros((2, 8, 32), np.uint8), np.array([90, 90]), pdq_list(frozenset()), 31).tolist() == [
        -1,
        -1,
    ]
