"""Cut-offs and the rules over the whole corpus, one sample and then many, against plain Python."""

import math

import numpy as np
import pyarrow as pa
import pytest

from curate.config import (
    DedupConfig,
    DiversityConfig,
    HeadSpec,
    Quantile,
    Quota,
    ScoreConfig,
    SelectionConfig,
    Threshold,
    TopFraction,
)
from curate.cut_offs import CUT_OFFS, active, check, resolved
from curate.verdicts import Corpus, cut, earlier_findings, judge, rows, rules

FOUND = {
    "taken_down": False,
    "status": "ok",
    "image_status": "ok",
    "blocklist_hit": False,
    "is_survivor": True,
    "kind": None,
    "caption_reason": None,
}
VALUES = {
    "shorter_side_px": 300.0,
    "aspect": 1.3,
    "num_words": 8.0,
    "caption_chars": 40.0,
    "entropy_bits": 7.0,
    "sharpness": 100.0,
    "aesthetic": 5.0,
    "nsfw_prob": 0.1,
    "watermark_prob": 0.1,
    "clip_similarity": 0.3,
    "text_share": 0.2,
}
TEXTS = {"taken_down": pa.bool_(), "blocklist_hit": pa.bool_(), "is_survivor": pa.bool_()}
ALL_CUTS = SelectionConfig(
    min_sharpness=10.0,
    min_aesthetic=4.5,
    min_clip_similarity=0.2,
    min_caption_words=3,
    min_caption_chars=6,
    thresholds=(Threshold(column="text_share", min=0.1, max=0.8),),
)


def corpus_of(samples, config, clusters=None, groups=None):
    """Return a corpus of dictionaries of findings and values."""
    columns = {
        name: pa.array([{**FOUND, **one}[name] for one in samples], TEXTS.get(name, pa.string())) for name in FOUND
    }
    early, findings = earlier_findings(columns)
    whole = [(), *findings]
    values = {name: np.array([{**VALUES, **one}[name] for one in samples], np.float32) for name in VALUES}
    names = {by: sorted(set(of) - {None}) for by, of in (groups or {}).items()}
    return Corpus(
        early=np.array([whole.index(findings[at]) for at in early], np.uint16),
        findings=whole,
        broken=cut(config, len(samples), values, None),
        values=values,
        groups={
            by: np.array([-1 if one is None else names[by].index(one) for one in of], np.int32)
            for by, of in (groups or {}).items()
        },
        names=names,
        cluster=np.array(clusters if clusters is not None else [-1] * len(samples), np.int32),
        uid_N2=np.array([[0, number] for number in range(len(samples))], np.uint64),
    )


def chosen(samples, config, **more):
    """Return the rows of the selection table and the figures of diversity."""
    corpus = corpus_of(samples, config, **more)
    figures = judge(corpus, config)
    uids = pa.array([f"{number:032x}" for number in range(len(samples))])
    return rows(corpus, slice(0, len(samples)), rules(config), uids).to_pylist(), figures


def verdict(config=ALL_CUTS, **changes):
    one = chosen([changes], config)[0][0]
    assert one["keep"] == (one["reject_reason"] is None) == (one["reject_stage"] is None) == (one["reasons"] == [])
    assert one["reasons"][:1] == ([] if one["keep"] else [one["reject_reason"]])
    return one["reject_stage"], one["reject_reason"]


def test_a_good_sample_is_kept():
    assert verdict() == (None, None)


