"""What the settings' `speed` does to a U-Net, before DeepSpeed takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curate.config import require
from train.channels_last import keep_channels_last
from train.graphs import replay_graphs
from train.speed import SpeedConfig

TRANSFORMER, TRANSFORMER_BLOCK, RES_BLOCK = "Transformer2DModel", "BasicTransformerBlock", "ResnetBlock2D"
COMPILED = (TRANSFORMER_BLOCK, RES_BLOCK)
AROUND_THE_BLOCKS = ("_operate_on_continuous_inputs", "_get_output_for_continuous_inputs")
"""What a transformer does before and after its blocks: norm, layout and projection, on pixels and on tokens."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
CPU_BACKENDS = ("flash", "math")
GRAPHS_OF_A_BLOCK = 200
"""Variants of one block's code (widths, symbolic sizes, training or not) that may be compiled; beyond is an error."""


def apply_switches(unet: nn.Module, speed: SpeedConfig, device: torch.device, *, backend: str = "inductor") -> None:
    """Change the U-Net in place; raises ValueError where a switch cannot hold on this device."""
    check_switches(speed, device)
    if speed.activation_checkpointing != "none":
        recompute(unet, speed.activation_checkpointing)
    if speed.attention != "auto":
        unet.set_attn_processor(ChosenAttention(BACKENDS[speed.attention]))
    if speed.channels_last:
        keep_channels_last(unet)
    if speed.fused_kernels:
        from train.fused.blocks import fuse_blocks  # Triton comes with torch for CUDA only

        fuse_blocks(unet, BACKENDS.get(speed.attention))
    if speed.compile:
        compile_blocks(unet, backend)
    if speed.cuda_graphs:
        replay_graphs(unet)


def check_switches(speed: SpeedConfig, device: torch.device) -> None:
    """Raise ValueError for what this device does not allow."""
    on_gpu = device.type == "cuda"
    fits = on_gpu or speed.attention in ("auto", *CPU_BACKENDS)
    require(fits, "speed.attention", speed.attention, f"needs a GPU; set it to auto, {' or '.join(CPU_BACKENDS)}")
    for name in ("cuda_graphs", "fused_kernels"):
        fix = "needs a GPU; set it to false"
        require(on_gpu or not getattr(speed, name), f"speed.{name}", getattr(speed, name), fix)


def recompute(unet: nn.Module, blocks: str) -> None:
    """Recompute blocks in the backward pass: diffusers' own checkpointing, switched on for some modules only."""
    chosen = list(_to_recompute(unet, blocks))
    assert chosen, f"no block of this network is recomputed by {blocks}"
    for module in chosen:
        module.gradient_checkpointing = True
        module._gradient_checkpointing_func = _checkpointed


def _to_recompute(unet: nn.Module, blocks: str) -> Iterator[nn.Module]:
    transformers = [module for module in unet.modules() if type(module).__name__ == TRANSFORMER]
    widest = max(module.inner_dim for module in transformers)
    if blocks == "all":
        return (module for module in unet.modules() if hasattr(module, "gradient_checkpointing"))
    return (module for module in transformers if blocks == "transformers" or module.inner_dim == widest)


def _checkpointed(module: nn.Module, *args: Any) -> Any:
    return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)  # no dropout anywhere


def compile_blocks(unet: nn.Module, backend: str = "inductor") -> None:
    """Compile each transformer block and res-block by itself; blocks of the same shape share the code."""
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_BLOCK
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # never on the slow path without a word
    for module in unet.modules():
        if type(module).__name__ in COMPILED:
            module.compile(backend=backend, fullgraph=True)
        elif type(module).__name__ == TRANSFORMER:
            for name in AROUND_THE_BLOCKS:
                setattr(module, name, torch.compile(getattr(module, name), backend=backend, fullgraph=True))


class ChosenAttention(AttnProcessor2_0):
    """diffusers' attention with one kernel; in the module, so that a recomputed block takes the same one."""

    def __init__(self, backend: SDPBackend) -> None:
        super().__init__()
        self._backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with sdpa_kernel(self._backend):
            return super().__call__(*args, **kwargs)
