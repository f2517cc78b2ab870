"""What the settings' `speed` does to a U-Net, before DeepSpeed takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curate.bad_input import BadInput
from curate.config import require
from train.channels_last import keep_channels_last
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


def apply_switches(
    unet: nn.Module, speed: SpeedConfig, device: torch.device, *, num_buckets: int = 1, backend: str = "inductor"
) -> None:
    """Change the U-Net in place; raises ValueError where a switch cannot hold on this device or these data."""
    check_switches(speed, device, num_buckets)
    if speed.activation_checkpointing != "none":
        recompute(unet, speed.activation_checkpointing)
    if speed.attention != "auto":
        unet.set_attn_processor(ChosenAttention(BACKENDS[speed.attention]))
    if speed.fused_geglu:
        fuse_geglu(unet)
    if speed.channels_last:
        keep_channels_last(unet)
    if speed.compile:
        compile_blocks(unet, backend, cuda_graphs=speed.cuda_graphs)


def check_switches(speed: SpeedConfig, device: torch.device, num_buckets: int = 1) -> None:
    """Raise ValueError for what this device, or data of so many aspect buckets, does not allow."""
    on_gpu = device.type == "cuda"
    fits = on_gpu or speed.attention in ("auto", *CPU_BACKENDS)
    require(fits, "speed.attention", speed.attention, f"needs a GPU; a CPU has {', '.join(CPU_BACKENDS)}")
    require(on_gpu or not speed.cuda_graphs, "speed.cuda_graphs", speed.cuda_graphs, "needs a GPU")
    require(on_gpu or not speed.fused_geglu, "speed.fused_geglu", speed.fused_geglu, "needs a GPU")
    if speed.cuda_graphs and num_buckets > 1:
        raise BadInput(
            f"speed.cuda_graphs = True: each of the {num_buckets} aspect buckets would keep graphs and memory of its"
            " own; export one bucket, or set it to false"
        )


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
    return checkpoint(module.__call__, *args, use_reentrant=False)


def fuse_geglu(unet: nn.Module) -> None:
    """Put the fused kernel in the place of diffusers' GEGLU."""
    from train.fused_geglu import FusedGeglu

    for module in list(unet.modules()):
        if isinstance(module, FeedForward) and isinstance(module.net[0], GEGLU):
            module.net[0] = FusedGeglu(module.net[0].proj)


def compile_blocks(unet: nn.Module, backend: str = "inductor", *, cuda_graphs: bool = False) -> None:
    """Compile each transformer block and res-block by itself; blocks of the same shape share the code."""
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_BLOCK
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # never on the slow path without a word
    mode = {"mode": "reduce-overhead"} if cuda_graphs else {}
    for module in unet.modules():
        if type(module).__name__ in COMPILED:
            module.compile(backend=backend, fullgraph=True, **mode)
        elif type(module).__name__ == TRANSFORMER:
            for name in AROUND_THE_BLOCKS:
                setattr(module, name, torch.compile(getattr(module, name), backend=backend, fullgraph=True, **mode))


class ChosenAttention(AttnProcessor2_0):
    """diffusers' attention with one kernel; in the module, so that a recomputed block takes the same one."""

    def __init__(self, backend: SDPBackend) -> None:
        super().__init__()
        self._backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with sdpa_kernel(self._backend):
            return super().__call__(*args, **kwargs)
