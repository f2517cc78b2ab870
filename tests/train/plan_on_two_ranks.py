"""Run by two ranks: the memory that real steps hold under DeepSpeed, beside the plan's estimate of it."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch.distributed as dist
from torch import nn

from train.config import BatchConfig, TrainConfig
from train.ema import Ema
from train.engine import Engine, World, start_world
from train.model import build_unet, count_parameters
from train.plan.memory import GB, Frozen, memory_gb, needed_gb
from train.plan.network import LiveBytes, count_unet, inputs
from train.settings import read_train_settings
from train.speed import Recomputed, SpeedConfig, ZeroConfig
from train.switches import apply_switches

NO_ENCODERS = Frozen(parameters=0, flops_an_image=0.0, peak_bytes=0)
TOLERANCE = 0.05
"""Largest part by which the estimate may be off; small buffers of DeepSpeed are not in it."""


def main() -> None:
    config: TrainConfig = read_train_settings("base", sys.argv[1:], prog="test", description="")[0]
    world = start_world()
    for stage in (1, 2):
        for blocks, micro_batch in (("none", 2), ("none", 4), ("all", 4)):
            check(varied(config, stage, blocks, micro_batch), world)
    dist.barrier()
    dist.destroy_process_group()


def varied(config: TrainConfig, stage: int, blocks: Recomputed, micro_batch: int) -> TrainConfig:
    return replace(
        config,
        precision="bf16",
        unet=replace(config.unet, sample_size=32),
        batch=BatchConfig(global_batch=4 * micro_batch, micro_batch=micro_batch, grad_accumulation=2),
        zero=ZeroConfig(stage=stage, reduce_bucket_elements=200_000, overlap_comm=False),
        speed=SpeedConfig(activation_checkpointing=blocks),
    )


def check(config: TrainConfig, world: World) -> None:
    found = peak_bytes(config, world) / GB
    counted = count_unet(config, config.speed.activation_checkpointing)
    parameters = count_parameters(build_unet(config).parameters())
    items = memory_gb(
        config, parameters, counted, NO_ENCODERS, ranks=world.size, micro_batch=config.batch.samples_a_pass
    )
    expected = needed_gb(items)
    print(
        f"stage {config.zero.stage}, {config.speed.activation_checkpointing}, {config.batch.micro_batch}: held"
        f" {found:.6f} GB, planned {expected:.6f} GB, {items}",
        flush=True,
    )
    assert abs(found - expected) <= TOLERANCE * found, (found, expected, items)


def peak_bytes(config: TrainConfig, world: World) -> int:
    """Return the most that tensors of two steps hold; the second one has AdamW's moments and full buckets."""
    with LiveBytes(nn.Module()) as live:
        unet = build_unet(config).train()
        apply_switches(unet, config.speed, world.device)
        engine = Engine(config, unet, world)
        ema = Ema(engine.master, config.ema_decay)
        for _ in range(2):
            live.peak = live.now
            for _ in range(config.batch.grad_accumulation):
                batch = inputs(config, config.batch.samples_a_pass)
                engine.backward(engine.engine(**batch, return_dict=False)[0].float().square().mean())
            engine.step(1e-4)
            ema.update(engine.master)
    engine.close()
    return live.peak


if __name__ == "__main__":
    main()
