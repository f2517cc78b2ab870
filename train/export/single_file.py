"""One .safetensors file with the weights under the names of SDXL's original code.

The names are those that sgm's DiffusionEngine gives (Stability AI's generative-models, sd_xl_base.yaml and
sd_xl_refiner.yaml of configs/inference): the U-Net below `model.diffusion_model.`, the autoencoder below
`first_stage_model.`, the text towers below `conditioner.embedders.<n>.`, the CLIP-L of the base in transformers' layout
and bigG in open_clip's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

UNET, AUTOENCODER, CONDITIONER = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders."
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ARCHITECTURES = {"base": "stable-diffusion-xl-v1-base", "refiner": "stable-diffusion-xl-v1-refiner"}

UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_weights(unet: nn.Module, vae: nn.Module, towers: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Return every weight of a network under its original name; `towers` as `text_parts` gives them."""
    return (
        {f"{UNET}{name}": tensor for name, tensor in unet_weights(unet).items()}
        | {f"{AUTOENCODER}{name}": tensor for name, tensor in autoencoder_weights(vae).items()}
        | {f"{CONDITIONER}{name}": tensor for name, tensor in tower_weights(towers)}
    )


def text_parts(text_encoder: nn.Module | None, last_tower: nn.Module) -> dict[str, nn.Module]:
    """Return the towers by their place: transformers' CLIP-L (None for the refiner) and the last one of open_clip."""
    if text_encoder is None:
        return {"0.model.": last_tower}
    return {"0.transformer.": text_encoder, "1.model.": last_tower}


def write(path: Path, weights: dict[str, torch.Tensor], precision: str, told: dict[str, str]) -> None:
    """Write the file; floating-point weights are rounded to fp32, bf16 or fp16, and `told` becomes its metadata."""
    save_file({name: rounded(tensor, precision) for name, tensor in weights.items()}, path, {"format": "pt"} | told)


def rounded(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """Return the tensor as the file holds it."""
    kept = tensor.detach().contiguous()
    return kept.to(DTYPES[precision]) if kept.is_floating_point() else kept


def facts(config: Any) -> dict[str, str]:
    """Return the file's metadata, under the names of Stability AI's model metadata specification (modelspec)."""
    side_px = config.unet.sample_size * 8
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[config.model],
        "modelspec.implementation": "sgm",
        "modelspec.title": f"SDXL {config.model} trained with Darkroom",
        "modelspec.resolution": f"{side_px}x{side_px}",
        "modelspec.prediction_type": config.objective.prediction,
    }


def unet_weights(unet: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a diffusers U-Net under the names of sgm's UNetModel."""
    weights = unet.state_dict()
    blocks = UNET_ENDS | _unet_blocks(weights)
    named = {}
    for name, tensor in weights.items():
        ours, theirs = _block_of(blocks, name)
        inner = name.removeprefix(ours)
        part, _, rest = inner.partition(".")
        named[theirs + (f"{RESNET[part]}.{rest}" if ".resnets." in ours else inner)] = tensor
    return named


def autoencoder_weights(vae: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a diffusers AutoencoderKL under the names of the original one."""
    return {_autoencoder_name(vae, name): _as_convolution(name, tensor) for name, tensor in vae.state_dict().items()}


def tower_weights(towers: Mapping[str, nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tower's weights; transformers' layout keeps its `text_model.` and its counted positions."""
    for place, tower in towers.items():
        for name, tensor in tower.state_dict().items():
            inside = place.endswith("transformer.") and not name.startswith("text_model.")
            yield f"{place}{'text_model.' if inside else ''}{name}", tensor
        if place.endswith("transformer."):
            positions = torch.arange(tower.config.max_position_embeddings)[None]
            yield f"{place}text_model.embeddings.position_ids", positions


def _unet_blocks(weights: Mapping[str, Any]) -> dict[str, str]:
    """Return where each block of diffusers begins in the original numbering: level by level, down- and upsamplers last.

    `input_blocks` counts the first convolution, then the layers and the downsampler of each level; `output_blocks` the
    layers of each level, of which the last one also holds the upsampler.
    """
    layers = _count(weights, "down_blocks.0.resnets.")
    blocks = {"mid_block.resnets.0.": "middle_block.0.", "mid_block.resnets.1.": "middle_block.2."}
    blocks["mid_block.attentions.0."] = "middle_block.1."
    for level in range(_count(weights, "down_blocks.")):
        first = level * (layers + 1)
        for layer in range(layers + 1):
            blocks[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{first + layer + 1}.0."
            blocks[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{first + layer + 1}.1."
            blocks[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{first + layer}.0."
            blocks[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{first + layer}.1."
        attends = any(name.startswith(f"up_blocks.{level}.attentions.") for name in weights)
        blocks[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{first + layers + 1}.0.op."
        blocks[f"up_blocks.{level}.upsamplers.0."] = f"output_blocks.{first + layers}.{1 + attends}."
    return blocks


def _autoencoder_name(vae: nn.Module, name: str) -> str:
    """Return the original name: `up` is counted from the pixels, and attention and shortcuts are called otherwise."""
    levels = len(vae.config.block_out_channels)
    half, *parts = name.split(".")
    if parts[0] == "up_blocks":
        parts[1] = str(levels - 1 - int(parts[1]))
    joined = ".".join([half, *parts])
    if ".mid_block.attentions.0." in joined:
        for ours, theirs in ATTENTION.items():
            joined = joined.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
    for layer in range(2):
        joined = joined.replace(f"mid_block.resnets.{layer}.", f"mid.block_{layer + 1}.")
    for ours, theirs in (
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("down_blocks.", "down."),
        ("up_blocks.", "up."),
        (".resnets.", ".block."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        joined = joined.replace(ours, theirs)
    return joined


def _as_convolution(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the attention's matrices as 1 x 1 convolutions, which they are in the original."""
    return tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor


def _block_of(blocks: Mapping[str, str], name: str) -> tuple[str, str]:
    found = [ours for ours in blocks if name.startswith(ours)]
    assert len(found) == 1, f"{name}: {found}"
    return found[0], blocks[found[0]]


def _count(weights: Mapping[str, Any], prefix: str) -> int:
    """Return how many different numbers follow a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
