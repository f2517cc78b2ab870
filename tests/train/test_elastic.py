"""Resuming with real ranks: bit for bit after SIGKILL, the same samples and losses on another number of ranks."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.synthetic_root import Tiny
from train.checkpoint.files import VECTORS, read_range, read_state
from train.checkpoint.newest import find

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
    in_step = random.randint(2, 5)
    writing = random.choice([step for step in (2, 4, 6) if step >= in_step])
    ranks = random.choices((0, 1), k=2)
    print(f"rank {ranks[0]} kills all in step {in_step}, then rank {ranks[1]} while it writes checkpoint {writing}")
    config = variant(tiny, killed)
    said = run(
        tmp_path,
        launch(variant(tiny, whole), 2),
        launch(config, 2, kill={"rank": ranks[0], "in_step": in_step}),
        launch(config, 2, kill={"rank": ranks[1], "in_checkpoint": writing}),
        launch(config, 2),
    )
    told = f"removed the parts of a checkpoint that was never finished: {killed}/out/checkpoints/step-{writing:08d}"
    assert told in said
    assert losses(killed / "out") == losses(whole / "out")
    assert order(killed / "out")[STEPS - 1] == order(whole / "out")[STEPS - 1]
    mine, theirs = (f"{folder}/out/checkpoints/step-{STEPS:08d}" for folder in (killed, whole))
    assert [find(Path(path).parent, "auto") for path in (mine, theirs)] == [mine, theirs]
    state = read_state(theirs)
    assert dataclasses.replace(read_state(mine), config=state.config) == state
    for name in VECTORS:
        vectors = [read_range(path, name, 0, state.num_elements) for path in (mine, theirs)]
        assert torch.equal(*vectors) and vectors[0].abs().sum() > 0, name


CHANGES = [(8, 4, "fp32"), (4, 8, "fp32"), (8, 4, "bf16")]
"""Ranks that write a checkpoint after step 2, ranks that continue it, and the precision."""
TOLERANCE = {"fp32": 2e-6, "bf16": 2**-8}
"""Relative: sums in another order, and the last bit of bf16's eight."""


@pytest.fixture(scope="module")
def changed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run for each change, and the one that goes on without it."""
    folder = tmp_path_factory.mktemp("changed")
    plan = []
    for before, now, precision in CHANGES:
        old, new = (folder / f"{before}-{now}-{precision}" / name for name in ("old", "new"))
        configs = [variant(tiny, place, precision=precision, steps=4) for place in (old, new)]
        at_two = [f"{place}/out/checkpoints/step-00000002" for place in (old, new)]
        batch = max(before, now)
        plan += [launch(configs[0], before, batch), launch(configs[1], now, batch, copy=at_two)]
    assert run(folder, *plan).count("continuing after step 2 from") == len(CHANGES)
    return folder


@pytest.mark.parametrize(("before", "now", "precision"), CHANGES)
def test_other_numbers_of_ranks_see_the_same_samples_and_losses(
    before: int, now: int, precision: str, changed: Path
) -> None:
    old, new = (changed / f"{before}-{now}-{precision}" / name / "out" for name in ("old", "new"))
    for out, ranks in ((old, before), (new, now)):
        assert len(list((out / "checkpoints/step-00000004").glob("part-*"))) == ranks
    found, expected = losses(new), losses(old)
    print(f"{precision}, {before} ranks and then {now}: losses {found}, without the change {expected}")
    assert list(found) == [3, 4]  # the second one comes after a step of the other number of ranks
    for step, loss in found.items():
        assert math.isclose(loss, expected[step], rel_tol=TOLERANCE[precision])
        assert order(new)[step - 1] == order(old)[step - 1] and len(order(new)[step - 1]) == max(before, now)
