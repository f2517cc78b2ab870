"""Run as one rank: the self-test in bf16 under both stages of ZeRO, plain and with graphs and fused kernels."""

from __future__ import annotations

from dataclasses import replace

import torch.distributed as dist

from train.config import BatchConfig
from train.engine import start_world
from train.recipes import base
from train.self_test import self_test
from train.speed import SpeedConfig, ZeroConfig


def main() -> None:
    world = start_world()
    fast = SpeedConfig(channels_last=True, fused_kernels=True, cuda_graphs=True)
    batch = BatchConfig(global_batch=2, micro_batch=1, grad_accumulation=2)
    for stage in (1, 2):
        for speed in (SpeedConfig(), fast):
            config = replace(base(), precision="bf16", batch=batch, zero=ZeroConfig(stage=stage), speed=speed)
            self_test(config, world)
            print(f"stage {stage}: passed with {speed}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
