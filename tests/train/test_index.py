"""The index: what the tables say comes back row by row, groups, weights, tars without tables, staleness."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.train.synthetic_root import write_root
from train import index as index_module
from train.index import open_index
from train.index_build import IndexOf, build_index, is_current


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_root(tmp_path / "root", {(32, 32): 11, (32, 64): 5})
    return tmp_path / "root"


def built(root: Path, **changes: object):
    what = IndexOf(**({"root": str(root), "split": "train"} | changes))
    build_index(what, root / "index/train")
    return open_index(root / "index/train")


def table(root: Path, split: str = "train") -> dict[str, dict]:
    rows = pq.read_table(root / f"tables/shards/{split}-00000.parquet").to_pylist()
    return {row["uid"]: row for row in rows}


def test_every_row_of_the_tables_comes_back(root: Path) -> None:
    index, rows = built(root), table(root)
    samples = [index.sample(row) for row in range(len(index))]
    assert {sample.uid for sample in samples} == set(rows)
    for sample in samples:
        row = rows[sample.uid]
        assert (sample.picture.shard, sample.picture.offset, sample.picture.num_bytes) == (
            row["shard"],
            row["offset"],
            row["num_bytes"],
        )
        assert sample.bucket_hw == (row["bucket_height_px"], row["bucket_width_px"])
        assert sample.original_hw == (row["original_height_px"], row["original_width_px"])
        assert (sample.crop_top_px, sample.crop_left_px) == (row["crop_top_px"], row["crop_left_px"])
        assert (sample.caption, sample.aesthetic) == (row["caption"], row["aesthetic"])
        assert sample.latents == (None, None)
    assert [(group.bucket_hw, group.num_rows) for group in index.groups] == [((32, 32), 11), ((32, 64), 5)]
    offsets = [sample.picture.offset for sample in samples[:11]]
    assert offsets == sorted(offsets)


def test_weights_make_groups_and_leave_out(root: Path) -> None:
    uids = sorted(table(root))
    weight = f"CASE WHEN uid = '{uids[0]}' THEN 0 WHEN aesthetic >= 5 THEN 2 ELSE 1 END"
    index = built(root, weight=weight)
    assert (len(index), index.left_out) == (15, 1)
    assert {group.weight for group in index.groups} == {1.0, 2.0}
    for row in range(len(index)):
        assert index.group_of(row).weight == (2.0 if index.sample(row).aesthetic >= 5 else 1.0)
    for wrong, told in (("nonsense", "nonsense"), ("-1", "below 0"), ("'inf'::DOUBLE", "below 0 or infinite")):
        with pytest.raises(ValueError, match=told):
            built(root, weight=wrong)


def test_tars_alone_give_the_same_samples_or_their_own_sizes(root: Path) -> None:
    with_tables = built(root)
    samples = {with_tables.sample(row).caption: with_tables.sample(row) for row in range(16)}
    shutil.rmtree(root / "tables")
    index = built(root, resolution_px=64)
    assert Counter(group.bucket_hw for group in index.groups) == {(64, 64): 1, (64, 128): 1}
    for row in range(16):
        sample = index.sample(row)
        assert sample.picture == samples[sample.caption].picture
        assert sample.original_hw == samples[sample.caption].bucket_hw  # the stored picture's own size
        assert np.isnan(sample.aesthetic)
    with pytest.raises(ValueError, match="16 samples lack the aesthetic score"):
        index.require_aesthetic()


def test_an_index_of_changed_data_or_another_weight_is_stale(root: Path) -> None:
    folder = root / "index/train"
    what = IndexOf(root=str(root), split="train")
    assert not is_current(what, folder)
    built(root)
    assert is_current(what, folder)
    assert not is_current(IndexOf(root=str(root), split="train", weight="2"), folder)
    manifest = json.loads((root / "tables/shards/_run.json").read_text())
    manifest["fragments"]["train-00000"]["receipt"] = "another attempt"
    (root / "tables/shards/_run.json").write_text(json.dumps(manifest))
    assert not is_current(what, folder)


def test_a_damaged_index_is_refused(root: Path) -> None:
    built(root)
    rows = root / "index/train/rows.bin"
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(ValueError, match="rows.bin: .* expected; build the index again"):
        open_index(root / "index/train")
    with pytest.raises(FileNotFoundError, match="build it with python -m train.index"):
        open_index(root / "index/nowhere")


def test_the_command_builds_every_split_and_names_what_is_missing(root: Path, tmp_path: Path, capsys) -> None:
    assert index_module.main(["--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "index/train: 16 rows in 2 groups, 0 of weight 0 left out" in printed
    assert "index/val: 4 rows in 2 groups" in printed
    assert index_module.main(["--root", str(tmp_path / "empty")]) == 2
    assert "run curation up to the export step" in capsys.readouterr().err
