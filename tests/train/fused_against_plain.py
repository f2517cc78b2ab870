"""Compare a fused operation, or the blocks that use them all, with plain torch: values and every gradient.

python -m tests.train.fused_against_plain geglu|layer_norm|group_norm|add_bias|blocks, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F

from train.channels_last import keep_channels_last
from train.engine import World
from train.fused.add_bias import add_bias
from train.fused.blocks import fuse_blocks
from train.fused.geglu import geglu
from train.fused.group_norm import group_norm
from train.fused.layer_norm import add_layer_norm, layer_norm
from train.recipes import base
from train.self_test import losses, small_config, small_unet
from train.switches import recompute

EPS, TOLERANCE = 1e-5, 2e-6
"""Largest difference relative to the largest number."""
RANDOM = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM)


def compare(fused: Callable, plain: Callable, *inputs: torch.Tensor | None) -> None:
    """Fail where outputs or gradients differ; the gradients that come in are random."""
    taken = [[None if each is None else each.clone().requires_grad_() for each in inputs] for _ in range(2)]
    outputs = [function(*each) for function, each in zip((fused, plain), taken, strict=True)]
    upstream = [normal(*each.shape) for each in outputs[1]]
    for output in outputs:
        torch.autograd.backward(output, upstream)
    for found, wanted in zip(*outputs, strict=True):
        close(found, wanted)
    for found, wanted in zip(*taken, strict=True):
        if wanted is not None:
            close(found.grad, wanted.grad)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    off = float((found - wanted).detach().abs().max() / wanted.detach().abs().max())
    assert off <= TOLERANCE, f"{off} of the largest number"


def compare_geglu() -> None:
    """Widths below a block, of one whole block, and of one and a part; rows of one program and of two."""

    def plain(projected: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:
        value, gate = (projected + bias).chunk(2, dim=-1)
        return (value * F.gelu(gate),)

    for width, rows in itertools.product((40, 512, 700), (3, 35)):
        compare(lambda *inputs: (geglu(*inputs),), plain, normal(2, rows, 2 * width), normal(2 * width))


def compare_layer_norm() -> None:
    """Widths of SDXL and a narrow one; more rows than programs."""
    for width, rows in ((40, 600), (640, 7), (1280, 7)):
        plain = lambda x, gain, shift: (F.layer_norm(x, gain.shape, gain, shift, EPS),)  # noqa: E731
        compare(lambda *x: (layer_norm(*x, EPS)[0],), plain, normal(2, rows, width), normal(width), normal(width))

        def added(branch, bias, residual, gain, shift):
            summed = branch + bias + residual
            return summed, F.layer_norm(summed, gain.shape, gain, shift, EPS)

        inputs = normal(2, rows, width), normal(width), normal(2, rows, width), normal(width), normal(width)
        compare(lambda *x: add_layer_norm(*x, EPS)[:2], added, *inputs)


def compare_group_norm() -> None:
    """Groups of 2 to 12 channels, 1 to 41 chunks, also broken ones, means far from zero, each addition or not."""
    sizes = ((64, 32, 8, 8), (96, 8, 13, 11), (320, 32, 20, 20), (16, 8, 72, 72))
    for (channels, groups, *hw), silu, has_offset in itertools.product(sizes, (False, True), (False, True)):

        def plain(pixels, offset, gain, shift):
            pixels = pixels if offset is None else pixels + offset[:, :, None, None]
            normed = F.group_norm(pixels, groups, gain, shift, EPS)  # noqa: B023
            return (F.silu(normed) if silu else normed,)  # noqa: B023

        offset = normal(2, channels) if has_offset else None
        inputs = 2 * normal(2, channels, *hw) + 3, offset, normal(channels), normal(channels)
        compare(lambda *x: (group_norm(*x, groups, EPS, silu)[0],), plain, *inputs)  # noqa: B023


def compare_add_bias() -> None:
    for shape in ((2, 24, 5, 7), (1, 320, 16, 16)):
        plain = lambda branch, bias, residual: (branch + bias[:, None, None] + residual,)  # noqa: E731
        compare(lambda *x: (add_bias(*x),), plain, normal(*shape), normal(shape[1]), normal(*shape))


def compare_blocks() -> None:
    """Loss and gradient of a network of two levels, as they are and computed again in the backward pass."""
    levels = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    narrow = {"norm_groups": 8, "block_out_channels": (8, 16), "attention_heads": (1, 1)}
    unet = dataclasses.replace(base().unet, **levels, **narrow, transformer_layers_per_block=(1, 1))
    world = World(rank=0, size=1, device=torch.device("cpu"))
    config = small_config(dataclasses.replace(base(), precision="fp32", unet=unet), world)
    plain = small_unet(config)
    for blocks in (None, "all"):
        fused = copy.deepcopy(plain)
        if blocks:
            recompute(fused, blocks)
        keep_channels_last(fused)
        fuse_blocks(fused)
        (loss, gradient), (found_loss, found_gradient) = (
            _outcome(losses(config, each, torch.float32, world)[0](), each) for each in (plain, fused)
        )
        assert abs(found_loss - loss) <= TOLERANCE * loss
        assert (found_gradient - gradient).norm() <= TOLERANCE * gradient.norm()


def _outcome(loss: torch.Tensor, unet: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    gradients = torch.autograd.grad(loss, list(unet.parameters()))
    return loss.detach(), torch.cat([each.flatten() for each in gradients])


if __name__ == "__main__":
    globals()[f"compare_{sys.argv[1]}"]()
    print("compared")