@pytest.mark.parametrize(
    ("changes", "stage", "reason"),
    [
        ({"taken_down": True, "status": "timeout"}, "ingest", "taken_down"),
        ({"status": "timeout", "image_status": "timeout"}, "ingest", "timeout"),
        ({"image_status": "truncated"}, "embed", "truncated"),
        ({"blocklist_hit": True, "is_survivor": False, "kind": "exact"}, "score", "blocklist"),
        ({"is_survivor": False, "kind": "perceptual", "nsfw_prob": 1.0}, "dedup", "duplicate_perceptual"),
        ({"caption_reason": "caption_missing"}, "captions", "caption_missing"),
        ({"shorter_side_px": 199}, "selection", "too_small"),
        ({"aspect": 3.01}, "selection", "extreme_aspect"),
        ({"num_words": 2}, "selection", "few_words"),
        ({"caption_chars": 5}, "selection", "few_characters"),
        ({"entropy_bits": 1.0}, "selection", "low_entropy"),
        ({"sharpness": 1.0}, "selection", "low_sharpness"),
        ({"nsfw_prob": 0.51}, "selection", "unsafe"),
        ({"watermark_prob": 0.81}, "selection", "watermark"),
        ({"aesthetic": 4.4}, "selection", "low_aesthetic"),
        ({"clip_similarity": 0.1}, "selection", "low_clip_similarity"),
        ({"text_share": 0.05}, "selection", "low_text_share"),
        ({"text_share": 0.9}, "selection", "high_text_share"),
    ],
)
def test_each_reason(changes, stage, reason):
    assert verdict(**changes) == (stage, reason)


def test_every_cut_off_has_its_case():
    cases = {case[2] for case in test_each_reason.pytestmark[0].args[1] if case[1] == "selection"}
    assert {cut.reason for cut in CUT_OFFS} <= cases


def test_values_at_the_cut_off_are_kept():
    at = {"shorter_side_px": 200, "aspect": 3.0, "nsfw_prob": 0.5, "watermark_prob": 0.8, "aesthetic": 4.5}
    assert verdict(**at, clip_similarity=0.2, text_share=0.8) == (None, None)


def test_every_reason_is_told_in_order():
    one = chosen([{"caption_reason": "caption_missing", "shorter_side_px": 10, "nsfw_prob": 0.9}], ALL_CUTS)[0][0]
    assert one["reasons"] == ["caption_missing", "too_small", "unsafe"]


def test_a_cut_off_at_null_is_off_and_a_null_score_is_kept():
    off = SelectionConfig(max_nsfw_prob=None, min_side_px=None, max_aspect=None)
    assert verdict(off, nsfw_prob=1.0, shorter_side_px=3, aspect=50) == (None, None)
    assert verdict(ALL_CUTS, nsfw_prob=math.nan, aesthetic=math.nan) == (None, None)


def test_datacomps_basic_filter():
    basic = resolved(SelectionConfig(preset="datacomp_basic", min_side_px=5, max_aspect=None))
    said = {cut.setting: value for cut, value in active(basic)}
    assert (said["min_side_px"], said["max_aspect"]) == (200, 3.0)
    assert (said["min_caption_words"], said["min_caption_chars"], basic.languages) == (3, 6, ("en",))


