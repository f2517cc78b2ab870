"""Checkpoints: save the state of all ranks, find the newest whole one, and put it back at any world size.

`checkpoint_files` says what a checkpoint holds, `checkpoint_writer` how it is written beside the steps and
published, `checkpoint_store` where it may lie.
"""

from __future__ import annotations

import os

import torch

from curate.bad_input import BadInput
from train.checkpoint_files import (
    MOMENTS,
    VECTORS,
    BrokenCheckpoint,
    State,
    folder_of,
    read_range,
    read_state,
    verify,
)
from train.checkpoint_store import open_store
from train.checkpoint_writer import CheckpointFailed, Writer
from train.ema import Ema
from train.engine import Engine

__all__ = [
    "BrokenCheckpoint",
    "CheckpointFailed",
    "State",
    "Writer",
    "checkpoints_in",
    "find",
    "folder_of",
    "read_range",
    "read_state",
    "restore",
    "save",
    "verify",
]


def save(folder: str | os.PathLike[str], engine: Engine, ema: Ema, state: State, keep: int) -> str:
    """Write a checkpoint with all ranks, wait until it is published, and return where it is.

    A `Writer` does the same while the steps go on.
    """
    writer = Writer(folder, engine.world, keep)
    where = writer.save(engine, ema, state)
    writer.finish()
    return where


def find(folder: str | os.PathLike[str], resume: str) -> str | None:
    """Return the checkpoint to continue from: the newest whole one (auto), none, or the named one.

    A checkpoint that is still being written is none: call `Writer.finish` on all ranks first. Raises
    BrokenCheckpoint where the named one is not whole.
    """
    if resume == "none":
        return None
    if resume != "auto":
        verify(resume)
        return resume
    for candidate in reversed(checkpoints_in(folder)):
        try:
            verify(candidate)
        except BrokenCheckpoint as error:
            print(f"passing over a broken checkpoint: {error}", flush=True)
            continue
        return candidate
    return None


def checkpoints_in(folder: str | os.PathLike[str]) -> list[str]:
    """Return the checkpoints of a folder by their step, whole or not."""
    return [f"{os.fspath(folder)}/{name}" for name in open_store(folder).names() if name.startswith("step-")]


def restore(checkpoint: str | os.PathLike[str], engine: Engine, ema: Ema) -> State:
    """Put every rank's part back, at this or another world size.

    Raises BadInput where the checkpoint belongs to another network.
    """
    state = read_state(checkpoint)
    num_elements = sum(parameter.numel() for parameter in engine.unet.parameters())
    if state.num_elements != num_elements:
        raise BadInput(f"{checkpoint}: {state.num_elements} parameters, but unet has {num_elements}")
    size = engine.master.numel()
    start = engine.world.rank * size
    vectors = {name: read_range(checkpoint, name, start, size) for name in VECTORS}
    moments = {name: vectors[name] for name in MOMENTS} | {"step": torch.tensor(state.adam_step)}
    engine.restore(vectors["master"], moments)
    ema.restore(vectors["ema"], state.ema_updates)
    return state
