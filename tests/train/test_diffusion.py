"""Noise schedule, draws and latents against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_snr

from train.config import ObjectiveConfig
from train.diffusion import (
    add_noise,
    alphas_cumprod,
    draw,
    loss_weights,
    sample_latents,
    squared_error,
    target,
    timestep_at,
)
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
    plain = draw(OBJECTIVE, keys, (2, 2, 2)).noise_BCHW
    offset = draw(ObjectiveConfig(offset_noise=0.05), keys, (2, 2, 2)).noise_BCHW - plain
    assert float((offset - offset[:, :, :1, :1]).abs().max()) < 1e-6
    assert float(offset.std()) == pytest.approx(0.05, rel=0.1)
    assert abs(float(torch.corrcoef(offset[:, :, 0, 0].T)[0, 1])) < 0.1  # each channel has its own


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


V_ZERO = ObjectiveConfig(prediction="v", zero_terminal_snr=True)


def test_zero_terminal_snr_and_velocities_agree_with_diffusers() -> None:
    oracle = DDPMScheduler(
        1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    mine_T = alphas_cumprod(V_ZERO)
    assert float(mine_T[-1]) == 0.0
    assert (mine_T - oracle.alphas_cumprod).abs().max() <= 1e-6
    latents, noise = torch.randn(2, 5, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 1, 199, 500, 999])
    assert (
        add_noise(latents, noise, timesteps, mine_T) - oracle.add_noise(latents, noise, timesteps)
    ).abs().max() <= 1e-6
    velocity = target(V_ZERO, latents, noise, timesteps, mine_T)
    assert (velocity - oracle.get_velocity(latents, noise, timesteps)).abs().max() <= 1e-6
    assert torch.equal(target(OBJECTIVE, latents, noise, timesteps, mine_T), noise)


@pytest.mark.parametrize(("prediction", "zero"), [("epsilon", False), ("v", False), ("v", True)])
def test_min_snr_weights_agree_with_diffusers(prediction: str, zero: bool) -> None:
    oracle = DDPMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero
    )
    objective = ObjectiveConfig(prediction=prediction, zero_terminal_snr=zero, min_snr_gamma=5.0)
    timesteps = torch.arange(1000)
    snr = compute_snr(oracle, timesteps)
    divisor = snr if prediction == "epsilon" else snr + 1  # as diffusers' SDXL training script does
    expected = torch.minimum(snr, torch.tensor(5.0)) / divisor
    mine = loss_weights(objective, timesteps, alphas_cumprod(objective))
    assert (mine - expected).abs().max() <= 1e-5
    plain = ObjectiveConfig(prediction=prediction, zero_terminal_snr=zero)
    assert torch.equal(loss_weights(plain, timesteps, alphas_cumprod(plain)), torch.ones(1000))


def test_biased_timesteps_have_the_weights_of_diffusers_script() -> None:
    objective = ObjectiveConfig(timestep_bias=3.0, timestep_bias_low=100, timestep_bias_high=349)
    weights = np.ones(1000)  # generate_timestep_weights of the SDXL script, strategy range
    weights[100:350] *= 3.0
    draws = 60_000
    counts = np.bincount([timestep_at(objective, (number + 0.5) / draws) for number in range(draws)], minlength=1000)
    assert np.abs(counts - draws * weights / weights.sum()).max() <= 1.0
    assert timestep_at(objective, 0.0) == 0
    assert timestep_at(objective, 1.0 - 2.0**-53) == 999
    flat = [timestep_at(refiner().objective, (number + 0.5) / 2000) for number in range(2000)]
    assert np.array_equal(np.bincount(flat), np.full(200, 10))


def test_captions_are_emptied_in_their_share_and_apart_from_dropout() -> None:
    objective = ObjectiveConfig(conditioning_dropout=0.2, caption_dropout=0.3)
    draws = draw(objective, [(5, number) for number in range(6000)], (1, 1, 1))
    assert float(draws.dropped_B.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(draws.emptied_B.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((draws.dropped_B & draws.emptied_B).float().mean()) == pytest.approx(0.06, abs=0.012)
