"""Grids: the same prompts and noise, drawn by all ranks together while the network learns."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image

from train.config_evaluation import DrawConfig
from train.engine import World
from train.evaluate.cases import Case
from train.evaluate.denoise import Painter
from train.sample import grid

GRIDS = "grids"
"""Folder of a run's grids: step-<number>.png, and prompts.json."""


def draw_grid(painter: Painter, cases: Sequence[Case], how: DrawConfig, world: World) -> Image.Image | None:
    """Return the grid on rank 0 and None elsewhere; each rank draws its share."""
    mine: list[tuple[int, np.ndarray]] = []
    for some, pixels_BHW3 in painter.pictures(cases[world.rank :: world.size], how):
        mine.extend((case.number, picture) for case, picture in zip(some, pixels_BHW3, strict=True))
    gathered: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(world.size)]
    dist.all_gather_object(gathered, mine)
    if world.rank:
        return None
    by_number = dict(pair for part in gathered for pair in part)
    return grid([Image.fromarray(by_number[case.number]) for case in cases], [case.caption for case in cases])


def save_grid(image: Image.Image, cases: Sequence[Case], how: DrawConfig, folder: Path, step: int) -> Path:
    """Write `grids/step-<number>.png`, and in prompts.json what all grids of the run show."""
    (folder / GRIDS).mkdir(parents=True, exist_ok=True)
    path = folder / GRIDS / f"step-{step:08d}.png"
    draft = path.with_name(f".{path.name}.partial")
    image.save(draft, format="PNG")
    os.replace(draft, path)
    told = [{"prompt": case.caption, "seed": how.seed + case.number, "bucket_hw": case.bucket_hw} for case in cases]
    (folder / GRIDS / "prompts.json").write_text(json.dumps(told, indent=1))
    return path
