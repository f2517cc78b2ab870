"""What stands for an engine and its averaged weights in tests of checkpoints: known vectors, cut in parts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from train.checkpoint.files import VECTORS, State
from train.checkpoint.writer import Writer
from train.ema import Ema
from train.engine import World

NUM_ELEMENTS = 1003


def whole(name: str, step: int = 0, num_elements: int = NUM_ELEMENTS) -> torch.Tensor:
    """The flat vector of this name at this step: other numbers for each name, step and place."""
    generator = torch.Generator().manual_seed(1000 * step + VECTORS.index(name))
    return torch.randn(num_elements, generator=generator)


def part(vector: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """The rank's equal part, with zeros behind the last one, as ZeRO pads."""
    length = -(-len(vector) // size)
    piece = torch.zeros(length)
    stretch = vector[rank * length : (rank + 1) * length]
    piece[: len(stretch)] = stretch
    return piece


@dataclass
class Vectors:
    """The attributes and methods of an engine that checkpoints ask for, without DeepSpeed."""

    world: World
    master: torch.Tensor
    moments: dict[str, torch.Tensor]
    unet: nn.Module

    def restore(self, master: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
        self.master.copy_(master)
        self.moments = moments


def state_at(step: int, rank: int = 0, size: int = 1) -> tuple[Vectors, Ema]:
    """An engine and its averaged weights at a step."""
    parts = {name: part(whole(name, step), rank, size) for name in VECTORS}
    world = World(rank=rank, size=size, device=torch.device("cpu"))
    moments = {"exp_avg": parts["exp_avg"], "exp_avg_sq": parts["exp_avg_sq"], "step": torch.tensor(float(step))}
    unet = nn.ParameterList([nn.Parameter(torch.zeros(NUM_ELEMENTS))])
    ema = Ema(parts["ema"], 0.99)
    ema.num_updates = step
    return Vectors(world, parts["master"], moments, unet), ema


def numbers(step: int) -> State:
    return State(
        step=step, seed=7, ema_updates=step, num_elements=NUM_ELEMENTS, adam_step=float(step), config={"a": [1, 2.5]}
    )


def saved(folder: str | Path, step: int, keep: int = 9) -> str:
    """Write a checkpoint with this process alone, and return where it is published."""
    engine, ema = state_at(step)
    writer = Writer(folder, engine.world, keep)
    where = writer.save(engine, ema, numbers(step))  # type: ignore[arg-type]
    writer.finish()
    return where


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'group'}", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
