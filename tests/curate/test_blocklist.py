import numpy as np
import pytest

from curate.blocklist import parse, pdq_hits


def test_lists_hold_one_hash_a_line():
    one, two = "ab" * 32, "CD" * 32
    assert parse([one, "", "# comment", f"{two}, 2024-01-01"], "list") == {bytes.fromhex(one), bytes.fromhex(two)}


def test_another_line_is_named():
    with pytest.raises(ValueError, match="bad.txt, line 2"):
        parse(["ab" * 32, "not a hash"], "bad.txt")


def test_pdq_hits_within_the_radius_and_above_the_quality():
    listed = np.zeros(32, np.uint8)
    near, far = listed.copy(), listed.copy()
    near[:3], near[3] = 255, 0b1111111
    far[:4] = 255
    hits = pdq_hits(np.stack([near, far, near]), np.array([80, 80, 49]), frozenset([listed.tobytes()]), 31)
    assert hits.tolist() == [True, False, False]
