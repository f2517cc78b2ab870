"""What one micro-batch costs, counted by running the real network on tensors without memory.

Shape legend: B batch, C channels, H and W latent height and width, L tokens, D text width.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import open_clip
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from curate.clip import architecture_name
from train.autoencoder import SDXL_VAE
from train.channels_last import keep_channels_last
from train.config import TIME_IDS, TrainConfig
from train.model import unet_arguments
from train.precision import DTYPES
from train.speed import Recomputed
from train.switches import recompute

TOKENS = 77
ATTENTION_OF_A_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Kernels that some releases of torch have no formula for, and those that compute the same."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Forward and backward of one image; bytes beside the weights, which every image adds again."""

    saved_bytes: int
    """Held between forward and backward: what the backward pass needs."""
    peak_bytes: int
    """Most that is held at a time beside the weights' gradients."""
    forward_flops: int
    """Floating-point operations of the forward pass, two for each multiply-add."""
    all_flops: int
    """Forward and backward, with what is computed again."""
    fixed_bytes: int = 0
    """Held beside, however many images there are: convolutions' weights laid out anew."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make for as long as they live."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet[Any]()
        self._kept = [parameter.untyped_storage() for parameter in known.parameters()]
        self._seen.update(self._kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returns."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class Operations(TorchDispatchMode):
    """Counts floating-point operations by torch's formulas; its FlopCounterMode keeps tensors from being let go."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add what its formula gives for these shapes."""
        made = func(*args, **(kwargs or {}))
        counted = ATTENTION_OF_A_CPU.get(func.overloadpacket, func.overloadpacket)
        if counted in flop_registry:
            self.total += flop_registry[counted](*args, **(kwargs or {}), out_val=made)
        return made


def count_unet(config: TrainConfig, recomputed: Recomputed, latent_hw: tuple[int, int] | None = None) -> Counted:
    """Return what one image costs, of `sample_size` or another; attention is counted as the fused kernels do it.

    With `speed.fused_kernels` it is what a second image adds: the first one brings what is fixed.
    """
    with FakeTensorMode():
        one = count(build(config, recomputed), inputs(config, 1, latent_hw))
        if not config.speed.fused_kernels:
            return one
        two = count(build(config, recomputed), inputs(config, 2, latent_hw))
    added = Counted(**{name: vars(two)[name] - vars(one)[name] for name in vars(one)})
    return replace(added, fixed_bytes=one.peak_bytes - added.peak_bytes)


def build(config: TrainConfig, recomputed: Recomputed) -> UNet2DConditionModel:
    """Return the U-Net in the precision of the training; inside FakeTensorMode it takes no memory."""
    with _default_dtype(DTYPES[config.precision]):
        unet = UNet2DConditionModel(**unet_arguments(config)).train()
    if recomputed != "none":
        recompute(unet, recomputed)
    if config.speed.fused_kernels:
        from train.fused.blocks import fuse_blocks  # Triton comes with torch for CUDA only

        keep_channels_last(unet)
        fuse_blocks(unet)
    return unet


def inputs(config: TrainConfig, batch: int, latent_hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return a batch of zeros in the shapes of the training; squares of `sample_size` where no size is given."""
    unet, dtype = config.unet, DTYPES[config.precision]
    height, width = latent_hw or (unet.sample_size, unet.sample_size)
    return {
        "sample": torch.zeros(batch, unet.latent_channels, height, width, dtype=dtype),
        "timestep": torch.zeros(batch, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(batch, TOKENS, unet.cross_attention_dim, dtype=dtype),
        "added_cond_kwargs": {
            "text_embeds": torch.zeros(batch, unet.pooled_dim, dtype=dtype),
            "time_ids": torch.zeros(batch, TIME_IDS[config.model]),
        },
    }


def count(unet: nn.Module, batch: dict[str, Any]) -> Counted:
    """Run forward and backward once and return what was held and computed."""
    for parameter in unet.parameters():
        parameter.register_post_accumulate_grad_hook(_let_go)
    with Operations() as operations, LiveBytes(unet) as live:
        loss = unet(**batch, return_dict=False)[0].float().square().mean()
        forward_flops, saved_bytes = operations.total, live.now
        loss.backward()
    return Counted(
        saved_bytes=saved_bytes,
        peak_bytes=live.peak,
        forward_flops=forward_flops,
        all_flops=operations.total,
    )


def text_parameters(config: TrainConfig) -> tuple[int, int]:
    """Return the parameters of the text towers, and those that every token is multiplied with."""
    whole = multiplied = 0
    for tower in config.text_towers:
        with torch.device("meta"):
            clip = open_clip.CLIP(**open_clip.get_model_config(architecture_name(tower.architecture)))
        clip.visual = None
        whole += sum(parameter.numel() for parameter in clip.parameters())
        multiplied += sum(parameter.numel() for parameter in clip.transformer.parameters())
    return whole, multiplied


def count_encoder(side_px: int) -> tuple[int, int, int]:
    """Return the parameters of SDXL's autoencoder, the operations of encoding a picture, and the most bytes held."""
    with FakeTensorMode(), torch.no_grad(), _default_dtype(torch.bfloat16):
        vae = AutoencoderKL(**SDXL_VAE).eval()
        with Operations() as operations, LiveBytes(vae) as live:
            vae.encode(torch.zeros(1, 3, side_px, side_px))
        parameters = sum(parameter.numel() for parameter in vae.parameters())
    return parameters, operations.total, live.peak


def _let_go(parameter: torch.Tensor) -> None:
    parameter.grad = None


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
