"""A loss that is not finite on one of two ranks: skipped, or rolled back to a checkpoint and left out."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.synthetic_root import Tiny
from train.checkpoint.files import read_range, read_state
from train.engine import World
from train.non_finite import Recovery, RollBack, read_roll_backs, write_roll_backs
from train.recipes import base
from train.watch import WatchConfig

REPOSITORY = Path(__file__).parents[2]


def run(config: Path, bad_batches: str) -> subprocess.CompletedProcess[str]:
    words = repr(["--config", str(config)])
    code = (
        f"from train.launch import run_ranks as r; raise SystemExit(r('tests.train.rank_with_a_bad_batch', {words}, 2))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"BAD_BATCHES": bad_batches},
        capture_output=True,
        text=True,
    )


def state(out: Path, step: int) -> dict[str, torch.Tensor]:
    path = out / f"checkpoints/step-{step:08d}"
    size = read_state(path).num_elements
    return {name: read_range(path, name, 0, size) for name in ("master", "exp_avg", "exp_avg_sq", "ema")}


def test_a_roll_back_repeats_the_steps_without_the_batch_and_ends_where_a_skip_does(tiny: Tiny, tmp_path: Path) -> None:
    """Steps are deterministic: leaving the batch out from the checkpoint on must equal skipping it, bit for bit."""
    changes = {"checkpoint_every_steps": 2, "validation_samples": 2, "self_test": False}
    skipped = run(tiny.variant(tmp_path / "skip", watch={"on_non_finite": "skip"}, **changes), "3")
    assert skipped.returncode == 0, skipped.stderr[-2000:]
    config = tiny.variant(tmp_path / "back", watch={"on_non_finite": "roll_back", "max_roll_backs": 1}, **changes)
    done = run(config, "3")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("rolled back to step 2, and leaving out 1 batches, after step 4: loss nan") == 1
    out = tmp_path / "back/out"
    (roll_back,) = read_roll_backs(out)
    assert (roll_back.batch, roll_back.to_step, roll_back.left_out) == (3, 2, (3,))
    assert len(roll_back.uids) == 4 and all(uid in skipped.stdout for uid in roll_back.uids)  # of both ranks
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 3, 5, 6]
    mine, theirs = state(out, 6), state(tmp_path / "skip/out", 6)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    # a continued run knows the hole, and that no roll back is left
    tiny.variant(tmp_path / "back", watch={"on_non_finite": "roll_back", "max_roll_backs": 1}, steps=9, **changes)
    again = run(config, "3,7")
    assert again.returncode != 0
    assert "step 8: loss nan" in again.stderr and "all 1 roll backs (watch.max_roll_backs) are used up" in again.stderr
    assert again.stderr.count("train.non_finite.NonFinite") == 2  # on both ranks alike


@pytest.fixture
def recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recovery:
    """A run of 10 steps that left out batches 3, 8 and 9."""
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects, src: None)
    left_out = (
        RollBack(batch=3, to_step=2, left_out=(3,), uids=("a",)),
        RollBack(batch=9, to_step=4, left_out=(8, 9), uids=("b",)),
    )
    write_roll_backs(tmp_path, list(left_out))
    assert tuple(read_roll_backs(tmp_path)) == left_out
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    watch = WatchConfig(on_non_finite="roll_back")
    config = dataclasses.replace(base(), steps=10, watch=watch, out=str(tmp_path))
    return Recovery(config, tmp_path, World(rank=0, size=1, device=torch.device("cpu")), 4)


def test_holes_are_stepped_over_and_the_run_ends_before_the_last_ones(recovery: Recovery) -> None:
    assert recovery.left_out == {3, 8, 9}
    assert [recovery.next_batch(step) for step in (2, 3, 4, 8)] == [2, 4, 4, 10]
    assert recovery.end == 8


def test_a_new_run_knows_no_holes_of_the_one_before_it(
    recovery: Recovery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints/step-00000004").rename(tmp_path / "step-00000004")
    continued = Recovery(recovery._config, tmp_path, recovery._world, 4)  # from a checkpoint of another place
    assert continued.left_out == {3, 8, 9}
    new = Recovery(recovery._config, tmp_path, recovery._world, 0)
    assert new.left_out == set()
    assert "roll_backs.jsonl, of an earlier run, is now roll_backs.jsonl.before" in capsys.readouterr().out
    assert (tmp_path / "roll_backs.jsonl.before").exists() and not (tmp_path / "roll_backs.jsonl").exists()
