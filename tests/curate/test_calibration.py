import numpy as np
import pytest
from scipy.stats import binomtest

from curate.calibration import curve, proposal, spread, wilson


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10), (1, 1000), (499, 500)])
def test_intervals_are_wilson_s(hits, total):
    expected = binomtest(hits, total).proportion_ci(method="wilson")
    found = wilson(hits, total)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_of_nothing_nothing_is_known():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


def test_each_cut_off_lies_between_two_scores():
    points = curve(np.array([0.9, 0.7, 0.7, 0.2]), np.array([True, True, False, True]))
    assert [p.cut_off for p in points[:2]] == pytest.approx([0.8, 0.45])
    assert [p.found for p in points] == [1, 3, 4]
    assert [p.precision.value for p in points] == pytest.approx([1, 2 / 3, 3 / 4])
    assert [p.recall.value for p in points] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_proposal_is_the_highest_cut_off_with_the_wanted_recall():
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.3
    scores = np.where(labels, rng.beta(5, 2, 4000), rng.beta(2, 5, 4000))
    points = curve(scores, labels)
    chosen, safe = proposal(points, 0.9), proposal(points, 0.9, cautious=True)
    assert (scores[labels] > chosen.cut_off).mean() == chosen.recall.value >= 0.9
    higher = points[points.index(chosen) - 1]
    assert higher.recall.value < 0.9
    assert safe.cut_off < chosen.cut_off and safe.recall.low >= 0.9
    assert proposal(curve(scores[:20], labels[:20]), 0.99, cautious=True) is None


def test_the_table_is_a_part_of_the_curve():
    points = curve(np.linspace(0, 1, 200), np.arange(200) % 2 == 0)
    shown = spread(points, 15)
    assert len(shown) == 15 and shown[0] is points[0] and shown[-1] is points[-1]
    assert spread(points[:3], 15) == points[:3]


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [([0.1, 0.2], [True, True], "all 2 labels are 1"), ([0.1, np.nan], [True, False], "not finite")],
)
def test_a_sample_that_says_nothing_is_refused(scores, labels, told):
    with pytest.raises(ValueError, match=told):
        curve(np.array(scores), np.array(labels))
