"""At the start: is the first gradient that DeepSpeed hands to the optimiser the one that plain torch computes?

A small network of the same classes goes through the same DeepSpeed settings on all ranks, in as many buckets as the
full one needs, so the test takes megabytes where a second gradient of the full network would take 10 GB. Each rank
computes the same micro-batches again with autograd alone, adds them up in fp32 and averages over ranks with one
all-reduce.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from train.channels_last import StrideCheck, keep_channels_last
from train.config import TIME_IDS, BatchConfig, TrainConfig
from train.engine import Engine, World
from train.model import count_parameters, predict, unet_arguments
from train.precision import DTYPES
from train.switches import apply_switches

NORM_TOLERANCE = {"bf16": 0.02, "fp32": 1e-3}
"""Largest relative difference of the two norms."""
GRADIENT_TOLERANCE = {"bf16": 0.10, "fp32": 1e-2}
"""Largest norm of the difference of the two gradients, relative to plain torch's."""
BUCKETS, TEXT_TOKENS, SIDE = 12, 8, 16


class WrongGradient(RuntimeError):
    """DeepSpeed's gradient is not plain torch's."""


def self_test(config: TrainConfig, world: World) -> None:
    """Raise WrongGradient, on all ranks alike, where norm or direction of the first gradient is another one."""
    small = small_config(config, world)
    unet = small_unet(small)
    dtype = DTYPES[config.precision]
    plain = nn.Module.to(copy.deepcopy(unet), world.device, dtype)
    expected = plain_gradient(small, plain, world)
    if config.speed.channels_last:
        check_strides(small, plain, dtype, world)
    apply_switches(unet, config.speed, world.device)
    engine = Engine(small, unet, world)
    for loss in losses(small, engine.engine, engine.dtype, world):
        engine.backward(loss())
    stepped = engine.step(0.0)
    found, norm = first_gradient(small, engine), float(expected.norm())
    engine.close()
    start = world.rank * found.numel()
    expected = nn.functional.pad(expected, (0, found.numel() * world.size - expected.numel()))
    off = (found * max(1.0, norm / config.optimizer.clip_norm) - expected[start : start + found.numel()]).square().sum()
    dist.all_reduce(off)
    check(config.precision, stepped.grad_norm, norm, float(off.sqrt()))


def check(precision: str, found_norm: float, expected_norm: float, off_norm: float) -> None:
    """Raise WrongGradient naming both norms where they, or the gradients, lie too far apart."""
    same_norm = abs(found_norm - expected_norm) <= NORM_TOLERANCE[precision] * expected_norm
    same_gradient = off_norm <= GRADIENT_TOLERANCE[precision] * expected_norm
    if not (same_norm and same_gradient):
        raise WrongGradient(
            f"self-test: DeepSpeed's first gradient has norm {found_norm:.6g}, plain torch's {expected_norm:.6g}, their"
            f" difference {off_norm:.6g}: this DeepSpeed computes wrong gradients with these settings; change"
            " zero.stage, zero.overlap_comm or speed, or DeepSpeed's version (self_test: false trains all the same)"
        )


def check_strides(config: TrainConfig, unet: nn.Module, dtype: torch.dtype, world: World) -> None:
    """Raise WrongStrides where a convolution of this device leaves NHWC in spite of `keep_channels_last`."""
    keep_channels_last(unet)
    watched = StrideCheck(unet)
    with torch.no_grad():
        losses(config, unet, dtype, world)[0]()
    watched.finish()


def small_config(config: TrainConfig, world: World) -> TrainConfig:
    """Return the settings with a narrow network, one sample a pass, and buckets that it overflows."""
    accumulation = config.batch.grad_accumulation
    groups = config.unet.norm_groups
    widths = tuple(groups * min(2, 1 + level) for level in range(len(config.unet.block_out_channels)))
    unet = replace(
        config.unet,
        sample_size=SIDE,
        block_out_channels=widths,
        attention_heads=tuple(1 for _ in widths),
        transformer_layers_per_block=tuple(1 for _ in widths),
        layers_per_block=1,
        cross_attention_dim=32,
        pooled_dim=32,
        time_id_dim=32,
    )
    batch = BatchConfig(global_batch=world.size * accumulation, micro_batch=1, grad_accumulation=accumulation)
    small = replace(config, unet=unet, batch=batch)
    sizes = [parameter.numel() for parameter in small_unet(small, "meta").parameters()]
    bucket = max(max(sizes), sum(sizes) // BUCKETS)
    return replace(small, zero=replace(config.zero, reduce_bucket_elements=bucket + bucket % 2))


def small_unet(config: TrainConfig, device: str = "cpu") -> UNet2DConditionModel:
    """Return the network, the same on all ranks; no output is zero, so that every gradient counts."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(config.seed)
        return UNet2DConditionModel(**unet_arguments(config)).train()


def plain_gradient(config: TrainConfig, unet: nn.Module, world: World) -> torch.Tensor:
    """Return the flat fp32 gradient of the mean over micro-batches and ranks, by autograd and one all-reduce."""
    dtype = next(unet.parameters()).dtype
    total = torch.zeros(count_parameters(unet.parameters()), device=world.device)
    for loss in losses(config, unet, dtype, world):
        gradients = torch.autograd.grad(loss(), list(unet.parameters()))
        total += torch.cat([gradient.float().flatten() for gradient in gradients])
    dist.all_reduce(total)
    return total / (config.batch.grad_accumulation * world.size)


def first_gradient(config: TrainConfig, engine: Engine) -> torch.Tensor:
    """Return this rank's part of the clipped gradient, from AdamW's first moment after one step."""
    return engine.moments["exp_avg"] / (1.0 - config.optimizer.beta1)


def losses(config: TrainConfig, unet: nn.Module, dtype: torch.dtype, world: World) -> list[Callable[[], torch.Tensor]]:
    """Return a function for the loss of each micro-batch of this rank."""
    accumulation = config.batch.grad_accumulation
    return [
        functools.partial(_loss, config, unet, dtype, world.device, world.rank * accumulation + pass_)
        for pass_ in range(accumulation)
    ]


def _loss(config: TrainConfig, unet: nn.Module, dtype: torch.dtype, device: torch.device, number: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(number)
    draw = functools.partial(torch.randn, generator=random)
    shape = config.unet
    noisy_BCHW = draw(1, shape.latent_channels, SIDE, SIDE).to(device)
    text_BLD = draw(1, TEXT_TOKENS, shape.cross_attention_dim).to(device)
    pooled_BD = draw(1, shape.pooled_dim).to(device)
    time_ids_BT = (draw(1, TIME_IDS[config.model]).abs() * 1000).to(device)
    timesteps_B = torch.tensor([number * 37 % 1000], device=device)
    prediction_BCHW = predict(unet, dtype, noisy_BCHW, timesteps_B, text_BLD, pooled_BD, time_ids_BT)
    return (prediction_BCHW - noisy_BCHW).square().mean()
