"""The noise schedule, what is predicted and how the loss is weighed.

Shape legend: B batch, C channels, H and W latent height and width, T timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """Samples that lose their text conditioning, bool."""
    emptied_B: torch.Tensor
    """Samples whose caption is replaced by the empty one, bool."""


def alphas_cumprod(objective: ObjectiveConfig) -> torch.Tensor:
    """Return the product of 1 - beta up to each timestep, betas linear in sqrt space (DDPM, equation 4)."""
    roots_T = torch.linspace(
        objective.beta_start**0.5, objective.beta_end**0.5, objective.num_timesteps, dtype=torch.float32
    )
    products_T = torch.cumprod(1.0 - roots_T**2, dim=0)
    return zero_terminal(products_T) if objective.zero_terminal_snr else products_T


def zero_terminal(alphas_cumprod_T: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last one is 0 and the first one stays (Lin et al. 2023, alg. 1)."""
    roots_T = alphas_cumprod_T.sqrt()
    first, last = roots_T[0].clone(), roots_T[-1].clone()
    return ((roots_T - last) * (first / (first - last))) ** 2


def add_noise(
    latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timesteps_B: torch.Tensor, alphas_cumprod_T: torch.Tensor
) -> torch.Tensor:
    """Return sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (DDPM, equation 4)."""
    alpha_B111 = alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
    return alpha_B111.sqrt() * latents_BCHW + (1.0 - alpha_B111).sqrt() * noise_BCHW


def target(
    objective: ObjectiveConfig,
    latents_BCHW: torch.Tensor,
    noise_BCHW: torch.Tensor,
    timesteps_B: torch.Tensor,
    alphas_cumprod_T: torch.Tensor,
) -> torch.Tensor:
    """Return what the network is to predict: the noise, or the velocity (Salimans and Ho 2022, section 4)."""
    if objective.prediction == "epsilon":
        return noise_BCHW
    alpha_B111 = alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
    return alpha_B111.sqrt() * noise_BCHW - (1.0 - alpha_B111).sqrt() * latents_BCHW


def loss_weights(objective: ObjectiveConfig, timesteps_B: torch.Tensor, alphas_cumprod_T: torch.Tensor) -> torch.Tensor:
    """Return min(SNR, gamma) over SNR, or over SNR + 1 for velocities (Hang et al. 2023, section 3.4), shape (B,)."""
    alpha_B = alphas_cumprod_T[timesteps_B]
    if objective.min_snr_gamma is None:
        return torch.ones_like(alpha_B)
    snr_B = alpha_B / (1.0 - alpha_B)
    capped_B = snr_B.clamp(max=objective.min_snr_gamma)
    return capped_B / (snr_B if objective.prediction == "epsilon" else snr_B + 1.0)


def squared_error(prediction_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each sample (DDPM, equation 14), shape (B,)."""
    return (prediction_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))


def sample_latents(moments_BCHW: torch.Tensor, posterior_BCHW: torch.Tensor, scaling_factor: float) -> torch.Tensor:
    """Return scaled latents drawn from the posterior whose mean and log-variance are stacked in the channels."""
    mean_BCHW, log_variance_BCHW = moments_BCHW.float().chunk(2, dim=1)
    deviation_BCHW = torch.exp(0.5 * log_variance_BCHW.clamp(-30.0, 20.0))
    return (mean_BCHW + deviation_BCHW * posterior_BCHW) * scaling_factor


def draw(objective: ObjectiveConfig, keys: Sequence[tuple[int, ...]], shape_CHW: tuple[int, int, int]) -> Draws:
    """Return the draws of the samples with these keys; a sample's draws depend on its own key only."""
    rows = [_draw_one(objective, np.random.default_rng(key), shape_CHW) for key in keys]
    timesteps, noises, posteriors, dropped, emptied = zip(*rows, strict=True)
    return Draws(
        timesteps_B=torch.tensor(timesteps, dtype=torch.int64),
        noise_BCHW=torch.from_numpy(np.stack(noises)),
        posterior_BCHW=torch.from_numpy(np.stack(posteriors)),
        dropped_B=torch.tensor(dropped, dtype=torch.bool),
        emptied_B=torch.tensor(emptied, dtype=torch.bool),
    )


def timestep_at(objective: ObjectiveConfig, uniform: float) -> int:
    """Return the timestep below which a share `uniform` (0 <= u < 1) of the draws lies."""
    low, high = objective.biased_range
    lengths = np.array([low - objective.timestep_low, high + 1 - low, objective.timestep_high - high])
    masses = lengths * np.array([1.0, objective.timestep_bias, 1.0])
    ends = np.cumsum(masses) / masses.sum()
    part = min(int(np.searchsorted(ends, uniform, side="right")), 2)
    starts = np.concatenate([[0.0], ends])
    inside = (uniform - starts[part]) / (ends[part] - starts[part]) * lengths[part]
    first = (objective.timestep_low, low, high + 1)[part]
    return first + min(int(inside), int(lengths[part]) - 1)


def _draw_one(
    objective: ObjectiveConfig, rng: np.random.Generator, shape_CHW: tuple[int, int, int]
) -> tuple[int, np.ndarray, np.ndarray, bool, bool]:
    chances = rng.random(3)
    offset_C11 = rng.standard_normal((shape_CHW[0], 1, 1), dtype=np.float32)
    noise_CHW = rng.standard_normal(shape_CHW, dtype=np.float32) + np.float32(objective.offset_noise) * offset_C11
    posterior_CHW = rng.standard_normal(shape_CHW, dtype=np.float32)
    dropped, emptied = chances[1] < objective.conditioning_dropout, chances[2] < objective.caption_dropout
    return timestep_at(objective, float(chances[0])), noise_CHW, posterior_CHW, bool(dropped), bool(emptied)


def sampler_schedule(objective: ObjectiveConfig) -> dict[str, Any]:
    """Return the arguments of diffusers' schedulers that give samplers the noise schedule of the training."""
    return {
        "num_train_timesteps": objective.num_timesteps,
        "beta_start": objective.beta_start,
        "beta_end": objective.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[objective.prediction],
        "rescale_betas_zero_snr": objective.zero_terminal_snr,
        "timestep_spacing": "trailing" if objective.zero_terminal_snr else "leading",
        "steps_offset": 1,
    }
