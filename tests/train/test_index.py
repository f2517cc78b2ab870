"""The index: what the tables say comes back row by row, groups, weights, tars without tables, staleness."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import socket
import tarfile
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from tests.conftest import encoded, picture
from tests.train.synthetic_root import write_root
from train.data.check import main as check
from train.index import ready as index_ready
from train.index import rows as index_rows
from train.index.__main__ import main
from train.index.build import IndexOf, build_index, is_current
from train.index.reader import open_index
from train.index.ready import ready_index


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


def test_weights_of_too_many_values_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_rows, "MAX_GROUPS", 4)
    with pytest.raises(
        ValueError, match=r"^weight = 'aesthetic': more than 4 groups of bucket, source and weight; round"
    ):
        built(root, weight="aesthetic")


def test_the_weight_that_selection_gave_can_be_asked_for(root: Path) -> None:
    expected = {}
    for path in sorted((root / "tables/shards").glob("*.parquet")):
        rows = pq.read_table(path)
        weights = pa.array([0.5 if number % 2 else 3.0 for number in range(rows.num_rows)], pa.float32())
        pq.write_table(rows.append_column("weight", weights), path)
        expected |= dict(zip(rows["uid"].to_pylist(), weights.to_pylist(), strict=True))
    index = built(root, weight="weight")
    found = {index.sample(row).uid: index.group_of(row).weight for row in range(len(index))}
    assert found == {uid: expected[uid] for uid in table(root)}


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


def test_a_roots_name_is_no_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "it's [1]*"
    write_root(root, {(32, 32): 11, (32, 64): 5})
    assert main(["--root", str(root)]) == 0
    (root / "shards/train/unknown.tar").write_bytes(b"no tar" * 200)
    check(["--root", str(root), "--check"])
    assert "unknown.tar" in capsys.readouterr().out
    (root / "shards/train/unknown.tar").unlink()
    shutil.rmtree(root / "tables")
    assert len(built(root, resolution_px=64)) == 16


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


def test_two_starts_at_the_same_moment_build_one_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and refiner share the folder, and may be started together on a new root."""
    folder, said, builds = root / "index/train", [], []
    (folder.parent / ".train.0123.partial").mkdir(parents=True)  # what a killed build left

    def slow(*arguments: object) -> None:
        builds.append(threading.get_ident())
        time.sleep(1.5)
        build_index(*arguments)

    monkeypatch.setattr(index_ready, "build_index", slow)
    what = IndexOf(root=str(root), split="train")
    both = [threading.Thread(target=index_ready._make, args=(what, folder, said.append, [])) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(builds) == 1 and is_current(what, folder)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    assert sorted(said) == [f"index: building {folder}", f"index: waiting for {me}, which builds {folder}"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".train.lock", "train"]


def test_a_damaged_index_is_refused(root: Path) -> None:
    built(root)
    rows = root / "index/train/rows.bin"
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(ValueError, match="rows.bin: .* expected; build the index again"):
        open_index(root / "index/train")
    with pytest.raises(FileNotFoundError, match="build it with python -m train.index"):
        open_index(root / "index/nowhere")


def test_a_split_without_tars_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards/val").mkdir(parents=True)
    assert main(["--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 0
    assert len(open_index(tmp_path / "index/val")) == 0


def test_the_command_builds_every_split_and_names_what_is_missing(root: Path, tmp_path: Path, capsys) -> None:
    assert main(["--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "index/train: 16 rows in 2 groups, 0 of weight 0 left out" in printed
    assert "index/val: 4 rows in 2 groups" in printed
    with pytest.raises(SystemExit) as ended:
        main(["--root", str(tmp_path / "empty")])
    assert ended.value.code == 2
    assert "run curation up to the export step" in capsys.readouterr().err


def test_many_fragments_read_side_by_side_give_the_files_of_one_after_the_other(root: Path) -> None:
    rows = pq.read_table(root / "tables/shards/train-00000.parquet")
    names = [f"part-{number}" for number in range(5)]
    bounds = [0, 7, 7, 8, 15, 16]  # one of them is empty
    for name, first, last in zip(names, bounds, bounds[1:], strict=False):
        mixed = rows.slice(first, last - first).take(np.random.default_rng(first).permutation(last - first))
        pq.write_table(mixed, root / f"tables/shards/{name}.parquet")
    (root / "tables/shards/train-00000.parquet").unlink()
    manifest = {"fragments": {name: {"receipt": name} for name in names}}
    (root / "tables/shards/_run.json").write_text(json.dumps(manifest))
    told: list[tuple[int, int]] = []
    files = {}
    for processes in (1, 3):
        folder = root / f"index-{processes}/train"
        what = IndexOf(root=str(root), split="train", weight="CASE WHEN aesthetic >= 5 THEN 2 ELSE 1 END")
        build_index(what, folder, processes, lambda done, total: told.append((done, total)))
        files[processes] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files[1] == files[3]
    assert told == [(done, 10) for done in range(1, 11)] * 2
    index, expected = open_index(folder), {row["uid"]: row for row in rows.to_pylist()}
    samples = [index.sample(row) for row in range(len(index))]
    assert {sample.uid for sample in samples} == set(expected) and len(samples) == 16
    for row, sample in enumerate(samples):
        said = expected[sample.uid]
        assert (sample.caption, sample.picture.shard) == (said["caption"], said["shard"])
        assert (sample.picture.offset, sample.original_hw[0]) == (said["offset"], said["original_height_px"])
        group = index.group_of(row)
        assert (group.bucket_hw[1], group.weight) == (said["bucket_width_px"], 2.0 if said["aesthetic"] >= 5 else 1.0)


def test_captions_and_scores_that_are_null_and_uids_that_are_none(root: Path) -> None:
    path = root / "tables/shards/train-00000.parquet"
    rows = pq.read_table(path)
    changed = rows.to_pylist()
    changed[0] |= {"caption": None, "aesthetic": None}
    changed[1] |= {"caption": "Ünïcode 図"}
    pq.write_table(pa.Table.from_pylist(changed, schema=rows.schema), path)
    index = built(root)
    captions = {index.sample(row).uid: index.sample(row).caption for row in range(16)}
    assert (captions[changed[0]["uid"]], captions[changed[1]["uid"]]) == ("", "Ünïcode 図")
    assert captions[changed[2]["uid"]] == changed[2]["caption"]
    assert index.missing_aesthetic == 1
    changed[3] |= {"uid": "not hexadecimal, but 32 letters. "[:32]}
    pq.write_table(pa.Table.from_pylist(changed, schema=rows.schema), path)
    with pytest.raises(ValueError, match="a uid is not 32 hex characters"):
        built(root)


def wait_for_index(rank: int, root: Path, url: str, queue: multiprocessing.Queue) -> None:
    """One of two ranks whose process group gives up after 1.5 s, with a build that takes longer."""
    wait = timedelta(seconds=1.5)
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2, timeout=wait)

    def slow(*arguments: object) -> None:
        time.sleep(3)
        if arguments[0].weight == "nonsense":
            raise ValueError("no such weight")
        build_index(*arguments)

    said: list[str] = []
    index_ready.build_index = slow
    for weight in ("1", "nonsense"):
        what = IndexOf(root=str(root), split="train", weight=weight)
        try:
            index = ready_index(what, root / "index/train", rank=rank, say=said.append, heartbeat_s=0.3)
            queue.put((rank, len(index), said))
        except ValueError as error:
            queue.put((rank, str(error), said))


def test_ranks_wait_for_an_index_longer_than_their_time_out_and_hear_of_its_errors(root: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    url = f"file://{tmp_path}/meeting"
    ranks = [context.Process(target=wait_for_index, args=(rank, root, url, queue)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    told = sorted((queue.get(timeout=60) for _ in range(4)), key=lambda one: (one[0], str(one[1])))
    for process in ranks:
        process.join()
    assert [(rank, what) for rank, what, _ in told] == [(0, 16), (0, "no such weight"), (1, 16), (1, "no such weight")]
    assert told[0][2][0] == f"index: building {root}/index/train"


def test_a_tar_of_the_same_size_with_other_captions_makes_the_index_stale(root: Path) -> None:
    shutil.rmtree(root / "tables")
    what = IndexOf(root=str(root), split="train")
    built(root)
    assert is_current(what, root / "index/train")
    tar = next((root / "shards/train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes())
    assert not is_current(what, root / "index/train")


def test_only_the_score_may_be_null(root: Path) -> None:
    path = next((root / "tables/shards").glob("train*.parquet"))
    rows = pq.read_table(path)
    at = rows.column_names.index("crop_left_px")
    pq.write_table(rows.set_column(at, "crop_left_px", pa.nulls(rows.num_rows, pa.int32())), path)
    with pytest.raises(ValueError, match=r"shards/train/.*: crop_left_px is null in \d+ rows"):
        built(root)


def test_the_check_takes_every_layout_that_the_index_takes(tmp_path: Path, capsys) -> None:
    (tmp_path / "shards/train").mkdir(parents=True)
    with tarfile.open(tmp_path / "shards/train/a.tar", "w") as tar:
        for name in ("./k0000.png", "./photo.1.png", "./photo.1.txt", "./photo.2.png", "./notes.md"):
            data = b"words" if name.endswith(("txt", "md")) else encoded(picture(len(name)), "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert main(["--root", str(tmp_path), "--resolution_px", "64"]) == 0
    assert check(["--root", str(tmp_path), "--check"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 3


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("original_height_px", "tall", "a whole number of pixels, 1 or more"),
        ("original_width_px", 0, "a whole number of pixels, 1 or more"),
        ("bucket_width_px", 64.5, "a whole number of pixels, 1 or more"),
        ("crop_left_px", -1, "a whole number of pixels, 0 or more"),
        ("crop_top_px", 2**31, "a whole number of pixels, 0 or more"),
        ("caption", ["a", "b"], "a text"),
        ("source", 5, "a text"),
        ("aesthetic", "high", "a number, or null"),
        ("aesthetic", float("inf"), "a number, or null"),
        ("aesthetic", True, "a number, or null"),
    ],
)
def test_what_a_tars_json_says_wrongly_is_one_line(field: str, value: object, told: str, tmp_path: Path) -> None:
    picture_of_tar(tmp_path / "root", {"original_height_px": 80, "aesthetic": 4} | {field: value})
    with pytest.raises(ValueError) as refused:
        built(tmp_path / "root")
    assert str(refused.value) == (
        f"shards/train/a.tar: k.json: {field} = {value!r}: must be {told}; mend or remove the sample"
    )


def test_what_a_tars_json_says_of_no_interest_is_left_alone(tmp_path: Path) -> None:
    said = {"original_height_px": 80, "aesthetic": float("nan"), "caption": None, "offset": "x", "width": [1], "uid": 3}
    picture_of_tar(tmp_path / "root", said)
    sample = built(tmp_path / "root").sample(0)
    assert (sample.original_hw, sample.caption) == ((80, 48), "") and np.isnan(sample.aesthetic)


def picture_of_tar(root: Path, said: dict[str, object]) -> None:
    """A root whose one tar has one picture of 48 x 48 and its JSON."""
    path = root / "shards/train/a.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for name, data in (("k.jpg", encoded(picture(1, 48, 48))), ("k.json", json.dumps(said).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
