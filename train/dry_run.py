"""What would be trained: parameter counts, DeepSpeed's dictionary and the batch arithmetic, without memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from curate.bad_input import BadInput
from train.config import BatchConfig, TrainConfig
from train.launch import num_ranks
from train.model import count_parameters, meta_unet
from train.zero_settings import deepspeed_settings

GRAD_ACCUMULATIONS = (1, 2, 4)
"""Passes of a step that are worth their traffic."""


def dry_run(config: TrainConfig, as_json: bool = False) -> None:
    """Print what a person checks before paying for a run; raises BadInput afterwards where the batch does not fit."""
    gpus = planned_gpus(config)
    told = what_would_run(config, gpus)
    print(json.dumps(told) if as_json else "\n".join(lines(config, told)), flush=True)
    try:
        config.batch.for_ranks(gpus)
    except BadInput as error:
        share = (config.batch.micro_batch or 1) * config.batch.grad_accumulation
        others_do = config.ranks != "auto" and config.batch.global_batch % share == 0
        raise BadInput(f"{error}; or plan another number of GPUs with --ranks" if others_do else str(error)) from error


def planned_gpus(config: TrainConfig) -> int:
    """Return `ranks`; where it is auto, as many as make up the global batch, or this machine's if any number does."""
    batch = config.batch
    if config.ranks != "auto" or batch.micro_batch is None:
        return num_ranks(config)
    return max(1, batch.global_batch // (batch.micro_batch * batch.grad_accumulation))


def what_would_run(config: TrainConfig, gpus: int) -> dict[str, Any]:
    """Return parameter counts, DeepSpeed's settings and the batch arithmetic."""
    batch = config.batch
    micro_batch = batch.micro_batch or max(1, batch.global_batch // (gpus * batch.grad_accumulation))
    config = dataclasses.replace(config, batch=dataclasses.replace(batch, micro_batch=micro_batch))
    return {
        "model": config.model,
        "parameters": parameters_by_part(config),
        "deepspeed": deepspeed_settings(config, on_gpu=True),
        "gpus": gpus,
        "batch": [arithmetic(config.batch, gpus, *shape) for shape in shapes(config.batch, gpus)],
    }


def lines(config: TrainConfig, told: dict[str, Any]) -> Iterator[str]:
    """Yield the same for people."""
    yield f"{config.model} U-Net on the meta device"
    for name, count in told["parameters"].items():
        yield f"  {name:<16} {count:>15,}"
    yield "DeepSpeed settings"
    yield json.dumps(told["deepspeed"], indent=2)
    batch = f"global batch {config.batch.global_batch}"
    yield f"batch arithmetic for {told['gpus']} GPUs, {batch} (for their memory: python -m train.plan)"
    yield from (f"  {line}" for line in told["batch"])


def parameters_by_part(config: TrainConfig) -> dict[str, int]:
    """Return the parameter count of each top-level part of the U-Net, and their sum."""
    unet = meta_unet(config)
    counts = {name: count_parameters(part.parameters()) for name, part in unet.named_children()}
    return {name: count for name, count in counts.items() if count} | {"all": count_parameters(unet.parameters())}


def shapes(batch: BatchConfig, gpus: int) -> list[tuple[int, int]]:
    """Return (micro-batch, gradient accumulation): the configured ones, then those that make up the global batch."""
    share, rest = divmod(batch.global_batch, gpus)
    fits = [(share // passes, passes) for passes in GRAD_ACCUMULATIONS if not rest and share % passes == 0 and share]
    return list(dict.fromkeys([(batch.samples_a_pass, batch.grad_accumulation), *fits]))


def arithmetic(batch: BatchConfig, gpus: int, micro_batch: int, grad_accumulation: int) -> str:
    """Return one line: the product, and whether it is the global batch."""
    product = gpus * micro_batch * grad_accumulation
    line = f"{gpus} ranks x micro-batch {micro_batch} x accumulation {grad_accumulation} = {product}"
    candidate = dataclasses.replace(batch, micro_batch=micro_batch, grad_accumulation=grad_accumulation)
    try:
        candidate.check(gpus)
    except ValueError as error:
        return f"{line}: not the global batch {batch.global_batch}; {str(error).split('; ')[-1]}"
    return f"{line}: adds up"
