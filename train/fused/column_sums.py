"""Sums over programs of what each has added up over its rows: gradients of biases, gains and shifts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

ROWS, COLUMNS = 128, 32


def column_sums(partial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum over the first dimension, added up in fp32."""
    total = partial.new_empty(partial.shape[1:], dtype=dtype)
    rows, columns = partial.shape[0], total.numel()
    grid = (triton.cdiv(columns, COLUMNS),)
    wrap_triton(sum_kernel)[grid](partial, total, rows, columns, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)
    return total


@triton.jit
def sum_kernel(partial, total, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program for a stretch of columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)[None, :]
        sums += tl.load(partial + row * columns + column[None, :], mask=inside, other=0.0)
    tl.store(total + column, tl.sum(sums, 0), mask=column < columns)
