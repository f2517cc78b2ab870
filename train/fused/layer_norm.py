"""A residual stream's addition and the LayerNorm after it, in one kernel each way.

`summed = branch + bias + residual; normed = layer_norm(summed)`: the bias is that of the linear layer which the branch
came from, so that its gradient, like that of gain and shift, is added up in the pass that reads the gradients anyway.
LayerNorm: Ba, Kiros and Hinton 2016, "Layer normalization", equation 4.

Shape legend: rows R (all dimensions but the last), width C.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from train.fused.column_sums import column_sums

PROGRAMS, PROGRAMS_IF_WIDE, WARPS = 528, 396, 4
"""Programs of the backward kernel, each with a row of partial sums (of Hopper's 132 multiprocessors, each holds four
programs at a time, or three where rows have more than 1,024 numbers), and warps of a program."""


@triton_op("darkroom::layer_norm", mutates_args={})
def layer_norm(
    inputs: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the normed tensor, and mean and reciprocal deviation of each row in fp32, shape (R,)."""
    inputs = inputs.contiguous()
    normed = torch.empty_like(inputs)
    mean, rstd = _moments(inputs)
    _launch_forward(inputs, None, None, gain, shift, None, normed, mean, rstd, eps)
    return normed, mean, rstd


@triton_op("darkroom::add_layer_norm", mutates_args={})
def add_layer_norm(
    branch: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `branch + bias + residual`, that normed, and mean and reciprocal deviation of each row, shape (R,)."""
    branch, residual = branch.contiguous(), residual.contiguous()
    summed, normed = torch.empty_like(branch), torch.empty_like(branch)
    mean, rstd = _moments(branch)
    _launch_forward(branch, bias, residual, gain, shift, summed, normed, mean, rstd, eps)
    return summed, normed, mean, rstd


@triton_op("darkroom::layer_norm_backward", mutates_args={})
def layer_norm_backward(
    grad_normed: torch.Tensor,
    grad_summed: torch.Tensor | None,
    summed: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    gain: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient with regard to the sum, and those of gain, shift and bias, shape (3, C).

    `grad_summed` is what reaches the sum by another way than the norm.
    """
    grad_normed = grad_normed.contiguous()
    width, rows = summed.shape[-1], mean.numel()
    programs = min(rows, PROGRAMS if width <= 1024 else PROGRAMS_IF_WIDE)
    wanted = torch.empty_like(summed)
    partial = summed.new_empty((programs, 3, width), dtype=torch.float32)
    other = grad_normed if grad_summed is None else grad_summed.contiguous()
    constants = {"HAS_OTHER": grad_summed is not None, "BLOCK": triton.next_power_of_2(width)}
    wrap_triton(backward_kernel)[(programs,)](
        grad_normed, other, summed, mean, rstd, gain, wanted, partial, rows, width, **constants, num_warps=WARPS
    )
    return wanted, column_sums(partial, gain.dtype)


def _moments(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = inputs.numel() // inputs.shape[-1]
    return inputs.new_empty(rows, dtype=torch.float32), inputs.new_empty(rows, dtype=torch.float32)


def _launch_forward(branch, bias, residual, gain, shift, summed, normed, mean, rstd, eps: float) -> None:
    width = branch.shape[-1]
    adds = residual is not None
    absent = (bias, residual, summed) if adds else (gain, branch, normed)  # not touched
    constants = {"ADDS": adds, "BLOCK": triton.next_power_of_2(width)}
    wrap_triton(forward_kernel)[(mean.numel(),)](
        branch, *absent, gain, shift, normed, mean, rstd, width, eps, **constants, num_warps=WARPS
    )


@triton.jit
def forward_kernel(
    branch,
    bias,
    residual,
    summed,
    gain,
    shift,
    normed,
    mean,
    rstd,
    width,
    eps,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program for each row, which it holds in registers."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(summed.dtype.element_ty)
        tl.store(summed + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    centre = tl.sum(value, 0) / width
    off = tl.where(inside, value - centre, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(off * off, 0) / width + eps)
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)
    gains = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    shifts = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + at, off * scale * gains + shifts, mask=inside)


@triton.jit
def backward_kernel(
    grad_normed,
    grad_summed,
    summed,
    mean,
    rstd,
    gain,
    wanted,
    partial,
    rows,
    width,
    HAS_OTHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program takes every so many-th row and keeps the sums over them in registers."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    gains = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    of_gain = tl.zeros((BLOCK,), tl.float32)
    of_shift = tl.zeros((BLOCK,), tl.float32)
    of_bias = tl.zeros((BLOCK,), tl.float32)
    row = program
    at = row.to(tl.int64) * width + column
    upstream = tl.load(grad_normed + at, mask=inside, other=0.0)
    value = tl.load(summed + at, mask=inside, other=0.0)
    other = tl.load(grad_summed + at, mask=inside, other=0.0)
    for first in range(0, rows, tl.num_programs(0)):
        # The next row is on its way while this one is computed
        coming = first + tl.num_programs(0) + program
        coming_at = coming.to(tl.int64) * width + column
        present = column < tl.where(coming < rows, width, 0)
        coming_upstream = tl.load(grad_normed + coming_at, mask=present, other=0.0)
        coming_value = tl.load(summed + coming_at, mask=present, other=0.0)
        coming_other = tl.load(grad_summed + coming_at, mask=present, other=0.0)
        # This row
        scale = tl.load(rstd + tl.minimum(row, rows - 1))
        centre = tl.load(mean + tl.minimum(row, rows - 1))
        grad = upstream.to(tl.float32)
        standard = tl.where(inside, (value.to(tl.float32) - centre) * scale, 0.0)
        scaled = grad * gains
        along = tl.sum(scaled * standard, 0) / width
        level = tl.sum(scaled, 0) / width
        found = (scaled - level - standard * along) * scale
        if HAS_OTHER:
            found += other.to(tl.float32)
        tl.store(wanted + at, found, mask=column < tl.where(row < rows, width, 0))
        of_gain += grad * standard
        of_shift += grad
        of_bias += found
        row, at, upstream, value, other = coming, coming_at, coming_upstream, coming_value, coming_other
    sums = partial + program.to(tl.int64) * 3 * width + column
    tl.store(sums, of_gain, mask=inside)
    tl.store(sums + width, of_shift, mask=inside)
    tl.store(sums + 2 * width, of_bias, mask=inside)


def _keep(ctx, inputs, output) -> None:
    value, gain, _, _ = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(value, mean, rstd, gain)


def _differentiate(ctx, grad_normed, _mean, _rstd):
    wanted, sums = layer_norm_backward(grad_normed, None, *ctx.saved_tensors)
    return wanted, sums[0], sums[1], None


def _keep_sum(ctx, inputs, output) -> None:
    summed, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(summed, mean, rstd, inputs[3])


def _differentiate_sum(ctx, grad_summed, grad_normed, _mean, _rstd):
    wanted, sums = layer_norm_backward(grad_normed, grad_summed, *ctx.saved_tensors)
    return wanted, sums[2], wanted, sums[0], sums[1], None


layer_norm.register_autograd(_differentiate, setup_context=_keep)
add_layer_norm.register_autograd(_differentiate_sum, setup_context=_keep_sum)
