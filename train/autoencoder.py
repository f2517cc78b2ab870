"""The autoencoder between pictures and latents: load, identify, encode, decode, and fit a small one.

Shape legend: B batch, C channels, H and W height and width in px, h and w in latent pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from curate.bad_input import BadInput
from curate.config import require
from curate.weights import path_of, registry


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a small autoencoder is fitted."""

    steps: int = 300
    """Optimiser steps."""
    seed: int = 0
    """Seed of the weights and of the posterior samples."""
    batch_size: int = 8
    """Pictures of one step; larger batches are split."""
    lr_peak: float = 3e-3
    """Learning rate after the warm-up; it falls to 0 along a cosine."""
    block_out_channels: tuple[int, ...] = (16, 32, 64)
    """Channels of each level; each level but the last halves the picture."""
    latent_channels: int = 4
    """Channels of the latent."""
    kl_weight: float = 1e-6
    """Weight of the divergence from a standard normal."""
    anchor_weight: float = 1.0
    """Weight that ties the first three latent channels to the shrunken picture: smooth latents, learnt at once."""

    def __post_init__(self) -> None:
        require(self.steps > 0, "fit.steps", self.steps, "must be at least 1")
        require(self.latent_channels >= 3, "fit.latent_channels", self.latent_channels, "must be at least 3")


ENCODING = "mean and log-variance of pixels / 127.5 - 1, not scaled, float16, mirrored before encoding; 1"
"""What the code of `pixels` and `encode_moments` does; its number is raised when that changes."""

SDXL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
"""The published autoencoder of SDXL, 83.65 M parameters."""


