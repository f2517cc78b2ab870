"""Resuming with real ranks: bit for bit after SIGKILL, the same samples and losses on another number of ranks."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.synthetic_root import Tiny
from train.checkpoint import checkpoints_in, find, read_range, read_state
from train.checkpoint_files import MANIFEST, VECTORS

REPOSITORY = Path(__file__).parents[2]
STEPS = 6


def variant(tiny: Tiny, folder: Path, **changes: Any) -> str:
    fast = {"steps": STEPS, "checkpoint_every_steps": 2, "keep_checkpoints": 9, "validation_samples": 2}
    return str(tiny.variant(folder, **(fast | changes)))


def launch(config: str, ranks: int, global_batch: int = 4, **more: Any) -> dict[str, Any]:
    words = ["--batch.global_batch", str(global_batch), "--batch.micro_batch", str(global_batch // ranks)]
    return {"config": config, "ranks": ranks, "words": words} | more


def run(folder: Path, *plan: dict[str, Any]) -> str:
    """Run the launches one after the other in one process that forks their ranks, and return what they printed."""
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    command = [sys.executable, "-m", "tests.train.forked_ranks", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def losses(out: Path) -> dict[int, float]:
    """The loss of each step, the last time that it was done."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def order(out: Path) -> dict[int, list[str]]:
    """The samples of each step, over all ranks and passes, the last time that it was done."""
    steps: dict[int, list[str]] = defaultdict(list)
    for file in out.glob("order-*.jsonl"):
        mine: dict[int, list[str]] = {}
        for line in map(json.loads, file.read_text().splitlines()):
            mine[line["step"]] = line["uids"]
        for step, uids in mine.items():
            steps[step] += uids
    return {step: sorted(uids) for step, uids in steps.items()}


def test_sigkill_in_a_step_and_in_a_checkpoint_leaves_no_trace(tiny: Tiny, tmp_path: Path) -> None:
    """Two ranks; all of them are killed at a random step, and again while a part is being written."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first, writing = random.randint(2, 5), random.choice((4, 6))
    print(f"killed in step {first}, then while checkpoint {writing} was written")
    config = variant(tiny, killed)
    plan = [launch(variant(tiny, whole), 2), launch(config, 2, kill={"rank": random.randint(0, 1), "in_step": first})]
    done = 2 * ((first - 1) // 2)  # steps of the newest checkpoint, at most: the kill may have come before its manifest
    if writing > done:
        plan.append(launch(config, 2, kill={"rank": random.randint(0, 1), "in_checkpoint": writing}))
    said = run(tmp_path, *plan)
    assert not (killed / f"out/checkpoints/step-{writing:08d}" / MANIFEST).exists()
    said += run(tmp_path, launch(config, 2))
    if writing > done:
        assert "no manifest.json: it was never finished" in said or "continuing after step" in said
    assert losses(killed / "out") == losses(whole / "out")
    assert order(killed / "out")[STEPS - 1] == order(whole / "out")[STEPS - 1]
    last = [find(out / "out/checkpoints", "auto") for out in (killed, whole)]
    states = [read_state(str(checkpoint)) for checkpoint in last]
    assert states[0].step == STEPS and states[0].ema_updates == states[1].ema_updates
    for name in VECTORS:
        mine, theirs = (read_range(str(checkpoint), name, 0, states[0].num_elements) for checkpoint in last)
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    ("before", "now", "precision", "tolerance"),
    [(2, 4, "fp32", 2e-5), (4, 2, "fp32", 2e-5), (2, 4, "bf16", 2**-7), (4, 2, "bf16", 2**-7)],
)
def test_another_number_of_ranks_sees_the_same_samples_and_losses(
    before: int, now: int, precision: str, tolerance: float, tiny: Tiny, tmp_path: Path
) -> None:
    compare(tiny, tmp_path, before, now, precision, tolerance, global_batch=4)


@pytest.mark.parametrize(("before", "now"), [(8, 4), (4, 8)])
def test_eight_ranks_and_four_continue_each_other(before: int, now: int, tiny: Tiny, tmp_path: Path) -> None:
    compare(tiny, tmp_path, before, now, "fp32", 2e-5, global_batch=8)


def compare(
    tiny: Tiny, folder: Path, before: int, now: int, precision: str, tolerance: float, global_batch: int
) -> None:
    """Continue on `now` ranks what `before` ranks wrote after two steps, and hold it against these ranks going on."""
    old, new = folder / "old", folder / "new"
    written = variant(tiny, old, precision=precision, steps=4)
    continued = variant(tiny, new, precision=precision, steps=4)
    run(folder, launch(written, before, global_batch))
    (new / "out").mkdir()
    shutil.copytree(old / "out/checkpoints/step-00000002", new / "out/checkpoints/step-00000002")
    said = run(folder, launch(continued, now, global_batch))
    assert "continuing after step 2 from" in said
    assert len(list(Path(checkpoints_in(new / "out/checkpoints")[-1]).glob("part-*"))) == now
    theirs, mine = losses(old / "out"), losses(new / "out")
    assert list(mine) == [3, 4]
    for step, loss in mine.items():
        assert math.isclose(loss, theirs[step], rel_tol=tolerance), (step, loss, theirs[step])
    assert order(new / "out") == {step: order(old / "out")[step] for step in (2, 3)}
