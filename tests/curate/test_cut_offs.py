import pyarrow as pa
import pytest

from curate.config import HeadSpec, ScoreConfig, SelectionConfig
from curate.cut_offs import CUT_OFFS, check, select

ROW = {
    "status": "ok",
    "fstatus": "ok",
    "width_px": 400,
    "height_px": 300,
    "entropy_bits": 7.0,
    "sharpness": 100.0,
    "caption_reason": None,
    "aesthetic": 5.0,
    "nsfw_prob": 0.1,
    "watermark_prob": 0.1,
    "clip_similarity": 0.3,
    "blocklist_hit": False,
    "is_survivor": True,
    "kind": None,
}
ALL_CUTS = SelectionConfig(min_sharpness=10.0, min_aesthetic=4.5, min_clip_similarity=0.2)


def verdict(config=ALL_CUTS, **changes):
    row = ROW | changes

    def table(*names: str) -> pa.Table:
        return pa.table(
            {"uid": ["u"]} | {name.removeprefix("f") if name == "fstatus" else name: [row[name]] for name in names}
        )

    chosen = select(
        table("status"),
        table("fstatus", "width_px", "height_px", "entropy_bits", "sharpness"),
        table("caption_reason").cast(pa.schema([("uid", pa.string()), ("caption_reason", pa.string())])),
        table("aesthetic", "nsfw_prob", "watermark_prob", "clip_similarity", "blocklist_hit"),
        table("is_survivor", "kind")
        .cast(pa.schema([("uid", pa.string()), ("is_survivor", pa.bool_()), ("kind", pa.string())]))
        .append_column("semantic_cluster", pa.array([3], pa.int32())),
        config,
    ).to_pylist()[0]
    assert chosen["keep"] == (chosen["reject_reason"] is None) == (chosen["reject_stage"] is None)
    return chosen["reject_stage"], chosen["reject_reason"]


def test_a_good_sample_is_kept():
    assert verdict() == (None, None)


@pytest.mark.parametrize(
    ("changes", "stage", "reason"),
    [
        ({"status": "timeout", "fstatus": "timeout"}, "ingest", "timeout"),
        ({"fstatus": "truncated"}, "embed", "truncated"),
        ({"blocklist_hit": True, "is_survivor": False, "kind": "exact"}, "score", "blocklist"),
        ({"is_survivor": False, "kind": "perceptual", "nsfw_prob": 1.0}, "dedup", "duplicate_perceptual"),
        ({"caption_reason": "caption_missing"}, "captions", "caption_missing"),
        ({"width_px": 199}, "selection", "too_small"),
        ({"width_px": 901}, "selection", "extreme_aspect"),
        ({"entropy_bits": 1.0}, "selection", "low_entropy"),
        ({"sharpness": 1.0}, "selection", "low_sharpness"),
        ({"nsfw_prob": 0.51}, "selection", "unsafe"),
        ({"watermark_prob": 0.81}, "selection", "watermark"),
        ({"aesthetic": 4.4}, "selection", "low_aesthetic"),
        ({"clip_similarity": 0.1}, "selection", "low_clip_similarity"),
    ],
)
def test_each_reason(changes, stage, reason):
    assert verdict(**changes) == (stage, reason)


def test_every_cut_off_has_its_case():
    assert {cut.reason for cut in CUT_OFFS} == {
        case[2] for case in test_each_reason.pytestmark[0].args[1] if case[1] == "selection"
    }


def test_a_cut_off_at_null_is_off_and_a_null_score_is_kept():
    off = SelectionConfig(max_nsfw_prob=None)
    assert verdict(off, nsfw_prob=1.0) == (None, None)


def test_a_cut_off_needs_a_trained_head():
    untrained = HeadSpec(column="aesthetic", weights=None, allow_untrained=True)
    with pytest.raises(ValueError, match="untrained"):
        check(
            SelectionConfig(min_aesthetic=5.0, max_nsfw_prob=None, max_watermark_prob=None),
            ScoreConfig(heads=(untrained,)),
        )
    with pytest.raises(ValueError, match="no head in score.heads gives nsfw_prob"):
        check(SelectionConfig(), ScoreConfig(heads=()))
    check(SelectionConfig(), ScoreConfig())
