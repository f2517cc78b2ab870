"""Checkpoints: the flat fp32 state in one file for each rank, published atomically, verified when read.

A checkpoint is `step-00000120/` with `part-00000-of-00002.safetensors` (weights, both moments and EMA of
the rank's part of the flat vector), `state.json` and, written last, `manifest.json` with every file's
size and sha256. The parts of all ranks in a row are the whole vector, so any world size can read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from curate.bad_input import BadInput
from train.ema import Ema
from train.engine import Engine, World

POINTER, MANIFEST, STATE = "latest", "manifest.json", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class BrokenCheckpoint(BadInput):
    """A checkpoint lacks files or their contents differ from the manifest."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The few numbers beside the vectors; seed and step are all of the random state and of the data position."""

    step: int
    """Optimiser steps done, and the next global batch."""
    seed: int
    """Seed of the run."""
    ema_updates: int
    """Updates of the averaged weights."""
    num_elements: int
    """Parameters, without the padding."""
    adam_step: float
    """AdamW's own counter, without skipped steps."""
    config: dict[str, Any]
    """Settings of the run."""
    data_digest: str = "-"
    """Identity of the train index, whose samples the steps are counted over, and of the autoencoder."""


def save(folder: Path, engine: Engine, ema: Ema, state: State, keep: int) -> Path:
    """Write a checkpoint with all ranks, publish it, and drop the oldest beyond `keep`."""
    world = engine.world
    final = folder / f"step-{state.step:08d}"
    if _agree(world, world.rank == 0 and _is_whole(final)):
        return final  # this very step was published before
    draft = folder / f".{final.name}.partial"
    if world.rank == 0:
        for left_over in (draft, final):  # a killed attempt, a broken checkpoint
            shutil.rmtree(left_over, ignore_errors=True)
        draft.mkdir(parents=True)
    dist.barrier()
    name = f"part-{world.rank:05d}-of-{world.size:05d}.safetensors"
    save_file(_vectors(engine, ema), draft / name)
    entries: list[Any] = [None] * world.size
    dist.all_gather_object(entries, (name, _describe(draft / name)))
    if world.rank == 0:
        _publish(folder, draft, final, state, dict(entries))
        _prune(folder, keep)
    dist.barrier()
    return final


def find(folder: Path, resume: str) -> Path | None:
    """Return the checkpoint to continue from: the newest whole one (auto), none, or the named one.

    Raises BrokenCheckpoint where the named one is not whole.
    """
    if resume == "none":
        return None
    if resume != "auto":
        verify(Path(resume))
        return Path(resume)
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify(candidate)
        except BrokenCheckpoint as error:
            print(f"passing over a broken checkpoint: {error}")
            continue
        return candidate
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except BrokenCheckpoint:
        return False
    return True


def verify(checkpoint: Path) -> None:
    """Raise BrokenCheckpoint where a file is missing or is not what the manifest says."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        wrong = [name for name, entry in files.items() if _describe(checkpoint / name) != entry]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise BrokenCheckpoint(f"{checkpoint}: {error}") from error
    if wrong:
        raise BrokenCheckpoint(f"{checkpoint}: {', '.join(wrong)} differ from the manifest")


def read_state(checkpoint: Path) -> State:
    """Return the numbers of a checkpoint."""
    return State(**json.loads((checkpoint / STATE).read_text()))


def restore(checkpoint: Path, engine: Engine, ema: Ema) -> State:
    """Put every rank's part back, at this or another world size.

    Raises ValueError where the checkpoint belongs to another network.
    """
    state = read_state(checkpoint)
    num_elements = sum(parameter.numel() for parameter in engine.unet.parameters())
    if state.num_elements != num_elements:
        raise BadInput(f"{checkpoint}: {state.num_elements} parameters, but unet has {num_elements}")
    size = engine.master.numel()
    start = engine.world.rank * size
    vectors = {name: read_range(checkpoint, name, start, size) for name in ("master", *MOMENTS, "ema")}
    moments = {name: vectors[name] for name in MOMENTS} | {"step": torch.tensor(state.adam_step)}
    engine.restore(vectors["master"], moments)
    ema.restore(vectors["ema"], state.ema_updates)
    return state


def read_range(checkpoint: Path, name: str, start: int, size: int) -> torch.Tensor:
    """Return `size` elements of a flat vector from `start` on; beyond the end lies padding of zeros."""
    out = torch.zeros(size)
    offset = 0
    for path in sorted(checkpoint.glob("part-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            part = file.get_slice(name)
            (length,) = part.get_shape()
            low, high = max(start, offset), min(start + size, offset + length)
            if low < high:
                out[low - start : high - start] = part[low - offset : high - offset]
        offset += length
    return out


def _vectors(engine: Engine, ema: Ema) -> dict[str, torch.Tensor]:
    moments = engine.moments
    vectors = {"master": engine.master, "ema": ema.part}
    for name in MOMENTS:
        vectors[name] = moments[name] if moments else torch.zeros_like(engine.master)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in vectors.items()}


def _publish(folder: Path, draft: Path, final: Path, state: State, files: dict[str, Any]) -> None:
    (draft / STATE).write_text(json.dumps(vars(state), indent=1))
    files = files | {STATE: _describe(draft / STATE)}
    (draft / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    for path in (draft / MANIFEST, draft):
        _fsync(path)
    os.rename(draft, final)
    pointer = folder / f".{POINTER}.partial"
    pointer.write_text(final.name)
    _fsync(pointer)
    os.replace(pointer, folder / POINTER)
    _fsync(folder)


def _prune(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def _describe(path: Path) -> dict[str, Any]:
    """Return size and sha256 of a file that has reached the disk."""
    _fsync(path)
    with path.open("rb") as file:
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _agree(world: World, first_rank_says: bool) -> bool:
    """Return rank 0's answer on every rank."""
    answer = torch.tensor([int(first_rank_says)], device=world.device)
    dist.broadcast(answer, src=0)
    return bool(answer.item())
