"""GroupNorm on NHWC pixels, with what comes before and after it: an addition to each channel, and SiLU.

`normed = silu(group_norm(pixels + offset))`, Wu and He 2018, "Group normalization", equations 1, 2 and 7. The offset is
one number for each sample and channel (in a res-block: the time embedding and the bias of the convolution before). Its
gradient needs no pass over the pixels: the sum of a norm's gradient over a sample's pixels follows from sums that the
norm's own gradient needs.

torch's kernels want NCHW; read in NHWC, a group is 10 to 80 numbers of each pixel. So a program takes 64 channels of
128 pixels, where reads are whole lines of memory, and a small kernel puts the channels of a group together.

Shape legend: B batch, P pixels of a sample, C channels, G groups, K chunks of a sample's pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

PIXELS, CHANNELS, CHUNKS = 128, 64, 32
"""Pixels and channels of a program that adds up, and chunks that a program puts together at a time."""
ADDED = {"PIXELS": PIXELS, "CHANNELS": CHANNELS}
WRITTEN = {"PIXELS": 64, "CHANNELS": CHANNELS, "num_warps": 4}
"""Tile of a program that writes pixels."""


@triton_op("darkroom::group_norm", mutates_args={})
def group_norm(
    pixels: torch.Tensor,
    offset: torch.Tensor | None,
    gain: torch.Tensor,
    shift: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the normed pixels as NHWC, mean and reciprocal deviation (B, G, 2), and channels' means (B, C), in fp32.

    `pixels` has the shape (B, C, H, W), `offset` (B, C); groups of channels are C / `groups` wide.
    """
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    normed = torch.empty_like(pixels)
    (batch, channels), count = pixels.shape[:2], pixels.shape[2] * pixels.shape[3]
    chunks, width = triton.cdiv(count, PIXELS), channels // groups
    partial, moments = _fp32(pixels, batch, chunks, 2, channels), _fp32(pixels, batch, groups, 2)
    means = _fp32(pixels, batch, channels)
    tiles = (batch * chunks, triton.cdiv(channels, CHANNELS))
    wrap_triton(moments_kernel)[tiles](pixels, partial, count, chunks, channels, **ADDED, num_warps=2)
    joined = {"WIDTH": triton.next_power_of_2(width), "CHUNKS": CHUNKS, "PIXELS": PIXELS}
    has = {"HAS_OFFSET": offset is not None}
    shifted = gain if offset is None else offset
    wrap_triton(join_moments_kernel)[(batch, groups)](
        partial, shifted, moments, means, count, chunks, channels, width, eps, **joined, **has, num_warps=4
    )
    chunks = triton.cdiv(count, WRITTEN["PIXELS"])
    wrap_triton(forward_kernel)[(batch * chunks, tiles[1])](
        pixels, shifted, moments, gain, shift, normed, count, chunks, channels, width, SILU=silu, **has, **WRITTEN
    )
    return normed, moments, means


