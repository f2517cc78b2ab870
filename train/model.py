"""The U-Net: diffusers' class and parameter layout, built from the settings.

Shape legend: B batch, C channels, H and W latent height and width, L tokens, D text width, T conditioning numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from curate.bad_input import BadInput
from train.config import TIME_IDS, TrainConfig

ORIGINAL_PREFIX = "model.diffusion_model."


def build_unet(config: TrainConfig) -> UNet2DConditionModel:
    """Return the fp32 U-Net to start from: a given one, or a fresh one with zero-initialised outputs."""
    if config.init_from is not None:
        return start_from(config, config.init_from)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        unet = UNet2DConditionModel(**unet_arguments(config))
    zero_outputs(unet)
    return unet


def meta_unet(config: TrainConfig) -> UNet2DConditionModel:
    """Return the U-Net without memory behind its parameters."""
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_arguments(config))


def unet_arguments(config: TrainConfig) -> dict[str, object]:
    """Return the arguments of diffusers' UNet2DConditionModel."""
    unet = config.unet
    return {
        "sample_size": unet.sample_size,
        "in_channels": unet.latent_channels,
        "out_channels": unet.latent_channels,
        "block_out_channels": tuple(unet.block_out_channels),
        "down_block_types": tuple(unet.down_block_types),
        "up_block_types": tuple(unet.up_block_types),
        "layers_per_block": unet.layers_per_block,
        "transformer_layers_per_block": list(unet.transformer_layers_per_block),
        "attention_head_dim": list(unet.attention_heads),  # diffusers' name for the number of heads
        "cross_attention_dim": unet.cross_attention_dim,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": unet.time_id_dim,
        "projection_class_embeddings_input_dim": unet.pooled_dim + TIME_IDS[config.model] * unet.time_id_dim,
        "norm_num_groups": unet.norm_groups,
    }


def zero_outputs(unet: UNet2DConditionModel) -> None:
    """Zero each residual branch's last layer and the final convolution, so that training from scratch starts calm."""
    for layer in output_layers(unet):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def output_layers(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    """Yield the second convolution of each res-block, the projection out of each transformer, the final convolution."""
    for module in unet.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            yield module.conv2
        elif kind == "Transformer2DModel":
            yield module.proj_out
    yield unet.conv_out


def predict(
    unet: nn.Module,
    dtype: torch.dtype,
    noisy_BCHW: torch.Tensor,
    timesteps_B: torch.Tensor,
    text_BLD: torch.Tensor,
    pooled_BD: torch.Tensor,
    time_ids_BT: torch.Tensor,
) -> torch.Tensor:
    """Return the prediction in fp32; `time_ids_BT` enters as fp32, since bf16 would round 1333 to 1336."""
    assert time_ids_BT.dtype == torch.float32
    output_BCHW = unet(
        noisy_BCHW.to(dtype),
        timesteps_B,
        encoder_hidden_states=text_BLD.to(dtype),
        added_cond_kwargs={"text_embeds": pooled_BD.to(dtype), "time_ids": time_ids_BT},
        return_dict=False,
    )[0]
    return output_BCHW.float()


def load_flat(unet: nn.Module, flat: torch.Tensor) -> None:
    """Fill the parameters, in their order, from one flat vector (whose tail may be padding)."""
    start = 0
    with torch.no_grad():
        for parameter in unet.parameters():
            stop = start + parameter.numel()
            parameter.copy_(flat[start:stop].view_as(parameter))
            start = stop


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Return the number of scalars."""
    return sum(parameter.numel() for parameter in parameters)


def start_from(config: TrainConfig, path: str) -> UNet2DConditionModel:
    """Return a published U-Net in fp32: a diffusers U-Net folder, a pipeline folder, or a single-file checkpoint.

    Raises FileNotFoundError where there is none, ValueError where its shape is not the configured one.
    """
    found = _single_file(config, path) if Path(path).is_file() else _diffusers_folder(config, path)
    unet = UNet2DConditionModel(**unet_arguments(config))
    wanted = unet.state_dict()
    names = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    )
    if names:
        raise BadInput(f"init_from = {path!r}: {len(names)} parameters differ from unet, first {names[0]}")
    unet.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return unet


def _diffusers_folder(config: TrainConfig, path: str) -> dict[str, torch.Tensor]:
    folder = next((each for each in (Path(path), Path(path) / "unet") if (each / "config.json").exists()), None)
    if folder is None:
        raise FileNotFoundError(f"init_from = {path!r}: neither a file nor a folder with a diffusers U-Net")
    _check_shape(config, path, json.loads((folder / "config.json").read_text()))
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    if not found:
        raise FileNotFoundError(f"init_from = {path!r}: no .safetensors in {folder}")
    return found


def _check_shape(config: TrainConfig, path: str, said: dict[str, Any]) -> None:
    """Raise BadInput where a folder's network computes something else with parameters of the same shapes."""
    for name, wanted in unet_arguments(config).items():
        found = said.get(name, wanted)
        if name != "sample_size" and json.loads(json.dumps(wanted)) != found:
            raise BadInput(f"init_from = {path!r}: its {name} is {found!r}, but unet asks for {wanted!r}")


def _single_file(config: TrainConfig, path: str) -> dict[str, torch.Tensor]:
    """Return the U-Net of a checkpoint in the layout of the original code, under diffusers' names."""
    if Path(path).suffix != ".safetensors":
        raise BadInput(f"init_from = {path!r}: a pickle runs code when it is read; convert it to .safetensors")
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(ORIGINAL_PREFIX)]  # noqa: SIM118
        if not names:
            raise BadInput(f"init_from = {path!r}: no weights named {ORIGINAL_PREFIX}*; is it an SDXL checkpoint?")
        original = {name: file.get_tensor(name) for name in names}
    return convert_ldm_unet_checkpoint(original, unet_arguments(config))
