"""From noise to pictures with the network as it is: diffusers' Euler steps over the timesteps it is trained on.

Shape legend: B pictures, C channels, H and W latent height and width, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler

from train.autoencoder import load_vae
from train.config import TrainConfig
from train.config_evaluation import DrawConfig
from train.data.loader import collate
from train.data.samples import read_pick
from train.diffusion import sample_latents, sampler_schedule
from train.evaluate.cases import Case, batches
from train.index.reader import Index
from train.micro_conditioning import NEGATIVE_AESTHETIC_SCORE
from train.objective import Frozen, Predict
from train.validation import unchanged


class Painter:
    """Draws cases with a network that may still be learning.

    The base begins with noise. The refiner begins with the case's own picture, noised to the largest timestep that it
    is trained on.
    """

    def __init__(self, config: TrainConfig, frozen: Frozen, index: Index, predict: Predict) -> None:
        self._config = config
        self._frozen = frozen
        self._index = index
        self._source = frozen.source(index)
        self._predict = predict

    @torch.no_grad()
    def pictures(self, cases: Sequence[Case], how: DrawConfig) -> Iterator[tuple[list[Case], np.ndarray]]:
        """Yield a batch of cases of one size, and their pictures as uint8 (B, height, width, 3)."""
        vae = self._frozen.vae or load_vae(self._config.vae_folder).to(self._frozen.device)
        for some in batches(cases, how.batch_size):
            latents_BCHW = self.latents(some, how) / self._frozen.scaling_factor
            decoded = [vae.decode(latent_CHW[None].to(vae.dtype)).sample.float() for latent_CHW in latents_BCHW]
            pixels_B3HW = (torch.cat(decoded) / 2 + 0.5).clamp(0.0, 1.0)
            yield some, (pixels_B3HW * 255.0).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def latents(self, cases: Sequence[Case], how: DrawConfig) -> torch.Tensor:
        """Return scaled latents of cases of one size, (B, C, H, W) in fp32."""
        scheduler, timesteps_T, first = self._schedule(how.sampler_steps)
        noise_BCHW = self._noise(cases, how.seed)
        if first == 0:
            latents_BCHW = noise_BCHW * scheduler.init_noise_sigma
        else:
            scheduler.set_begin_index(first)
            begin_B = timesteps_T[:1].repeat(len(cases))
            latents_BCHW = scheduler.add_noise(self._real(cases), noise_BCHW, begin_B)
        told = self._told(cases, guided=how.guidance > 1)
        for timestep in timesteps_T:
            prediction_BCHW = self._guided(scheduler.scale_model_input(latents_BCHW, timestep), timestep, told, how)
            latents_BCHW = scheduler.step(prediction_BCHW, timestep, latents_BCHW, return_dict=False)[0]
        return latents_BCHW

    def _schedule(self, steps: int) -> tuple[EulerDiscreteScheduler, torch.Tensor, int]:
        """Return the scheduler, its timesteps within the trained range, `steps` of them or nearly, and their place."""
        objective = self._config.objective
        trained = objective.timestep_high + 1
        assert steps < trained, "the settings refuse it: diffusers would repeat the last timestep"
        scheduler = EulerDiscreteScheduler(**sampler_schedule(objective))
        share = trained / objective.num_timesteps
        scheduler.set_timesteps(math.ceil(steps / share), device=self._frozen.device)
        first = int((scheduler.timesteps > objective.timestep_high).sum())
        return scheduler, scheduler.timesteps[first:], first

    def _noise(self, cases: Sequence[Case], seed: int) -> torch.Tensor:
        """Return each case's own noise, which does not depend on batch or rank."""
        factor, channels = self._frozen.latent_factor, self._config.unet.latent_channels
        noise = [
            torch.randn(
                (channels, *(side // factor for side in case.bucket_hw)),
                generator=torch.Generator().manual_seed(seed + case.number),
            )
            for case in cases
        ]
        return torch.stack(noise).to(self._frozen.device)

    def _real(self, cases: Sequence[Case]) -> torch.Tensor:
        """Return scaled latents of the cases' own pictures: the posterior's mean."""
        still = unchanged(self._config)
        rows = [case.row for case in cases if case.row is not None]
        parts = [read_pick(still, self._index, self._source, row, 0)[0] for row in rows]
        batch = collate(0, tuple(range(len(parts))), parts)
        moments_BCHW = self._frozen.moments(batch.arrays_BCHW.to(self._frozen.device))
        middle_BCHW = torch.zeros_like(moments_BCHW[:, : self._config.unet.latent_channels], dtype=torch.float32)
        return sample_latents(moments_BCHW, middle_BCHW, self._frozen.scaling_factor)

    def _told(self, cases: Sequence[Case], guided: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return text, pooled text and time ids; where `guided`, those of what is guided away from come first."""
        model, device = self._config.model, self._frozen.device
        text_BLD, pooled_BD = self._frozen.text([case.caption for case in cases])
        ids_BT = torch.tensor([case.time_ids(model) for case in cases], device=device)
        if not guided:
            return text_BLD, pooled_BD, ids_BT
        if self._config.objective.dropped_text == "zeros":
            no_text_BLD, no_pooled_BD = torch.zeros_like(text_BLD), torch.zeros_like(pooled_BD)
        else:
            no_text_BLD, no_pooled_BD = self._frozen.text([""] * len(cases))
        negative_BT = torch.tensor([case.time_ids(model, NEGATIVE_AESTHETIC_SCORE) for case in cases], device=device)
        return (
            torch.cat([no_text_BLD, text_BLD]),
            torch.cat([no_pooled_BD, pooled_BD]),
            torch.cat([negative_BT, ids_BT]),
        )

    def _guided(
        self,
        scaled_BCHW: torch.Tensor,
        timestep: torch.Tensor,
        told: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        how: DrawConfig,
    ) -> torch.Tensor:
        """Return without + guidance (with - without) (Ho and Salimans 2022, equation 6)."""
        if how.guidance <= 1:
            return self._predict(scaled_BCHW, timestep.repeat(len(scaled_BCHW)), *told)
        twice_BCHW = torch.cat([scaled_BCHW, scaled_BCHW])
        without_BCHW, with_BCHW = self._predict(twice_BCHW, timestep.repeat(len(twice_BCHW)), *told).chunk(2)
        return without_BCHW + how.guidance * (with_BCHW - without_BCHW)
