"""The end of a res-block on NHWC pixels: `branch + bias + residual` in one kernel, where torch takes two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

BLOCK = 2048


@triton_op("darkroom::add_bias", mutates_args={})
def add_bias(branch: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return the sum as NHWC; `branch` and `residual` have the shape (B, C, H, W), `bias` (C,)."""
    branch = branch.contiguous(memory_format=torch.channels_last)
    residual = residual.contiguous(memory_format=torch.channels_last)
    summed = torch.empty_like(branch)
    count, channels = branch.numel(), branch.shape[1]
    grid = (triton.cdiv(count, BLOCK),)
    wrap_triton(add_kernel)[grid](branch, bias, residual, summed, count, channels, BLOCK=BLOCK, num_warps=8)
    return summed


@triton.jit
def add_kernel(branch, bias, residual, summed, count, channels, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + at % channels, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(summed + at, value, mask=inside)


def _differentiate(_ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return grad, grad.sum((0, 2, 3)), grad


add_bias.register_autograd(_differentiate)
