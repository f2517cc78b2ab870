"""The noise schedule and the epsilon objective.

Shape legend: B batch, C channels, H and W latent height and width, T timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from train.config import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decides for a batch, a function of (seed, step, position in the global batch) alone."""

    timesteps_B: torch.Tensor
    """Timestep of each sample, int64."""
    noise_BCHW: torch.Tensor
    """Noise that is added and predicted, with the offset where configured."""
    posterior_BCHW: torch.Tensor
    """Standard normal numbers that pick the latent out of the autoencoder's posterior."""
    dropped_B: torch.Tensor
    """Samples that lose their text, bool."""


def alphas_cumprod(objective: ObjectiveConfig) -> torch.Tensor:
    """Return the product of 1 - beta up to each timestep, betas linear in sqrt space (DDPM, equation 4)."""
    roots_T = torch.linspace(
        objective.beta_start**0.5, objective.beta_end**0.5, objective.num_timesteps, dtype=torch.float32
    )
    return torch.cumprod(1.0 - roots_T**2, dim=0)


def add_noise(
    latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timesteps_B: torch.Tensor, alphas_cumprod_T: torch.Tensor
) -> torch.Tensor:
    """Return sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (DDPM, equation 4)."""
    alpha_B111 = alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
    return alpha_B111.sqrt() * latents_BCHW + (1.0 - alpha_B111).sqrt() * noise_BCHW


def epsilon_loss(prediction_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each sample (DDPM, equation 14), shape (B,)."""
    return (prediction_BCHW.float() - noise_BCHW.float()).square().mean(dim=(1, 2, 3))


def sample_latents(moments_BCHW: torch.Tensor, posterior_BCHW: torch.Tensor, scaling_factor: float) -> torch.Tensor:
    """Return scaled latents drawn from the posterior whose mean and log-variance are stacked in the channels."""
    mean_BCHW, log_variance_BCHW = moments_BCHW.float().chunk(2, dim=1)
    deviation_BCHW = torch.exp(0.5 * log_variance_BCHW.clamp(-30.0, 20.0))
    return (mean_BCHW + deviation_BCHW * posterior_BCHW) * scaling_factor


def draw(objective: ObjectiveConfig, keys: Sequence[tuple[int, ...]], shape_CHW: tuple[int, int, int]) -> Draws:
    """Return the draws of the samples with these keys; a sample's draws depend on its own key only."""
    rows = [_draw_one(objective, np.random.default_rng(key), shape_CHW) for key in keys]
    timesteps, noises, posteriors, dropped = zip(*rows, strict=True)
    return Draws(
        timesteps_B=torch.tensor(timesteps, dtype=torch.int64),
        noise_BCHW=torch.from_numpy(np.stack(noises)),
        posterior_BCHW=torch.from_numpy(np.stack(posteriors)),
        dropped_B=torch.tensor(dropped, dtype=torch.bool),
    )


def _draw_one(
    objective: ObjectiveConfig, rng: np.random.Generator, shape_CHW: tuple[int, int, int]
) -> tuple[int, np.ndarray, np.ndarray, bool]:
    timestep = int(rng.integers(objective.timestep_low, objective.timestep_high + 1))
    dropped = bool(rng.random() < objective.conditioning_dropout)
    offset_C11 = rng.standard_normal((shape_CHW[0], 1, 1), dtype=np.float32)
    noise_CHW = rng.standard_normal(shape_CHW, dtype=np.float32) + np.float32(objective.offset_noise) * offset_C11
    posterior_CHW = rng.standard_normal(shape_CHW, dtype=np.float32)
    return timestep, noise_CHW, posterior_CHW, dropped
