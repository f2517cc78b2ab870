"""What would be trained: parameter counts, DeepSpeed's dictionary and the batch arithmetic, without memory."""

from __future__ import annotations

import dataclasses
import json

import torch

from train.config import BatchConfig, TrainConfig
from train.engine import World, deepspeed_settings
from train.model import count_parameters, meta_unet

GPUS = 256
SHAPES = ((8, 1), (4, 2), (2, 4))
"""(micro-batch, gradient accumulation) on 256 GPUs."""


def dry_run(config: TrainConfig) -> None:
    """Print everything that a person checks before paying for a run."""
    batch = config.batch
    micro_batch = batch.micro_batch or max(1, batch.global_batch // batch.grad_accumulation)
    config = dataclasses.replace(config, batch=dataclasses.replace(batch, micro_batch=micro_batch))
    print(f"{config.model} U-Net on the meta device")
    for name, count in parameters_by_part(config).items():
        print(f"  {name:<16} {count:>15,}")
    print("DeepSpeed settings")
    world = World(rank=0, size=_world_size(config.batch), device=torch.device("cuda"))
    print(json.dumps(deepspeed_settings(config, world), indent=2))
    print(f"batch arithmetic for {GPUS} GPUs, global batch {config.batch.global_batch}")
    for micro_batch, accumulation in SHAPES:
        print(f"  {arithmetic(config.batch, micro_batch, accumulation)}")


def parameters_by_part(config: TrainConfig) -> dict[str, int]:
    """Return the parameter count of each top-level part of the U-Net, and their sum."""
    unet = meta_unet(config)
    counts = {name: count_parameters(part.parameters()) for name, part in unet.named_children()}
    return {name: count for name, count in counts.items() if count} | {"all": count_parameters(unet.parameters())}


def arithmetic(batch: BatchConfig, micro_batch: int, grad_accumulation: int) -> str:
    """Return one line: the product, and whether it is the global batch."""
    product = GPUS * micro_batch * grad_accumulation
    line = f"{GPUS} ranks x micro-batch {micro_batch} x accumulation {grad_accumulation} = {product}"
    candidate = dataclasses.replace(batch, micro_batch=micro_batch, grad_accumulation=grad_accumulation)
    try:
        candidate.check(GPUS)
    except ValueError:
        return f"{line}: not the global batch {batch.global_batch}"
    return f"{line}: ok"


def _world_size(batch: BatchConfig) -> int:
    return max(1, batch.global_batch // (batch.samples_a_pass * batch.grad_accumulation))
