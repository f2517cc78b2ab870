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
from train.data import Batch
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
from train.index import Index
from train.precision import DTYPES
from train.samples import ImageSource, LatentSource
from train.shards import shard_reader
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
    """What the networks are given for a micro-batch, on this rank's device."""

    step: int
    """Global batch that it is a part of."""
    uids: tuple[str, ...]
    """Samples."""
    arrays_BCHW: torch.Tensor
    """Posterior moments, or pictures as uint8."""
    time_ids_BT: torch.Tensor
    """Micro-conditioning, fp32."""
    tokens: tuple[torch.Tensor, ...]
    """Tokens of the captions for each text tower, shape (B, 77)."""
    draws: Draws
    """What chance decides."""


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

        All that the CPU has to compute for a step is done here, and copies to a GPU are queued, not waited for.
        """
        device, draws = self._frozen.device, draws or self.draws(batch)
        zeroed = self._config.objective.dropped_text == "zeros"
        emptied_B = draws.emptied_B if zeroed else draws.emptied_B | draws.dropped_B
        captions = ["" if empty else text for text, empty in zip(batch.captions, emptied_B.tolist(), strict=True)]
        sent = {field.name: _send(getattr(draws, field.name), device) for field in fields(draws)}
        return Inputs(
            step=batch.step,
            uids=batch.uids,
            arrays_BCHW=_send(batch.arrays_BCHW, device),
            time_ids_BT=_send(batch.time_ids_BT, device),
            tokens=tuple(_send(tokens_BL, device) for tokens_BL in self._frozen.text.tokenize(captions)),
            draws=Draws(**sent),
        )

    def losses(self, inputs: Inputs) -> torch.Tensor:
        """Return each sample's loss, shape (B,)."""
        objective, draws, alphas_cumprod_T = self._config.objective, inputs.draws, self._alphas_cumprod_T
        noise_BCHW, timesteps_B = draws.noise_BCHW, draws.timesteps_B
        moments_BCHW = self._frozen.moments(inputs.arrays_BCHW)
        latents_BCHW = sample_latents(moments_BCHW, draws.posterior_BCHW, self._frozen.scaling_factor)
        noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, timesteps_B, alphas_cumprod_T)
        text_BLD, pooled_BD = self._frozen.text.encode(inputs.tokens)
        if objective.dropped_text == "zeros":
            text_BLD, pooled_BD = drop_text(text_BLD, pooled_BD, draws.dropped_B)
        prediction_BCHW = self.predict(noisy_BCHW, timesteps_B, text_BLD, pooled_BD, inputs.time_ids_BT)
        target_BCHW = target(objective, latents_BCHW, noise_BCHW, timesteps_B, alphas_cumprod_T)
        return squared_error(prediction_BCHW, target_BCHW) * loss_weights(objective, timesteps_B, alphas_cumprod_T)


def _send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; a copy to a GPU waits in the GPU's queue, not here."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
