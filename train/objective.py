"""From a batch to its loss: the frozen networks, and what the U-Net is asked.

Shape legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from train.autoencoder import check_latents, fingerprint, latent_factor, load_vae, moments
from train.conditioning import TextEncoder, drop_text
from train.config import TrainConfig
from train.data.loader import Batch
from train.data.samples import ImageSource, LatentSource
from train.data.shards import shard_reader
from train.diffusion import (
    Draws,
    add_noise,
    alphas_cumprod,
    draw,
    loss_weights,
    sample_latents,
    squared_error,
    target,
)
from train.index.reader import Index
from train.precision import DTYPES
from train.validation import latent_shape

_STEP_DRAWS = 31

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(noisy latents, timesteps, text, pooled text, time ids) to the prediction in fp32."""


class Frozen:
    """The networks that do not learn, outside the engine: text towers and autoencoder."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config = config
        self.device = device
        dtype = DTYPES[config.precision]
        self.text = TextEncoder(config.text_towers, device, dtype)
        vae = load_vae(config.vae_folder)
        self.scaling_factor = float(vae.config.scaling_factor)
        self.latent_factor = latent_factor(vae)
        self.vae_fingerprint = fingerprint(vae)
        cached = config.source == "latents"
        if cached:
            check_latents(config.data_root, vae)
        self.factor = 1 if cached else self.latent_factor
        self.vae = None if cached else vae.to(device=device, dtype=dtype)

    def source(self, index: Index) -> LatentSource | ImageSource:
        """Return what reads the samples of an index."""
        config = self._config
        reader = shard_reader(config.data_root, config.loader, index.digest)
        if config.source == "latents":
            return LatentSource(reader=reader, channels=2 * config.unet.latent_channels, factor=self.latent_factor)
        return ImageSource(reader=reader, augment=config.augment, seed=config.seed)

    def moments(self, arrays_BCHW: torch.Tensor) -> torch.Tensor:
        """Return posterior moments, of the pictures where it is pictures that were read."""
        if self.vae is None:
            return arrays_BCHW
        return moments(self.vae, arrays_BCHW.float() / 127.5 - 1.0)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the U-Net is asked for a micro-batch and what it should answer, on this rank's device."""

    step: int
    """Global batch that it is a part of."""
    uids: tuple[str, ...]
    """Samples."""
    noisy_BCHW: torch.Tensor
    """Noisy latents."""
    timesteps_B: torch.Tensor
    text_BLD: torch.Tensor
    """Every token of the captions."""
    pooled_BD: torch.Tensor
    """Each caption as a whole."""
    time_ids_BT: torch.Tensor
    """Micro-conditioning, fp32."""
    target_BCHW: torch.Tensor
    """What the prediction should be."""
    weights_B: torch.Tensor
    """Each sample's weight in the loss."""


class Objective:
    """From a batch and its draws to a loss for each sample."""

    def __init__(self, config: TrainConfig, frozen: Frozen, predict: Predict) -> None:
        self._config = config
        self._frozen = frozen
        self._alphas_cumprod_T = alphas_cumprod(config.objective).to(frozen.device)
        self.predict = predict

    def draws(self, batch: Batch) -> Draws:
        """Return the batch's draws, keyed by (seed, step, position in the global batch)."""
        keys = [(self._config.seed, _STEP_DRAWS, batch.step, position) for position in batch.positions]
        return draw(self._config.objective, keys, latent_shape(self._config, batch, self._frozen.factor))

    def inputs(self, batch: Batch, draws: Draws | None = None) -> Inputs:
        """Return what a loss needs, with the batch's own draws unless others are given.

        All that a step computes beside the U-Net is done here; what a GPU does of it is queued, not waited for.
        """
        objective, device, alphas_cumprod_T = self._config.objective, self._frozen.device, self._alphas_cumprod_T
        on_cpu = draws or self.draws(batch)
        draws = Draws(**{field.name: _send(getattr(on_cpu, field.name), device) for field in fields(on_cpu)})
        latents_BCHW = sample_latents(
            self._frozen.moments(_send(batch.arrays_BCHW, device)), draws.posterior_BCHW, self._frozen.scaling_factor
        )
        noise_BCHW, timesteps_B = draws.noise_BCHW, draws.timesteps_B
        text_BLD, pooled_BD = self._text(batch, on_cpu, draws)
        return Inputs(
            step=batch.step,
            uids=batch.uids,
            noisy_BCHW=add_noise(latents_BCHW, noise_BCHW, timesteps_B, alphas_cumprod_T),
            timesteps_B=timesteps_B,
            text_BLD=text_BLD,
            pooled_BD=pooled_BD,
            time_ids_BT=_send(batch.time_ids_BT, device),
            target_BCHW=target(objective, latents_BCHW, noise_BCHW, timesteps_B, alphas_cumprod_T),
            weights_B=loss_weights(objective, timesteps_B, alphas_cumprod_T),
        )

    def losses(self, inputs: Inputs) -> torch.Tensor:
        """Return each sample's loss, shape (B,)."""
        prediction_BCHW = self.predict(
            inputs.noisy_BCHW, inputs.timesteps_B, inputs.text_BLD, inputs.pooled_BD, inputs.time_ids_BT
        )
        return squared_error(prediction_BCHW, inputs.target_BCHW) * inputs.weights_B

    def _text(self, batch: Batch, on_cpu: Draws, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the captions' conditioning, (B, L, D) and (B, D); some lose it, as the draws say."""
        zeroed = self._config.objective.dropped_text == "zeros"
        emptied_B = on_cpu.emptied_B if zeroed else on_cpu.emptied_B | on_cpu.dropped_B
        captions = ["" if empty else text for text, empty in zip(batch.captions, emptied_B.tolist(), strict=True)]
        tokens = [_send(tokens_BL, self._frozen.device) for tokens_BL in self._frozen.text.tokenize(captions)]
        text_BLD, pooled_BD = self._frozen.text.encode(tokens)
        return drop_text(text_BLD, pooled_BD, draws.dropped_B) if zeroed else (text_BLD, pooled_BD)


def _send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; a copy to a GPU waits in the GPU's queue, not here."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
