"""The fixed-noise validation loss, whole and by timestep: the same samples, noise and timesteps every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist

from train.config import ObjectiveConfig, TrainConfig
from train.data.loader import Batch, collate
from train.data.samples import Part, Source, read_pick
from train.diffusion import Draws, draw, timestep_at
from train.engine import World
from train.index.reader import Index

_VALIDATION = 21
BINS = 8
"""Stretches of the timesteps whose losses are told apart."""
BY_TIMESTEP = "val_loss_by_timestep"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A few draws of one bucket."""

    batch: Batch
    """Their samples."""
    draws: Draws
    """Noise and stratified timesteps."""


class Validation:
    """This rank's share of the draws, read once and kept."""

    def __init__(self, config: TrainConfig, index: Index, source: Source, *, world: World, factor: int) -> None:
        still = unchanged(config)
        self._config = config
        self._factor = factor
        self._chunks = [
            self._chunk(numbers, [read_pick(still, index, source, row, 0)[0] for row in rows])
            for numbers, rows in _chunks(config, index)[world.rank :: world.size]
        ]

    def losses(self, losses_of: Callable[[Batch, Draws], torch.Tensor], device: torch.device) -> dict[str, float]:
        """Return `val_loss`, the mean over all ranks' draws of `losses_of(batch, draws)`, and the mean of each bin.

        `losses_of` gives a loss for each draw. A bin is named by its timesteps, `val_loss_by_timestep/0000-0124`;
        one without draws is left out.
        """
        objective = self._config.objective
        sums_N2 = torch.zeros(BINS, 2, dtype=torch.float64)
        for chunk in self._chunks:
            losses_B = losses_of(chunk.batch, chunk.draws).double().cpu()
            bins_B = bin_of(objective, chunk.draws.timesteps_B)
            sums_N2.index_add_(0, bins_B, torch.stack([losses_B, torch.ones_like(losses_B)], dim=1))
        sums_N2 = sums_N2.to(device)
        dist.all_reduce(sums_N2)
        total, count = sums_N2.sum(dim=0).tolist()
        by_bin = zip(bin_names(objective), sums_N2.tolist(), strict=True)
        return {"val_loss": total / count} | {name: loss / number for name, (loss, number) in by_bin if number}

    def _chunk(self, numbers: list[int], parts: list[Part]) -> Chunk:
        batch = collate(0, tuple(numbers), parts)
        return Chunk(batch=batch, draws=self._draws(numbers, latent_shape(self._config, batch, self._factor)))

    def _draws(self, numbers: list[int], shape_CHW: tuple[int, int, int]) -> Draws:
        objective = self._config.objective
        draws = draw(objective, [(self._config.seed, _VALIDATION, number) for number in numbers], shape_CHW)
        middles = (np.array(numbers) + 0.5) / self._config.validation_samples
        nobody_B = torch.zeros(len(numbers), dtype=torch.bool)
        return replace(
            draws,
            timesteps_B=torch.tensor([timestep_at(objective, float(middle)) for middle in middles]),
            dropped_B=nobody_B,
            emptied_B=nobody_B,
        )


def unchanged(config: TrainConfig) -> TrainConfig:
    """Return the settings with pictures as they are: neither flip nor jitter."""
    return replace(config, augment=replace(config.augment, flip_prob=0.0, jitter=0.0))


def bin_of(objective: ObjectiveConfig, timesteps_B: torch.Tensor) -> torch.Tensor:
    """Return the bin of each timestep, 0..7: equal stretches of the timesteps that are drawn."""
    length = objective.timestep_high + 1 - objective.timestep_low
    return (timesteps_B - objective.timestep_low) * BINS // length


def bin_names(objective: ObjectiveConfig) -> list[str]:
    """Return the name of each bin, with its first and last timestep."""
    length = objective.timestep_high + 1 - objective.timestep_low
    firsts = [objective.timestep_low - (-number * length // BINS) for number in range(BINS + 1)]
    return [f"{BY_TIMESTEP}/{first:04d}-{after - 1:04d}" for first, after in pairwise(firsts)]


def latent_shape(config: TrainConfig, batch: Batch, factor: int) -> tuple[int, int, int]:
    """Return the latent's (C, h, w); `factor` is 1 for moments and the autoencoder's for pictures."""
    height, width = batch.arrays_BCHW.shape[-2:]
    return config.unet.latent_channels, height // factor, width // factor


def _chunks(config: TrainConfig, index: Index) -> list[tuple[list[int], list[int]]]:
    """Return (numbers of the draws, rows of their samples); a chunk stays in one bucket and one micro-batch."""
    by_bucket: dict[tuple[int, int], list[int]] = {}
    for number in np.random.default_rng((config.seed, _VALIDATION)).permutation(config.validation_samples).tolist():
        by_bucket.setdefault(index.group_of(_row(config, index, number)).bucket_hw, []).append(number)
    size = config.batch.samples_a_pass
    chunks = [
        numbers[at : at + size] for _, numbers in sorted(by_bucket.items()) for at in range(0, len(numbers), size)
    ]
    return [(numbers, [_row(config, index, number) for number in numbers]) for numbers in chunks]


def _row(config: TrainConfig, index: Index, number: int) -> int:
    """Return a draw's row: evenly over a large split, each row about as often as the others in a small one."""
    if len(index) >= config.validation_samples:
        return number * len(index) // config.validation_samples
    return number % len(index)
