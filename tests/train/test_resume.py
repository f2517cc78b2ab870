"""A checkpoint is continued by the run that wrote it, or refused by name; none is lost sight of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.train.saving import one_rank, saved, state_at
from train.checkpoint.files import State
from train.config import LoaderConfig, OrderConfig, TrainConfig
from train.recipes import base
from train.resume import agree_on_checkpoint, check_same_run


def state(config: TrainConfig, data: str = "one-vae") -> State:
    return State(
        step=3,
        seed=config.seed,
        ema_updates=3,
        num_elements=1,
        adam_step=3.0,
        config=dataclasses.asdict(config),
        data_digest=data,
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed = 1, but the checkpoint has 0"),
        ({"batch": dataclasses.replace(base().batch, global_batch=64)}, "batch.global_batch = 64, but .* 2048"),
        ({"objective": dataclasses.replace(base().objective, prediction="v")}, "objective = .*'v'"),
        ({"order": OrderConfig(mixing={"web": 1.0})}, "order = "),
        ({"source": "images"}, "source = 'images'"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(changes: dict, told: str) -> None:
    config = base()
    with pytest.raises(ValueError, match=f"cannot continue: {told}.*start a new run in another folder"):
        check_same_run(Path("step-3"), state(config), dataclasses.replace(config, **changes), "one-vae")


def test_other_data_is_refused_and_another_cluster_is_not() -> None:
    config = base()
    with pytest.raises(ValueError, match=r"another set of samples than that of the checkpoint \(two, was one\)"):
        check_same_run(Path("step-3"), state(config), config, "two-vae")
    with pytest.raises(ValueError, match=r"another autoencoder than that of the checkpoint \(other, was vae\)"):
        check_same_run(Path("step-3"), state(config), config, "one-other")
    elsewhere = dataclasses.replace(
        config,
        batch=dataclasses.replace(config.batch, micro_batch=2, grad_accumulation=4),
        loader=LoaderConfig(workers=1),
        steps=7,
        ranks=3,
    )
    check_same_run(Path("step-3"), state(config), elsewhere, "one-vae")


def test_what_auto_would_later_go_on_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    with one_rank():
        world = state_at(0)[0].world
        assert agree_on_checkpoint(folder, "auto", world) is None
        assert agree_on_checkpoint(folder, "none", world) is None
        old, new = (saved(folder, step) for step in (2, 4))
        assert agree_on_checkpoint(folder, "auto", world) == agree_on_checkpoint(folder, new, world) == new
        with pytest.raises(ValueError, match="--resume none: .* holds checkpoints; move them away"):
            agree_on_checkpoint(folder, "none", world)
        with pytest.raises(ValueError, match="--resume .*step-00000002: .*step-00000004 are of later steps; move them"):
            agree_on_checkpoint(folder, old, world)
        assert agree_on_checkpoint(f"{folder}/elsewhere", old, world) == old  # another run's, to begin with
        Path(new, "manifest.json").unlink()
        assert agree_on_checkpoint(folder, "auto", world) == old
        assert f"{new}: no manifest.json" in capsys.readouterr().out