def load_vae(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> AutoencoderKL:
    """Return a frozen autoencoder in eval mode: SDXL's by its name in infra/weights.yaml, or a diffusers folder.

    A folder may be an fsspec URL. Raises MissingWeights where registered weights are absent, and
    FileNotFoundError where a folder holds no autoencoder.
    """
    vae = _registered(name) if name in registry() else _of_folder(name)
    vae = vae.to(device) if dtype == torch.float32 else vae.to(device=device, dtype=dtype)
    return vae.eval().requires_grad_(False)


def _registered(name: str) -> AutoencoderKL:
    vae = AutoencoderKL(**SDXL_VAE)
    vae.load_state_dict(load_file(path_of(name)))
    return vae


def _of_folder(folder: str) -> AutoencoderKL:
    fs, path = fsspec.core.url_to_fs(folder)
    if not fs.exists(f"{path}/config.json"):
        told = "no config.json there; expected a diffusers AutoencoderKL folder or a name of infra/weights.yaml"
        raise FileNotFoundError(f"vae = {folder!r}: {told}")
    with tempfile.TemporaryDirectory() as local:
        source = path if "file" in fs.protocol else local
        if source == local:
            fs.get(f"{path}/", f"{local}/", recursive=True)
        return AutoencoderKL.from_pretrained(source, low_cpu_mem_usage=False)


def fingerprint(vae: AutoencoderKL) -> str:
    """Return the sha256 over configuration and weights (as fp32, so that the working precision does not matter)."""
    config = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def latent_facts(vae: AutoencoderKL) -> dict[str, Any]:
    """Return what decides the moments of a picture: the autoencoder, its scale and the version of this code."""
    return {
        "vae_fingerprint": fingerprint(vae),
        "scaling_factor": float(vae.config.scaling_factor),
        "latent_factor": latent_factor(vae),
        "encoding": ENCODING,
    }


def latent_factor(vae: AutoencoderKL) -> int:
    """Return the pixels of a picture for each latent pixel, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def check_latents(root: str, vae: AutoencoderKL) -> None:
    """Raise ValueError where cached latents come from another autoencoder or other code than the configured one."""
    path = f"{root}/latents/run.json"
    try:
        with fsspec.open(path, "rt") as file:
            run = json.load(file)
    except FileNotFoundError:
        told = "not there; encode the latents (python pipelines/encode.py), or set source to images"
        raise FileNotFoundError(f"{path}: {told}") from None
    if run.get("unfinished"):
        told = (
            "the latents of before were being replaced and are of two kinds; run python pipelines/encode.py to its end"
        )
        raise BadInput(f"{path}: unfinished: {told}")
    for name, wanted in latent_facts(vae).items():
        if run.get(name) != wanted:
            raise BadInput(
                f"{root}/latents: {name} is {run.get(name)!r}, but the configured vae has {wanted!r};"
                " encode the latents again (python pipelines/encode.py), or name the vae they were made with"
            )


def pixels(image: Image.Image) -> torch.Tensor:
    """Return a picture as CHW in -1..1."""
    array_HWC = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array_HWC).permute(2, 0, 1).contiguous() / 127.5 - 1.0


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, pixels_BCHW: torch.Tensor) -> np.ndarray:
    """Return the posterior's mean and log-variance, stacked in the channels and not scaled, as float16."""
    return moments(vae, pixels_BCHW).cpu().numpy().astype(np.float16)


@torch.no_grad()
def moments(vae: AutoencoderKL, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the posterior's mean and log-variance (B, 2C, h, w), not scaled, in fp32 on the vae's device."""
    posterior = vae.encode(pixels_BCHW.to(device=vae.device, dtype=vae.dtype)).latent_dist
    return posterior.parameters.float()


@torch.no_grad()
def reconstruction_psnr_db(vae: AutoencoderKL, batches: Iterable[torch.Tensor]) -> float:
    """Return the peak signal-to-noise ratio of decode(mean of encode) over all pictures, in decibels."""
    squared_error, count = 0.0, 0
    for pixels_BCHW in batches:
        decoded_BCHW = vae.decode(vae.encode(pixels_BCHW).latent_dist.mode()).sample.clamp(-1.0, 1.0)
        squared_error += float((decoded_BCHW - pixels_BCHW).square().sum()) / 4.0  # the range -1..1 as 0..1
        count += pixels_BCHW.numel()
    return -10.0 * math.log10(max(squared_error / count, 1e-12))


def fit(
    batches: Iterable[torch.Tensor], settings: FitConfig, after_step: Callable[[int], None] = lambda done: None
) -> AutoencoderKL:
    """Return a small autoencoder fitted on pictures in -1..1 whose scaled latents have unit deviation.

    `batches` yields (B, C, H, W) tensors and is read again from its start when it ends; it may be a list.
    `after_step` is called with the number of steps that are done. Raises ValueError where it yields nothing.
    """
    batches = [piece for batch_BCHW in batches for piece in batch_BCHW.split(settings.batch_size)]
    if not batches:
        raise BadInput("fit: no pictures to fit the autoencoder on")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vae = _fresh(settings)
        optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.lr_peak, betas=(0.9, 0.99), weight_decay=1e-4)
        for step, pixels_BCHW in zip(range(settings.steps), _repeat(batches, settings.seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr_peak * _one_cycle(step, settings.steps)
            optimizer.zero_grad(set_to_none=True)
            _loss(vae, pixels_BCHW, settings).backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            after_step(step + 1)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=_scaling_factor(vae, batches))
    return vae


def _loss(vae: AutoencoderKL, pixels_BCHW: torch.Tensor, settings: FitConfig) -> torch.Tensor:
    """Reconstruction, divergence from a standard normal, and the distance of the latent from the shrunken picture."""
    posterior = vae.encode(pixels_BCHW).latent_dist
    decoded_BCHW = vae.decode(posterior.sample()).sample
    reconstruction = F.l1_loss(decoded_BCHW, pixels_BCHW) + F.mse_loss(decoded_BCHW, pixels_BCHW)
    shrunken_BChw = F.adaptive_avg_pool2d(pixels_BCHW, posterior.mean.shape[-2:])
    anchor = F.mse_loss(posterior.mean[:, :3], shrunken_BChw)
    return reconstruction + settings.kl_weight * posterior.kl().mean() + settings.anchor_weight * anchor


def _fresh(settings: FitConfig) -> AutoencoderKL:
    levels = len(settings.block_out_channels)
    vae = AutoencoderKL(
        block_out_channels=settings.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=64,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    with torch.no_grad():  # a narrow posterior from the start: the wide one of log-variance 0 drowns the picture
        vae.quant_conv.bias[settings.latent_channels :] = -6.0
    return vae


def _repeat(batches: list[torch.Tensor], seed: int) -> Iterator[torch.Tensor]:
    """Yield the batches again and again, each time in another order and half of them mirrored."""
    rng = np.random.default_rng(seed)
    while True:
        for place in rng.permutation(len(batches)):
            yield batches[place].flip(-1) if rng.random() < 0.5 else batches[place]


def _one_cycle(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / max(1, steps // 20))
    return warmup * 0.5 * (1.0 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, batches: list[torch.Tensor]) -> float:
    """Return one over the deviation of the latents about zero."""
    squares = [vae.encode(pixels_BCHW).latent_dist.mean.square().flatten() for pixels_BCHW in batches]
    return round(1.0 / float(torch.cat(squares).mean().sqrt()), 6)


def save_vae(vae: AutoencoderKL, folder: Path) -> None:
    """Write the diffusers folder."""
    vae.save_pretrained(folder, safe_serialization=True)
