"""The score step on small tables: columns that say what they are, blocklists, several captions, calibration."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curate.config import CurationConfig, EmbedConfig, HeadSpec, ScoreConfig
from curate.config.embed import ClipSpec
from curate.hashes import pdq_and_turned
from curate.weights import MissingWeights
from pipelines.preflight import check_head_weights
from pipelines.score import _build, fingerprints
from pipelines.store import Root, commit, parquet_bytes, publish, table_file
from tests.conftest import encoded, picture
from tests.pipelines.small_run import run

UNTRAINED = HeadSpec(column="aesthetic", weights=None, allow_untrained=True, low=1, high=10)
DIM = 768


def write_table(root: Root, table: str, rows: pa.Table) -> None:
    receipt = commit(root, table, "a", "test", {table_file(table, "a"): parquet_bytes(rows)}, len(rows), {})
    publish(root, table, [receipt], {})


def write_tables(folder: Path, images: list[bytes], hashes: list[tuple], cosines: list[float | None]) -> None:
    """Write samples and features of images; a cosine of None stands for a missing caption."""
    root, ends = Root(str(folder)), np.cumsum([len(image) for image in images])
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "a.tar").write_bytes(b"".join(images))
    uids = [f"{at:032x}" for at in range(len(images))]
    samples = {
        "uid": uids,
        "sha256": [hashlib.sha256(image).hexdigest() for image in images],
        "shard": ["raw/a.tar"] * len(images),
        "offset": [int(end) - len(image) for end, image in zip(ends, images, strict=True)],
        "num_bytes": [len(image) for image in images],
    }
    write_table(root, "samples", pa.table(samples))
    unit = np.random.default_rng(0).standard_normal((len(images), DIM))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float16)
    features = {
        "uid": uids,
        "pdq256": pa.array([turns[0] for turns, _ in hashes], pa.binary(32)),
        "pdq256_turned": pa.array([b"".join(turns[1:]) for turns, _ in hashes], pa.binary(224)),
        "pdq_quality": pa.array([quality for _, quality in hashes], pa.int32()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(unit.ravel()), DIM),
        "clip_similarity": pa.array(cosines, pa.float32()),
    }
    rows = pa.table(features)
    at = rows.schema.get_field_index("clip_similarity")
    said = rows.schema.field(at).with_metadata({"model": "ViT-L-14, clip_vit_l14_openai", "revision": "sha256 ab"})
    write_table(root, "features", rows.set_column(at, said, rows.column(at)))


@pytest.fixture
def six(tmp_path) -> Path:
    """Six samples: four pictures, of which the second has three captions, one of them empty."""
    pictures = [picture(n) for n in (1, 2, 2, 2, 3, 4)]
    hashes = [pdq_and_turned(np.asarray(image.convert("L"))) for image in pictures]
    cosines = [0.1, 0.2, 0.4, None, None, 0.3]
    write_tables(tmp_path / "out", [encoded(image) for image in pictures], hashes, cosines)
    return tmp_path


def scored(folder: Path, **settings: object) -> pa.Table:
    config = ScoreConfig(**{"heads": (UNTRAINED,)} | settings)
    return _build(CurationConfig(root=str(folder / "out"), score=config))("a").rows


def test_best_and_mean_are_of_the_captions_of_the_same_picture(six):
    rows = scored(six)
    assert rows["clip_similarity"].to_pylist() == pytest.approx([0.1, 0.2, 0.4, None, None, 0.3])
    assert rows["clip_similarity_best"].to_pylist() == pytest.approx([0.1, 0.4, 0.4, 0.4, None, 0.3])
    assert rows["clip_similarity_mean"].to_pylist() == pytest.approx([0.1, 0.3, 0.3, 0.3, None, 0.3])


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_a_listed_file_is_a_hit_without_scores(six, kind):
    listed = hashlib.new(kind, encoded(picture(2))).hexdigest()
    (six / "list.csv").write_text(f"{kind},why\n{listed},x\n")
    rows = scored(six, **{f"blocklists_{kind}": (str(six / "list.csv"),)})
    assert rows["blocklist_hit"].to_pylist() == [False, True, True, True, False, False]
    assert rows["blocklist_match"].to_pylist() == [None, *[f"{kind}:{listed}"] * 3, None, None]
    for name in ("aesthetic", "clip_similarity", "clip_similarity_best", "clip_similarity_mean"):
        assert rows[name].to_pylist()[1:4] == [None] * 3
    assert None not in rows["aesthetic"].take([0, 4, 5]).to_pylist()


@pytest.mark.shared
def test_a_listed_photograph_is_found_however_it_is_turned(shared, tmp_path):
    from PIL import Image

    from curate.hashes import TURNS

    path = sorted((shared / "photos_coco").rglob("*.jpg"))[0]
    with Image.open(path) as image:
        whole = image.convert("RGB")
    other = sorted((shared / "photos_coco").rglob("*.jpg"))[1]
    pictures = [whole, *(whole.transpose(turn) for turn in TURNS), Image.open(other)]
    hashes = [pdq_and_turned(np.asarray(image.convert("L"))) for image in pictures]
    write_tables(tmp_path / "out", [encoded(image, quality=70) for image in pictures], hashes, [None] * 9)
    (tmp_path / "pdq.txt").write_text(f"hash,quality\n{hashes[0][0][0].hex()},{hashes[0][1]}\n")
    rows = scored(tmp_path, blocklists_pdq=(str(tmp_path / "pdq.txt"),))
    assert rows["blocklist_hit"].to_pylist() == [True] * 8 + [False]
    assert set(rows["blocklist_match"].to_pylist()) == {f"pdq:{hashes[0][0][0].hex()}", None}


def test_a_list_that_changed_in_its_place_is_another_one(tmp_path):
    path = tmp_path / "list.txt"
    config = ScoreConfig(blocklists_md5=(str(path),))
    path.write_text("00" * 16)
    before = fingerprints(config)
    path.write_text("11" * 16)
    assert fingerprints(config) != before


@pytest.mark.shared
def test_each_score_says_what_it_is(shared, six, monkeypatch):
    weights = six / "weights"
    weights.mkdir()
    published = {"aesthetic_v2.pth": "aesthetic_v2/sac+logos+ava1-l14-linearMSE.pth"}
    published["porn_vit_l14.npz"] = "stability_detection/p_head_v1.npz"
    for name, file in published.items():
        (weights / name).write_bytes((shared / "heads" / file).read_bytes())
    monkeypatch.setenv("DARKROOM_WEIGHTS", str(weights))
    specs = (
        HeadSpec(column="aesthetic", weights="aesthetic_v2"),
        HeadSpec(column="porn_prob", weights="porn_vit_l14"),
    )
    rows = scored(six, heads=specs)
    said = {key.decode(): value.decode() for key, value in rows.schema.field("aesthetic").metadata.items()}
    assert said["range"] == "-5..15" and said["unit"] == "points" and said["direction"] == "higher is better"
    assert said["model"] == "aesthetic_v2 on embeddings of clip_vit_l14_openai"
    assert "6934dd81792f086e613a121dbce43082cb8be85e" in said["revision"] and "21dd590f" in said["revision"]
    assert rows.schema.field("porn_prob").metadata[b"range"] == b"0..1"
    assert rows["nsfw_prob"].null_count == 6
    for name in ("clip_similarity", "clip_similarity_best", "clip_similarity_mean"):
        said = rows.schema.field(name).metadata
        assert said[b"unit"] == b"cosine" and said[b"range"] == b"-1..1" and said[b"direction"] == b"higher fits better"
        assert (said[b"model"], said[b"revision"]) == (b"ViT-L-14, clip_vit_l14_openai", b"sha256 ab")
    config = CurationConfig(root="x", score=ScoreConfig(heads=specs))
    check_head_weights(config)
    other = CurationConfig(
        root="x", score=ScoreConfig(heads=specs), embed=EmbedConfig(clip=ClipSpec(weights="clip_vit_b32_openai"))
    )
    with pytest.raises(ValueError, match="score.heads.aesthetic.weights = 'aesthetic_v2': it reads embeddings of"):
        check_head_weights(other)
    (weights / "porn_vit_l14.npz").unlink()
    with pytest.raises(MissingWeights):
        check_head_weights(config)


def test_calibrate_prints_draws_and_proposes(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.4
    values = np.where(labels, rng.beta(5, 2, 400), rng.beta(2, 5, 400)).astype(np.float32)
    uids = [f"{at:032x}" for at in range(400)]
    absent = np.arange(400) % 100 == 0
    table = pa.table({"uid": uids, "nsfw_prob": pa.array(values, mask=absent)})
    write_table(Root(str(tmp_path / "out")), "scores", table)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uid", "label"])
        rows.writerows([[uid, int(label)] for uid, label in zip(uids, labels, strict=True)])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"root": str(tmp_path / "out")}))
    words = ("pipelines/score.py", "calibrate", "--config", str(tmp_path / "config.yaml"), "--score", "nsfw_prob")
    labelled = ("--labels", str(tmp_path / "labels.csv"), "--plot", str(tmp_path / "curve.svg"), "--recall", "0.9")
    said = run(*words, *labelled).stdout
    assert "396 labelled samples" in said and "4 labelled without a score" in said
    proposed = float(said.split("cut-off for recall 0.9: ")[1].split()[0])
    seen = values[labels & ~absent]
    assert (seen > proposed).mean() >= 0.9 > (seen > proposed).mean() - 2 / len(seen)
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn.startswith("<?xml") and "nsfw_prob" not in said.split("curve")[0].split("\n")[1]
    failed = run(*words, "--labels", str(tmp_path / "config.yaml"), check=False)
    assert failed.returncode == 2 and "needs the columns uid and label" in failed.stderr
    assert run(*words, check=False).stderr.strip().endswith("name a CSV with the columns uid and label")


def test_the_table_is_read_back_with_its_version(six):
    pq.write_table(scored(six), six / "scores.parquet")
    assert pq.read_schema(six / "scores.parquet").metadata[b"darkroom_version"] == b"2"