@triton_op("darkroom::group_norm_backward", mutates_args={})
def group_norm_backward(
    grad: torch.Tensor,
    pixels: torch.Tensor,
    offset: torch.Tensor | None,
    gain: torch.Tensor,
    shift: torch.Tensor,
    moments: torch.Tensor,
    means: torch.Tensor,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gradients: of the pixels, of the offset (B, C), and of shift and gain (2, C)."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    wanted = torch.empty_like(pixels)
    (batch, channels), count = pixels.shape[:2], pixels.shape[2] * pixels.shape[3]
    groups, chunks = moments.shape[1], triton.cdiv(count, PIXELS)
    width = channels // groups
    partial, sums = _fp32(pixels, batch, chunks, 2, channels), _fp32(pixels, batch, groups, 2)
    of_channels, of_offset = _fp32(pixels, batch, 2, channels), _fp32(pixels, batch, channels)
    tiles = (batch * chunks, triton.cdiv(channels, CHANNELS))
    flags = {"SILU": silu, "HAS_OFFSET": offset is not None}
    shifted = gain if offset is None else offset
    known = (grad, pixels, shifted, moments, gain, shift)
    wrap_triton(sums_kernel)[tiles](*known, partial, count, chunks, channels, width, **flags, **ADDED, num_warps=4)
    joined = {"WIDTH": triton.next_power_of_2(width), "CHUNKS": CHUNKS}
    wrap_triton(join_sums_kernel)[(batch, groups)](
        partial,
        moments,
        means,
        gain,
        sums,
        of_channels,
        of_offset,
        count,
        chunks,
        channels,
        width,
        **joined,
        num_warps=4,
    )
    chunks = triton.cdiv(count, WRITTEN["PIXELS"])
    wrap_triton(backward_kernel)[(batch * chunks, tiles[1])](
        *known, sums, wanted, count, chunks, channels, width, **flags, **WRITTEN
    )
    return wanted, of_offset, of_channels.sum(0)


def _fp32(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_empty(shape, dtype=torch.float32)


@triton.jit
def _tile(count, chunks, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return sample, the tile's channels (1, n), its positions in the tensor, and which of them exist."""
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    pixel = (tl.program_id(0) % chunks) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    at = (sample * count + pixel) * channels + channel
    return sample, channel, at, (pixel < count) & (channel < channels)


@triton.jit
def _standard(pixels, offset, moments, sample, channel, at, inside, channels, width, HAS_OFFSET: tl.constexpr):
    """Return (pixels + offset - mean) / deviation, and the reciprocal deviation of each channel's group."""
    known = channel < channels
    group = (sample * (channels // width) + channel // width) * 2
    centre = tl.load(moments + group, mask=known, other=0.0)
    scale = tl.load(moments + group + 1, mask=known, other=0.0)
    if HAS_OFFSET:
        centre -= tl.load(offset + sample * channels + channel, mask=known, other=0.0).to(tl.float32)
    value = tl.load(pixels + at, mask=inside, other=0.0).to(tl.float32)
    return (value - centre) * scale, scale


@triton.jit
def moments_kernel(pixels, partial, count, chunks, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Each channel's mean over a chunk, and the sum of squared differences from it."""
    sample, channel, at, inside = _tile(count, chunks, channels, PIXELS, CHANNELS)
    value = tl.load(pixels + at, mask=inside, other=0.0).to(tl.float32)
    present = tl.minimum(count - (tl.program_id(0) % chunks) * PIXELS, PIXELS)
    mean = tl.sum(value, 0) / present
    off = tl.where(inside, value - mean[None, :], 0.0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    to = partial + tl.program_id(0).to(tl.int64) * 2 * channels + channel
    tl.store(to, mean, mask=channel < channels)
    tl.store(to + channels, tl.sum(off * off, 0), mask=channel < channels)


@triton.jit
def join_moments_kernel(
    partial,
    offset,
    moments,
    means,
    count,
    chunks,
    channels,
    width,
    eps,
    HAS_OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A group's mean and reciprocal deviation from those of its channels' chunks (Chan et al. 1979)."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within = tl.arange(0, WIDTH)
    channel = group * width + within
    known = within < width
    added = tl.zeros((WIDTH,), tl.float32)
    if HAS_OFFSET:
        added = tl.load(offset + sample * channels + channel, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[:, None]
        inside = (chunk < chunks) & known[None, :]
        present = tl.minimum(count - chunk * PIXELS, PIXELS)
        at = (sample * chunks + chunk) * 2 * channels + channel[None, :]
        total += tl.sum(tl.load(partial + at, mask=inside, other=0.0) * present, 0)
    own = tl.where(known, total / count + added, 0.0)
    mean = tl.sum(own, 0) / width
    squares = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[:, None]
        inside = (chunk < chunks) & known[None, :]
        present = tl.minimum(count - chunk * PIXELS, PIXELS)
        at = (sample * chunks + chunk) * 2 * channels + channel[None, :]
        off = tl.load(partial + at, mask=inside, other=0.0) + added[None, :] - mean
        about = tl.load(partial + at + channels, mask=inside, other=0.0)
        squares += tl.sum(tl.where(inside, about + off * off * present, 0.0), 0)
    variance = tl.sum(squares, 0) / (width * count)
    to = moments + (sample * tl.num_programs(1) + group) * 2
    tl.store(to, mean)
    tl.store(to + 1, 1.0 / tl.sqrt(variance + eps))
    tl.store(means + sample * channels + channel, own, mask=known)


@triton.jit
def forward_kernel(
    pixels,
    offset,
    moments,
    gain,
    shift,
    normed,
    count,
    chunks,
    channels,
    width,
    SILU: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    sample, channel, at, inside = _tile(count, chunks, channels, PIXELS, CHANNELS)
    standard, _ = _standard(pixels, offset, moments, sample, channel, at, inside, channels, width, HAS_OFFSET)
    gains = tl.load(gain + channel, mask=channel < channels, other=0.0).to(tl.float32)
    value = standard * gains + tl.load(shift + channel, mask=channel < channels, other=0.0).to(tl.float32)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(normed + at, value, mask=inside)


@triton.jit
def _upstream(grad, standard, gain, shift, channel, at, inside, channels, SILU: tl.constexpr):
    """Return the gradient before SiLU, s(x) (1 + x (1 - s(x))) being its derivative, and the channels' gains."""
    found = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    gains = tl.load(gain + channel, mask=channel < channels, other=0.0).to(tl.float32)
    if SILU:
        value = standard * gains + tl.load(shift + channel, mask=channel < channels, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-value))
        found *= sigmoid * (1.0 + value * (1.0 - sigmoid))
    return found, gains


@triton.jit
def sums_kernel(
    grad,
    pixels,
    offset,
    moments,
    gain,
    shift,
    partial,
    count,
    chunks,
    channels,
    width,
    SILU: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Each channel's sums over a chunk: of the gradient, and of the gradient times the standardised pixel."""
    sample, channel, at, inside = _tile(count, chunks, channels, PIXELS, CHANNELS)
    standard, _ = _standard(pixels, offset, moments, sample, channel, at, inside, channels, width, HAS_OFFSET)
    found, _ = _upstream(grad, standard, gain, shift, channel, at, inside, channels, SILU)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    to = partial + tl.program_id(0).to(tl.int64) * 2 * channels + channel
    tl.store(to, tl.sum(found, 0), mask=channel < channels)
    tl.store(to + channels, tl.sum(found * standard, 0), mask=channel < channels)


@triton.jit
def join_sums_kernel(
    partial,
    moments,
    means,
    gain,
    sums,
    of_channels,
    of_offset,
    count,
    chunks,
    channels,
    width,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Sums of a sample's channels, means over its groups, and from them the gradient of the offset."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within = tl.arange(0, WIDTH)
    channel = group * width + within
    known = within < width
    level = tl.zeros((WIDTH,), tl.float32)
    along = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[:, None]
        inside = (chunk < chunks) & known[None, :]
        at = (sample * chunks + chunk) * 2 * channels + channel[None, :]
        level += tl.sum(tl.load(partial + at, mask=inside, other=0.0), 0)
        along += tl.sum(tl.load(partial + at + channels, mask=inside, other=0.0), 0)
    to = of_channels + sample * 2 * channels + channel
    tl.store(to, level, mask=known)
    tl.store(to + channels, along, mask=known)
    gains = tl.load(gain + channel, mask=known, other=0.0).to(tl.float32)
    group_level = tl.sum(level * gains, 0) / (width * count)
    group_along = tl.sum(along * gains, 0) / (width * count)
    number = sample * tl.num_programs(1) + group
    tl.store(sums + number * 2, group_level)
    tl.store(sums + number * 2 + 1, group_along)
    scale = tl.load(moments + number * 2 + 1)
    centre = tl.load(moments + number * 2)
    standard = (tl.load(means + sample * channels + channel, mask=known, other=0.0) - centre) * scale
    found = scale * (level * gains - count * (group_level + group_along * standard))
    tl.store(of_offset + sample * channels + channel, found, mask=known)


@triton.jit
def backward_kernel(
    grad,
    pixels,
    offset,
    moments,
    gain,
    shift,
    sums,
    wanted,
    count,
    chunks,
    channels,
    width,
    SILU: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A norm takes from the gradient its mean over the group and its part along the standardised pixels."""
    sample, channel, at, inside = _tile(count, chunks, channels, PIXELS, CHANNELS)
    standard, scale = _standard(pixels, offset, moments, sample, channel, at, inside, channels, width, HAS_OFFSET)
    found, gains = _upstream(grad, standard, gain, shift, channel, at, inside, channels, SILU)
    group = (sample * (channels // width) + channel // width) * 2
    level = tl.load(sums + group, mask=channel < channels, other=0.0)
    along = tl.load(sums + group + 1, mask=channel < channels, other=0.0)
    tl.store(wanted + at, scale * (found * gains - level - standard * along), mask=inside)


def _keep(ctx, inputs, output) -> None:
    pixels, offset, gain, shift, _, _, ctx.silu = inputs
    _, moments, means = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(pixels, offset, gain, shift, moments, means)


def _differentiate(ctx, grad, _moments, _means):
    pixels, offset, gain, shift, moments, means = ctx.saved_tensors
    wanted, of_offset, sums = group_norm_backward(grad, pixels, offset, gain, shift, moments, means, ctx.silu)
    of_offset = None if offset is None else of_offset.to(offset.dtype)
    of_shift, of_gain = sums.to(gain.dtype)
    return wanted, of_offset, of_gain, of_shift, None, None, None


group_norm.register_autograd(_differentiate, setup_context=_keep)
