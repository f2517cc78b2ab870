"""The averaged weights, kept in fp32 beside each rank's own part of the fp32 masters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.engine import Engine


class Ema:
    """ema += (1 - decay) (weights - ema), with decay = min(limit, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, master: torch.Tensor, decay_limit: float) -> None:
        self.part = master.detach().float().clone()
        self.num_updates = 0
        self._decay_limit = decay_limit

    @torch.no_grad()
    def update(self, master: torch.Tensor) -> None:
        """Move towards this rank's current masters."""
        self.num_updates += 1
        self.part.lerp_(master.detach(), 1.0 - decay_after(self.num_updates, self._decay_limit))

    @torch.no_grad()
    def restore(self, part: torch.Tensor, num_updates: int) -> None:
        """Continue from a checkpoint."""
        self.part.copy_(part)
        self.num_updates = num_updates


def decay_after(num_updates: int, decay_limit: float) -> float:
    """Return the decay of an update, warmed up so that early averages forget the first weights."""
    return min(decay_limit, (1 + num_updates) / (10 + num_updates))


def export_ema(config: TrainConfig, engine: Engine, ema: Ema, folder: Path) -> None:
    """Write the averaged weights as a diffusers U-Net folder; rank 0 gathers and writes, the others send."""
    from train.export.exported import draft_of, publish
    from train.model import build_unet, load_flat

    flat = engine.gather_on_first_rank(ema.part)
    if flat is None:
        return
    unet = build_unet(config)
    load_flat(unet, flat)
    draft = draft_of(folder)
    unet.save_pretrained(draft)
    publish(draft, folder)
