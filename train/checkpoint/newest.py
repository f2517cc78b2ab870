"""The newest whole checkpoint: found, and put back at any world size."""

from __future__ import annotations

import os

import torch

from curate.bad_input import BadInput
from train.checkpoint.files import MOMENTS, VECTORS, BrokenCheckpoint, State, read_range, read_state, verify
from train.checkpoint.store import open_store
from train.ema import Ema
from train.engine import Engine


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
