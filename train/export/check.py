"""What was exported, loaded back and compared with what was trained.

Shape legend: B batch, C channels, H and W latent height and width, h and w in px, L tokens, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from train.config import TIME_IDS, TrainConfig
from train.export.exported import load_pipeline, load_single_file
from train.export.single_file import rounded
from train.model import start_from

TEXT_TOLERANCE = 1e-4
"""Largest difference of text embeddings: open_clip and transformers do the same sums in another order."""
CAPTIONS = ["a photograph of a cat, sitting on a red chair", ""]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """One forward pass of each network."""

    text_BLD: torch.Tensor
    pooled_BD: torch.Tensor
    prediction_BCHW: torch.Tensor
    pixels_BChw: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a comparison found."""

    agrees: bool
    """Whether the loaded networks compute what they should."""
    line: str
    """What was compared, for people."""


def reference(config: TrainConfig, pipeline: Any, text: Any) -> Outputs:
    """Return the outputs before anything was written; the text is that of the open_clip towers of the training."""
    text_BLD, pooled_BD = text(CAPTIONS)
    return Outputs(
        text_BLD=text_BLD,
        pooled_BD=pooled_BD,
        prediction_BCHW=predict(config, pipeline.unet, text_BLD, pooled_BD),
        pixels_BChw=decode(config, pipeline.vae),
    )


def check_folder(config: TrainConfig, folder: Path, wanted: Outputs) -> Check:
    """Load the diffusers folder; every output must be equal, the text to `TEXT_TOLERANCE`."""
    pipeline = load_pipeline(config.model, folder)
    unet, text, decoder = differences(config, pipeline, wanted)
    told = f"U-Net output differs by {unet:g}, text encoder output by {text:.1e}"
    return Check(
        agrees=unet == 0.0 and decoder == 0.0 and text <= TEXT_TOLERANCE,
        line=f"loaded back by {type(pipeline).__name__}: {told}",
    )


def check_single_file(
    config: TrainConfig, path: Path, wanted: Outputs, weights: dict[str, torch.Tensor], precision: str
) -> Check:
    """Load the file with diffusers and as `init_from`; both must predict the same, in fp32 what was trained.

    In half precision the outputs may differ by the rounding of the weights, and that is all: the file must hold each
    weight as it is rounded.
    """
    pipeline = load_single_file(config.model, path)
    unet, text, decoder = differences(config, pipeline, wanted)
    theirs_BCHW = predict(config, pipeline.unet, wanted.text_BLD, wanted.pooled_BD)
    name = type(pipeline).__name__
    del pipeline
    ours_BCHW = predict(config, start_from(config, str(path)), wanted.text_BLD, wanted.pooled_BD)
    apart = largest(ours_BCHW, theirs_BCHW)
    exact = precision != "fp32" or (unet == 0.0 and decoder == 0.0 and text <= TEXT_TOLERANCE)
    return Check(
        agrees=exact and apart == 0.0 and holds(path, weights, precision),
        line=(
            f"{path.name} ({precision}) by {name}.from_single_file: U-Net output differs by {unet:g}, text encoder"
            f" output by {text:.1e}; by init_from: by {largest(ours_BCHW, wanted.prediction_BCHW):g}"
        ),
    )


def differences(config: TrainConfig, pipeline: Any, wanted: Outputs) -> tuple[float, float, float]:
    """Return the largest differences of the U-Net's, the text encoders' and the decoder's outputs."""
    with torch.no_grad():
        text_BLD, _, pooled_BD, _ = pipeline.encode_prompt(
            CAPTIONS, do_classifier_free_guidance=False, device="cpu", num_images_per_prompt=1
        )
    return (
        largest(predict(config, pipeline.unet, wanted.text_BLD, wanted.pooled_BD), wanted.prediction_BCHW),
        max(largest(text_BLD, wanted.text_BLD), largest(pooled_BD, wanted.pooled_BD)),
        largest(decode(config, pipeline.vae), wanted.pixels_BChw),
    )


def holds(path: Path, weights: dict[str, torch.Tensor], precision: str) -> bool:
    """Return whether the file holds each weight as it is rounded, and nothing else."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        return names == weights.keys() and all(
            torch.equal(file.get_tensor(name), rounded(tensor, precision)) for name, tensor in weights.items()
        )


@torch.no_grad()
def predict(config: TrainConfig, unet: Any, text_BLD: torch.Tensor, pooled_BD: torch.Tensor) -> torch.Tensor:
    """Return the U-Net's output for fixed noise at the largest timestep that was trained."""
    batch = len(text_BLD)
    return unet(
        sample=_noise(config, batch),
        timestep=torch.full((batch,), config.objective.timestep_high),
        encoder_hidden_states=text_BLD,
        added_cond_kwargs={
            "text_embeds": pooled_BD,
            "time_ids": torch.full((batch, TIME_IDS[config.model]), 513.0),
        },
        return_dict=False,
    )[0]


@torch.no_grad()
def decode(config: TrainConfig, vae: Any) -> torch.Tensor:
    """Return what the autoencoder makes of a corner of the same noise, at most 16 latent pixels wide."""
    return vae.decode(_noise(config, 1)[:, :, :16, :16]).sample


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    return float((a - b).abs().max())


def _noise(config: TrainConfig, batch: int) -> torch.Tensor:
    unet = config.unet
    shape = (batch, unet.latent_channels, unet.sample_size, unet.sample_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
