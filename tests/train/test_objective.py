"""The objective as a whole: against plain diffusers and transformers, and against a score that is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from tests.train.synthetic_root import Tiny
from tests.train.test_data import index_of, settings_of
from train.autoencoder import load_vae
from train.config import BatchConfig, ObjectiveConfig, TrainConfig
from train.data.loader import Batch, Loader
from train.diffusion import add_noise, alphas_cumprod, draw, squared_error
from train.export.convert import text_model, write_tokenizer
from train.model import build_unet, predict
from train.objective import Frozen, Objective
from train.recipes import base, refiner

CPU = torch.device("cpu")


def first_batch(config: TrainConfig, frozen: Frozen, tiny: Tiny) -> Batch:
    index = index_of(tiny.root)
    return next(iter(Loader(config, index, frozen.source(index), rank=0, world_size=1).micro_batches(0)))


def prepared(tiny: Tiny, model: str, **changes: object) -> tuple[TrainConfig, Frozen, nn.Module, Objective]:
    batch = BatchConfig(global_batch=6, micro_batch=6)
    config = dataclasses.replace(settings_of(tiny, model), batch=batch, **changes)
    frozen = Frozen(config, CPU)
    unet = build_unet(config)
    with torch.no_grad():  # a trained network's outputs are not zero
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    objective = Objective(config, frozen, lambda *inputs: predict(unet, torch.float32, *inputs))
    return config, frozen, unet, objective


@pytest.mark.parametrize("model", ["base", "refiner"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("source", ["latents", "images"])
def test_forward_and_loss_agree_with_a_plain_reference(
    tiny: Tiny, tmp_path: Path, model: str, prediction: str, source: str
) -> None:
    wanted = dataclasses.replace(settings_of(tiny, model).objective, prediction=prediction, conditioning_dropout=0.4)
    config, frozen, unet, objective = prepared(tiny, model, objective=wanted, source=source)
    batch = first_batch(config, frozen, tiny)
    draws = objective.draws(batch)
    assert 0 < int(draws.dropped_B.sum()) < 6
    with torch.no_grad():
        mine = objective.losses(objective.inputs(batch, draws))
        expected = plain_losses(config, frozen, unet, batch, draws, tmp_path)
    assert (mine - expected).abs().max() <= 1e-5


def plain_losses(config: TrainConfig, frozen: Frozen, unet: nn.Module, batch: Batch, draws, tmp_path) -> torch.Tensor:
    """diffusers' scheduler, autoencoder and U-Net and transformers' text towers, put together by hand."""
    vae = load_vae(config.vae_folder)
    moments = batch.arrays_BCHW.float()
    if config.source == "images":
        moments = vae.encode(moments / 127.5 - 1.0).latent_dist.parameters
    mean, log_variance = moments.chunk(2, dim=1)
    latents = (mean + (0.5 * log_variance).exp() * draws.posterior_BCHW) * vae.config.scaling_factor
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[config.objective.prediction]
    scheduler = DDPMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )
    noisy = scheduler.add_noise(latents, draws.noise_BCHW, draws.timesteps_B)
    sequences = []
    for number, (spec, tower) in enumerate(zip(config.text_towers, frozen.text.towers, strict=True)):
        tokens = write_tokenizer(tmp_path / str(number), spec)(
            list(batch.captions), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        last = number == len(config.text_towers) - 1
        output = text_model(tower, projection=last)(tokens, output_hidden_states=True)
        sequences.append(output.hidden_states[-2])
    text, pooled = torch.cat(sequences, dim=-1), output.text_embeds.clone()
    text[draws.dropped_B], pooled[draws.dropped_B] = 0.0, 0.0
    added = {"text_embeds": pooled, "time_ids": batch.time_ids_BT}
    prediction = unet(noisy, draws.timesteps_B, text, added_cond_kwargs=added).sample
    velocity = scheduler.get_velocity(latents, draws.noise_BCHW, draws.timesteps_B)
    target = velocity if kind == "v_prediction" else draws.noise_BCHW
    return (prediction - target).square().mean(dim=(1, 2, 3))


def test_dropped_text_is_zeros_or_the_empty_caption_and_emptied_captions_are_empty(tiny: Tiny) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for dropped_text in ("zeros", "empty"):
        wanted = ObjectiveConfig(conditioning_dropout=0.4, caption_dropout=0.4, dropped_text=dropped_text)
        config, frozen, _, _ = prepared(tiny, "base", objective=wanted)

        def remember(noisy, timesteps, text, pooled, ids):
            seen.append((text, pooled))
            return torch.zeros_like(noisy)

        objective = Objective(config, frozen, remember)
        batch = first_batch(config, frozen, tiny)
        drawn = objective.draws(batch)
        flags = torch.tensor
        draws = dataclasses.replace(
            drawn,
            dropped_B=flags([True, False, False, True, False, False]),
            emptied_B=flags([False, True, False, True, False, False]),
        )
        objective.losses(objective.inputs(batch, draws))
    (zeros_text, zeros_pooled), (empty_text, _) = seen
    nothing = frozen.text([""])[0][0]
    full = frozen.text(batch.captions)[0]
    assert zeros_text[[0, 3]].abs().sum() == zeros_pooled[[0, 3]].abs().sum() == 0
    for row, text in ((0, empty_text), (1, empty_text), (3, empty_text), (1, zeros_text)):
        assert torch.allclose(text[row], nothing, atol=1e-6)
    for row in (2, 4, 5):
        assert torch.allclose(zeros_text[row], full[row], atol=1e-6)
        assert torch.allclose(empty_text[row], full[row], atol=1e-6)


def test_frozen_networks_learn_nothing_and_stay_outside(tiny: Tiny) -> None:
    config, frozen, unet, objective = prepared(tiny, "base", source="images")
    networks = [*frozen.text.towers, frozen.vae]
    assert not any(network.training for network in networks)
    parameters = [parameter for network in networks for parameter in network.parameters()]
    assert parameters and not any(parameter.requires_grad for parameter in parameters)
    before = [parameter.clone() for parameter in parameters]
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    batch = first_batch(config, frozen, tiny)
    objective.losses(objective.inputs(batch)).mean().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(parameter.grad is None for parameter in parameters)
    assert all(parameter.grad is not None for parameter in unet.parameters())
    mine = {parameter.data_ptr() for parameter in unet.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in parameters}


MEANS, DEVIATION = torch.tensor([-1.2, 0.9]), 0.3
WEIGHTS = torch.tensor([0.35, 0.65])


def analytic_noise(noisy_B: torch.Tensor, timesteps_B: torch.Tensor, alphas_T: torch.Tensor) -> torch.Tensor:
    """E[eps | x] = -sqrt(1 - alpha_bar) d/dx log p(x) for a mixture of two Gaussians (Tweedie)."""
    alpha_B1 = alphas_T[timesteps_B][:, None]
    variance_B1 = alpha_B1 * DEVIATION**2 + 1 - alpha_B1
    distance_BK = noisy_B[:, None] - alpha_B1.sqrt() * MEANS
    posterior_BK = torch.softmax(WEIGHTS.log() - distance_BK**2 / (2 * variance_B1), dim=1)
    return ((1 - alpha_B1).sqrt() * posterior_BK * distance_BK / variance_B1).sum(dim=1)


@pytest.mark.parametrize("recipe", [base, refiner], ids=["base", "refiner"])
def test_a_trained_denoiser_approaches_the_analytic_score(recipe) -> None:
    objective, alphas_T = recipe().objective, alphas_cumprod(recipe().objective)
    torch.manual_seed(0)
    features = 32
    network = nn.Sequential(nn.Linear(1 + features, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1))

    def denoise(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        log_sigma = ((1 - alphas_T[timesteps]) / alphas_T[timesteps]).log()[:, None] / 2
        waves = log_sigma * torch.linspace(0.2, 3.0, features // 2)
        return network(torch.cat([noisy.flatten()[:, None], waves.sin(), waves.cos()], dim=1)).view_as(noisy)

    rng = np.random.default_rng(0)
    keys = [(9, number) for number in range(20_000)]
    drawn = draw(objective, keys, (1, 1, 1))
    kinds = torch.from_numpy(rng.choice(2, len(keys), p=WEIGHTS.numpy()))
    clean = (MEANS[kinds] + DEVIATION * torch.from_numpy(rng.standard_normal(len(keys))).float()).view(-1, 1, 1, 1)
    noisy = add_noise(clean, drawn.noise_BCHW, drawn.timesteps_B, alphas_T)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900)
    for _ in range(900):
        rows = torch.from_numpy(rng.integers(0, len(keys), 1024))
        loss = squared_error(denoise(noisy[rows], drawn.timesteps_B[rows]), drawn.noise_BCHW[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        known = analytic_noise(noisy.flatten(), drawn.timesteps_B, alphas_T)
        learned = denoise(noisy, drawn.timesteps_B).flatten()
    assert float((learned - known).square().mean()) < 0.03 * float(known.square().mean())
    untold = analytic_noise(noisy.flatten(), torch.zeros_like(drawn.timesteps_B) + objective.timestep_high, alphas_T)
    assert float((untold - known).square().mean()) > 0.06 * float(known.square().mean())
