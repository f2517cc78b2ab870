"""The U-Net: diffusers' class and parameter layout, built from the settings.

Shape legend: B batch, C channels, H and W latent height and width, L tokens, D text width, T conditioning numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from train.config import TIME_IDS, TrainConfig


def build_unet(config: TrainConfig) -> UNet2DConditionModel:
    """Return the fp32 U-Net to start from: a given one, or a fresh one with zero-initialised outputs."""
    if config.init_from is not None:
        return _from_folder(config)
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
    noisy_BCHW: torch.Tensor,
    timesteps_B: torch.Tensor,
    text_BLD: torch.Tensor,
    pooled_BD: torch.Tensor,
    time_ids_BT: torch.Tensor,
    dtype: torch.dtype,
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


def _from_folder(config: TrainConfig) -> UNet2DConditionModel:
    """Load a diffusers U-Net; raises ValueError where its shape is not the configured one."""
    unet = UNet2DConditionModel.from_pretrained(config.init_from, torch_dtype=torch.float32)
    wanted = {name: tuple(p.shape) for name, p in meta_unet(config).named_parameters()}
    found = {name: tuple(p.shape) for name, p in unet.named_parameters()}
    if wanted != found:
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(
            f"init_from = {config.init_from!r}: {len(names)} parameters differ from unet, first {names[0]}"
        )
    return unet
