"""Noise schedule, draws and latents against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from train.config import ObjectiveConfig
from train.diffusion import add_noise, alphas_cumprod, draw, sample_latents, squared_error
from train.recipes import refiner

OBJECTIVE = ObjectiveConfig()


def test_schedule_and_noising_agree_with_diffusers() -> None:
    oracle = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    mine_T = alphas_cumprod(OBJECTIVE)
    assert (mine_T - oracle.alphas_cumprod).abs().max() <= 1e-6
    latents, noise = torch.randn(2, 5, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 1, 199, 500, 999])
    difference = add_noise(latents, noise, timesteps, mine_T) - oracle.add_noise(latents, noise, timesteps)
    assert difference.abs().max() <= 1e-6


@pytest.mark.parametrize(("timestep", "sigma"), [(0, 0.02917), (199, 0.569), (999, 14.6146)])
def test_sigmas_are_the_published_ones(timestep: int, sigma: float) -> None:
    alpha = alphas_cumprod(OBJECTIVE)[timestep]
    assert float(((1 - alpha) / alpha).sqrt()) == pytest.approx(sigma, rel=1e-3)


def test_a_draw_depends_on_its_own_key_only() -> None:
    keys = [(0, 31, 7, position) for position in range(6)]
    whole = draw(OBJECTIVE, keys, (4, 3, 5))
    part = draw(OBJECTIVE, keys[4:], (4, 3, 5))
    assert torch.equal(whole.noise_BCHW[4:], part.noise_BCHW)
    assert torch.equal(whole.posterior_BCHW[4:], part.posterior_BCHW)
    assert torch.equal(whole.timesteps_B[4:], part.timesteps_B)
    assert not torch.equal(whole.noise_BCHW[0], whole.noise_BCHW[1])


def test_timesteps_cover_their_range_and_dropout_its_share() -> None:
    draws = draw(refiner().objective, [(0, number) for number in range(4000)], (1, 1, 1))
    assert (int(draws.timesteps_B.min()), int(draws.timesteps_B.max())) == (0, 199)
    assert 0.08 < float(draws.dropped_B.float().mean()) < 0.12
    assert float(draws.noise_BCHW.std()) == pytest.approx(1.0, abs=0.05)


def test_offset_noise_is_constant_over_a_channel() -> None:
    keys = [(0, number) for number in range(2000)]
    plain = draw(OBJECTIVE, keys, (1, 2, 2)).noise_BCHW
    offset = draw(ObjectiveConfig(offset_noise=0.05), keys, (1, 2, 2)).noise_BCHW - plain
    assert float((offset - offset[:, :, :1, :1]).abs().max()) < 1e-6
    assert float(offset.std()) == pytest.approx(0.05, rel=0.1)


def test_latents_are_drawn_as_diffusers_draws_them() -> None:
    generator = torch.Generator().manual_seed(1)
    moments = torch.randn(3, 8, 4, 4, generator=generator)
    posterior = torch.randn(3, 4, 4, 4, generator=generator)
    oracle = DiagonalGaussianDistribution(moments)
    expected = (oracle.mean + oracle.std * posterior) * 0.13025
    assert (sample_latents(moments, posterior, 0.13025) - expected).abs().max() <= 1e-6


def test_loss_is_the_mean_square_of_each_sample() -> None:
    prediction, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6))
    losses = squared_error(torch.from_numpy(prediction), torch.from_numpy(noise))
    assert np.allclose(losses.numpy(), ((prediction - noise) ** 2).mean(axis=(1, 2, 3)), atol=1e-6)