def test_a_cut_off_needs_a_trained_head_and_a_column():
    untrained = HeadSpec(column="aesthetic", weights=None, allow_untrained=True)
    off = {"max_nsfw_prob": None, "max_watermark_prob": None}
    with pytest.raises(ValueError, match="untrained"):
        check(SelectionConfig(min_aesthetic=5.0, **off), ScoreConfig(heads=(untrained,)))
    with pytest.raises(ValueError, match="untrained"):
        best = TopFraction(column="aesthetic", fraction=0.3)
        check(SelectionConfig(top_fractions=(best,), **off), ScoreConfig(heads=(untrained,)))
    with pytest.raises(ValueError, match="no head in score.heads gives nsfw_prob"):
        check(SelectionConfig(), ScoreConfig(heads=()))
    with pytest.raises(ValueError, match="no column of numbers is called 'beauty'"):
        check(SelectionConfig(quantiles=(Quantile(column="beauty", low=0.1),)), ScoreConfig())
    with pytest.raises(ValueError, match="makes no clusters"):
        evened = SelectionConfig(diversity=DiversityConfig(max_per_cluster=3))
        check(evened, ScoreConfig(), DedupConfig(semantic_eps=None))
    check(SelectionConfig(), ScoreConfig())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SelectionConfig(min_side_px=0), "selection.min_side_px = 0: must be 1 or more, or null"),
        (lambda: SelectionConfig(max_aspect=0.5), "selection.max_aspect = 0.5: must be 1 or more, or null"),
        (lambda: SelectionConfig(max_nsfw_prob=1.5), "selection.max_nsfw_prob = 1.5: must be 0..1, or null"),
        (lambda: SelectionConfig(min_aesthetic=0.5), "selection.min_aesthetic = 0.5: must be 1..10, or null"),
        (lambda: SelectionConfig(min_entropy_bits=math.nan), "must be a finite number, or null"),
        (lambda: SelectionConfig(languages=("English",)), "selection.languages = 'English'"),
        (lambda: Threshold(column="sharpness"), "give min, max, or both"),
        (lambda: Threshold(column="sharpness", min=2, max=1), "must not be above max = 1"),
        (lambda: Quantile(column="sharpness", low=0.6, high=0.5), "selection.quantiles.sharpness.high = 0.5"),
        (lambda: TopFraction(column="sharpness", fraction=0), "must be above 0, up to 1"),
        (lambda: Quota(by="domain"), "give max_samples, max_share, or both"),
        (lambda: Quota(by="domain", max_share=1.2), "selection.quotas.domain.max_share = 1.2"),
        (lambda: SelectionConfig(diversity=DiversityConfig()), "give max_per_cluster or temperature, not both"),
        (
            lambda: SelectionConfig(diversity=DiversityConfig(temperature=2, act="weight")),
            "selection.diversity.temperature = 2",
        ),
        (lambda: SelectionConfig(diversity=DiversityConfig(temperature=0.5)), "say it with temperature and act: drop"),
        (
            lambda: SelectionConfig(diversity=DiversityConfig(max_per_cluster=0)),
            "selection.diversity.max_per_cluster = 0",
        ),
    ],
)
def test_a_setting_out_of_range_is_one_clear_line(make, told):
    with pytest.raises(ValueError) as error:
        make()
    assert told in str(error.value) and "\n" not in str(error.value)


OPEN = {"min_side_px": None, "max_aspect": None, "max_nsfw_prob": None, "max_watermark_prob": None}


def many(seed, count=200):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(count), 1)  # many ties
    scores[rng.random(count) < 0.1] = np.nan
    return [
        {"clip_similarity": float(s), "entropy_bits": float(e)}
        for s, e in zip(scores, rng.random(count) * 8, strict=True)
    ]


def kept(samples, config, **more):
    return [number for number, one in enumerate(chosen(samples, config, **more)[0]) if one["keep"]]


@pytest.mark.parametrize("of", ["measured", "passed"])
@pytest.mark.parametrize("prefer", ["high", "low"])
def test_a_top_fraction_is_exact_with_ties_by_uid(of, prefer):
    samples, sign = many(1), -1 if prefer == "high" else 1
    best = TopFraction(column="clip_similarity", fraction=0.3, prefer=prefer, of=of)
    config = SelectionConfig(**OPEN, min_entropy_bits=2.0, top_fractions=(best,))
    passes = [n for n, one in enumerate(samples) if one["entropy_bits"] >= 2]
    among = passes if of == "passed" else range(len(samples))
    there = [n for n in among if not math.isnan(samples[n]["clip_similarity"])]
    ordered = sorted(there, key=lambda n: (sign * samples[n]["clip_similarity"], n))
    expected = set(ordered[: math.ceil(0.3 * len(there))]) & set(passes)
    assert kept(samples, config) == sorted(expected)


def test_quantiles_keep_equal_values_together():
    samples = many(2)
    values = np.array([one["clip_similarity"] for one in samples], np.float32)
    low, high = np.nanquantile(values, [0.2, 0.9], method="inverted_cdf")
    config = SelectionConfig(
        **OPEN, min_entropy_bits=None, quantiles=(Quantile(column="clip_similarity", low=0.2, high=0.9),)
    )
    assert kept(samples, config) == [n for n, v in enumerate(values) if not (v < low or v > high)]


