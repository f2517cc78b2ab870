"""GEGLU in one kernel each way: every number is read and written once.

diffusers' GEGLU multiplies one half of a projection by the GELU of the other (Shazeer 2020, "GLU variants improve
transformer", section 2). The projection's bias is added here, and its gradient comes from the same pass as the other's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from train.fused.column_sums import column_sums

BLOCK = 512
BACKWARD = {"BLOCK": 1024, "ROWS": 1, "ROWS_OF_A_PROGRAM": 64, "num_warps": 8}
"""A program of the backward kernel: columns, rows at a time, rows in all."""
SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton_op("darkroom::geglu", mutates_args={})
def geglu(projected: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return value * gelu(gate), value and gate being the halves of the last dimension of `projected + bias`."""
    projected = projected.contiguous()
    width = projected.shape[-1] // 2
    gated = projected.new_empty((*projected.shape[:-1], width))
    grid = (gated.numel() // width, triton.cdiv(width, BLOCK))
    wrap_triton(forward_kernel)[grid](projected, bias, gated, width, BLOCK=BLOCK, num_warps=2)
    return gated


@triton_op("darkroom::geglu_backward", mutates_args={})
def geglu_backward(
    grad: torch.Tensor, projected: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients with regard to `projected` and `bias`."""
    grad, projected = grad.contiguous(), projected.contiguous()
    width = grad.shape[-1]
    rows = grad.numel() // width
    wanted = torch.empty_like(projected)
    grid = (triton.cdiv(rows, BACKWARD["ROWS_OF_A_PROGRAM"]), triton.cdiv(width, BACKWARD["BLOCK"]))
    partial = grad.new_empty((grid[0], 2 * width), dtype=torch.float32)
    wrap_triton(backward_kernel)[grid](grad, projected, bias, wanted, partial, rows, width, **BACKWARD)
    return wanted, column_sums(partial, bias.dtype)


@triton.jit
def forward_kernel(projected, bias, gated, width, BLOCK: tl.constexpr):
    """value * gate * Phi(gate), in fp32 between load and store."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(projected + row * 2 * width + column, mask=inside).to(tl.float32)
    gate = tl.load(projected + row * 2 * width + width + column, mask=inside).to(tl.float32)
    value += tl.load(bias + column, mask=inside).to(tl.float32)
    gate += tl.load(bias + width + column, mask=inside).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
    tl.store(gated + row * width + column, value * gate * below, mask=inside)


@triton.jit
def backward_kernel(
    grad,
    projected,
    bias,
    wanted,
    partial,
    rows,
    width,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_OF_A_PROGRAM: tl.constexpr,
):
    """d gelu(x) / dx = Phi(x) + x phi(x); a program adds up the columns of its rows."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside_columns = column < width
    value_bias = tl.load(bias + column, mask=inside_columns, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias + width + column, mask=inside_columns, other=0.0).to(tl.float32)
    value_sums = tl.zeros((ROWS, BLOCK), tl.float32)
    gate_sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, ROWS_OF_A_PROGRAM, ROWS):
        row = (tl.program_id(0) * ROWS_OF_A_PROGRAM + first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & inside_columns
        value_at = row * 2 * width + column
        gate_at = value_at + width
        upstream = tl.load(grad + row * width + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(projected + value_at, mask=inside, other=0.0).to(tl.float32) + value_bias
        gate = tl.load(projected + gate_at, mask=inside, other=0.0).to(tl.float32) + gate_bias
        below = 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
        density = INVERSE_SQRT_2PI * tl.exp(-0.5 * gate * gate)
        grad_value = upstream * gate * below
        grad_gate = upstream * value * (below + gate * density)
        tl.store(wanted + value_at, grad_value, mask=inside)
        tl.store(wanted + gate_at, grad_gate, mask=inside)
        value_sums += grad_value
        gate_sums += grad_gate
    sums = partial + tl.program_id(0).to(tl.int64) * 2 * width + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK) < width
    tl.store(sums, tl.sum(value_sums, 0), mask=inside_row)
    tl.store(sums + width, tl.sum(gate_sums, 0), mask=inside_row)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return geglu_backward(grad, *ctx.saved_tensors)


geglu.register_autograd(_differentiate, setup_context=_keep)
