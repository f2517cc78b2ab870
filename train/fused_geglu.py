"""GEGLU in one kernel each way: every number is read and written once.

diffusers' GEGLU multiplies one half of a projection by the GELU of the other (Shazeer 2020, "GLU variants improve
transformer", section 2). Its backward pass writes both halves of one tensor, which torch.compile does in a kernel
that computes each half twice, and plain torch in five kernels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn
from torch.library import triton_op, wrap_triton

BLOCK = 512
SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


class FusedGeglu(nn.Module):
    """Takes the place of diffusers' GEGLU and keeps its parameters' names."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """Return value * gelu(gate) of the projection's halves, shape (B, L, inner width)."""
        return geglu(self.proj(hidden_BLD))


@triton_op("darkroom::geglu", mutates_args={})
def geglu(projected: torch.Tensor) -> torch.Tensor:
    """Return value * gelu(gate), value and gate being the halves of the last dimension."""
    projected = projected.contiguous()
    width = projected.shape[-1] // 2
    gated = projected.new_empty((*projected.shape[:-1], width))
    wrap_triton(forward_kernel)[grid(gated)](projected, gated, width, BLOCK=BLOCK, num_warps=2)
    return gated


@triton_op("darkroom::geglu_backward", mutates_args={})
def geglu_backward(grad: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
    """Return the gradient with regard to `projected`."""
    grad, projected = grad.contiguous(), projected.contiguous()
    wanted = torch.empty_like(projected)
    width = grad.shape[-1]
    wrap_triton(backward_kernel)[grid(grad)](grad, projected, wanted, width, BLOCK=BLOCK, num_warps=2)
    return wanted


def grid(gated: torch.Tensor) -> tuple[int, int]:
    """Return the programs that cover a tensor: one for each row and stretch of columns."""
    width = gated.shape[-1]
    return gated.numel() // width, triton.cdiv(width, BLOCK)


@triton.jit
def forward_kernel(projected, gated, width, BLOCK: tl.constexpr):
    """value * gate * Phi(gate), in fp32 between load and store."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(projected + row * 2 * width + column, mask=inside).to(tl.float32)
    gate = tl.load(projected + row * 2 * width + width + column, mask=inside).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
    tl.store(gated + row * width + column, value * gate * below, mask=inside)


@triton.jit
def backward_kernel(grad, projected, wanted, width, BLOCK: tl.constexpr):
    """d gelu(x) / dx = Phi(x) + x phi(x)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value_at = row * 2 * width + column
    gate_at = value_at + width
    upstream = tl.load(grad + row * width + column, mask=inside).to(tl.float32)
    value = tl.load(projected + value_at, mask=inside).to(tl.float32)
    gate = tl.load(projected + gate_at, mask=inside).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
    density = INVERSE_SQRT_2PI * tl.exp(-0.5 * gate * gate)
    tl.store(wanted + value_at, upstream * gate * below, mask=inside)
    tl.store(wanted + gate_at, upstream * value * (below + gate * density), mask=inside)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: torch.Tensor) -> torch.Tensor:
    return geglu_backward(grad, *ctx.saved_tensors)


geglu.register_autograd(_differentiate, setup_context=_keep)
