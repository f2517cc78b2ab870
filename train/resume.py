"""Which checkpoint a run continues from, and what it must share with it: all that decides which numbers come next."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from curate.bad_input import BadInput
from train.checkpoint.files import State, folder_of, read_state
from train.checkpoint.newest import checkpoints_in, find, restore
from train.config import TrainConfig
from train.ema import Ema
from train.engine import Engine, World

KEPT = (
    "model",
    "unet",
    "text_towers",
    "source",
    "precision",
    "seed",
    "objective",
    "batch.global_batch",
    "augment",
    "order",
    "ema_decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.epsilon",
)
"""Settings that stay as they are. Steps, learning rate, ranks, micro-batch and reading may change."""


def continue_run(
    config: TrainConfig, resume: str, engine: Engine, ema: Ema, data_digest: str, say: Callable[[str], None]
) -> int:
    """Restore what `resume` asks for (auto, none or a checkpoint) and return the steps done, 0 for a new run.

    Raises BadInput where the checkpoint belongs to another run.
    """
    found = agree_on_checkpoint(config.checkpoints_folder, resume, engine.world)
    if found is None:
        return 0
    check_same_run(found, read_state(found), config, data_digest)
    step = restore(found, engine, ema).step
    say(f"continuing after step {step} from {found}")
    return step


def agree_on_checkpoint(folder: str, resume: str, world: World) -> str | None:
    """Let rank 0 verify and choose, and return its choice, or raise its BadInput, on all ranks."""
    chosen: list[Any] = [None, None]
    if world.rank == 0:
        try:
            chosen[0] = _choose(folder, resume)
        except BadInput as error:
            chosen[1] = str(error)
    dist.broadcast_object_list(chosen, src=0)
    if chosen[1] is not None:
        raise BadInput(chosen[1])
    return chosen[0]


def _choose(folder: str, resume: str) -> str | None:
    """Return what to continue from; raises BadInput where `auto` would later continue from something else."""
    there = checkpoints_in(folder)
    if resume == "none" and there:
        raise BadInput(f"--resume none: {folder} holds checkpoints; move them away, or set train.<model>.out")
    found = find(folder, resume)
    if found is not None and resume != "auto":
        step = read_state(found).step
        newer = [path for path in there if Path(path).name > folder_of(step)]
        if newer:
            fix = "move them away, or --resume auto would go on from them"
            raise BadInput(f"--resume {resume}: {', '.join(newer)} are of later steps; {fix}")
    return found


def state_of(config: TrainConfig, step: int, engine: Engine, ema: Ema, data_digest: str) -> State:
    """Return the numbers that a checkpoint after this step has beside the vectors."""
    moments = engine.moments
    return State(
        step=step,
        seed=config.seed,
        ema_updates=ema.num_updates,
        num_elements=sum(parameter.numel() for parameter in engine.unet.parameters()),
        adam_step=float(moments["step"]) if moments else 0.0,
        config=asdict(config),
        data_digest=data_digest,
    )


def check_same_run(path: str | Path, state: State, config: TrainConfig, data_digest: str) -> None:
    """Raise ValueError naming what differs between a checkpoint and the settings, or the data, of now."""
    now = json.loads(json.dumps(asdict(config)))
    before = json.loads(json.dumps(state.config))
    differing = [
        f"{key} = {_at(now, key)!r}, but the checkpoint has {_at(before, key)!r}"
        for key in KEPT
        if _at(now, key) != _at(before, key)
    ]
    for what, was, is_now in zip(
        ("set of samples", "autoencoder"), state.data_digest.split("-"), data_digest.split("-"), strict=True
    ):
        if was != is_now:
            differing.append(f"another {what} than that of the checkpoint ({is_now}, was {was})")
    if differing:
        fix = "set it back, or start a new run in another folder (out)"
        raise BadInput(f"{path}: cannot continue: {'; '.join(differing)}; {fix}")


def _at(settings: dict[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part)
    return value