@pytest.mark.parametrize("rank_by", ["clip_similarity", None])
def test_quotas_keep_the_best_of_each_and_leave_the_rest_alone(rank_by):
    samples = many(3)
    hosts = [None if n % 7 == 0 else f"h{n % 3}" for n in range(len(samples))]
    quota = Quota(by="domain", max_samples=9, max_share=0.5, values=("h0", "h2"), rank_by=rank_by)
    config = SelectionConfig(**OPEN, min_entropy_bits=2.0, quotas=(quota,))
    passes = [n for n, one in enumerate(samples) if one["entropy_bits"] >= 2]
    expected = [n for n in passes if hosts[n] not in ("h0", "h2")]
    for host in ("h0", "h2"):
        of = [n for n in passes if hosts[n] == host]
        scores = [-math.inf if math.isnan(s := samples[n]["clip_similarity"]) else s for n in of]
        best = sorted(zip(of, scores, strict=True), key=lambda pair: (-pair[1] if rank_by else 0, pair[0]))
        expected += [n for n, _ in best[:9]]
    assert kept(samples, config, groups={"domain": hosts}) == sorted(expected)


def test_a_share_counts_what_reaches_the_quota():
    samples = [{}] * 10
    config = SelectionConfig(**OPEN, quotas=(Quota(by="source", max_share=0.3),))
    assert kept(samples, config, groups={"source": ["a"] * 8 + ["b"] * 2}) == [0, 1, 2, 8, 9]


CLUSTERS = [0] * 60 + [1] * 30 + [2] * 9 + [3] + [-1] * 10


def test_a_cap_evens_the_clusters_out():
    config = SelectionConfig(**OPEN, diversity=DiversityConfig(max_per_cluster=9))
    found, figures = chosen([{}] * len(CLUSTERS), config, clusters=CLUSTERS)
    left = [cluster for cluster, one in zip(CLUSTERS, found, strict=True) if one["keep"]]
    assert {c: left.count(c) for c in (0, 1, 2, 3, -1)} == {0: 9, 1: 9, 2: 9, 3: 1, -1: 10}
    assert found[59]["reasons"] == ["cluster_cap"]
    shares = np.array([60, 30, 9, 1]) / 100
    entropy = -(shares * np.log(shares)).sum()
    assert figures["before"]["effective_clusters"] == pytest.approx(np.exp(entropy), abs=0.01)
    assert figures["before"]["effective_clusters_by_pairs"] == pytest.approx(1 / (shares**2).sum(), abs=0.01)
    assert figures["after"]["effective_clusters"] > figures["before"]["effective_clusters"] + 0.5
    assert (figures["before"]["samples"], figures["after"]["samples"]) == (110, 38)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, [30, 15, 4, 1]), (0.0, [20, 20, 9, 1])])
def test_a_temperature_moves_between_the_shares_and_equal_ones(temperature, expected):
    diversity = DiversityConfig(temperature=temperature, keep_fraction=0.5)
    found, _ = chosen([{}] * len(CLUSTERS), SelectionConfig(**OPEN, diversity=diversity), clusters=CLUSTERS)
    left = [cluster for cluster, one in zip(CLUSTERS, found, strict=True) if one["keep"]]
    sizes = [left.count(cluster) for cluster in range(4)]
    assert sum(sizes) == 50 and np.abs(np.array(sizes) - expected).max() <= 1


@pytest.mark.parametrize("settings", [{"max_per_cluster": 9}, {"temperature": 0.5}])
def test_weights_give_the_same_masses_and_drop_nothing(settings):
    config = SelectionConfig(**OPEN, diversity=DiversityConfig(act="weight", **settings))
    found, figures = chosen([{}] * len(CLUSTERS), config, clusters=CLUSTERS)
    assert all(one["keep"] for one in found)
    weight = np.array([one["weight"] for one in found])
    mass = np.array([weight[np.array(CLUSTERS) == cluster].sum() for cluster in range(4)])
    sizes = np.array([60, 30, 9, 1])
    wanted = np.minimum(sizes, 9) if "max_per_cluster" in settings else sizes**0.5
    np.testing.assert_allclose(mass / mass.sum(), wanted / wanted.sum(), rtol=1e-5)
    assert weight[:100].mean() == pytest.approx(1, abs=1e-5) and set(weight[100:]) == {1.0}
    assert figures["after"]["effective_clusters"] > figures["before"]["effective_clusters"]
