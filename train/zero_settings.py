"""DeepSpeed's dictionary, generated from the settings, and whether DeepSpeed understood every word of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from curate.bad_input import BadInput
from train.config import TrainConfig
from train.precision import DTYPES

NOT_UNDERSTOOD = object()


def deepspeed_settings(config: TrainConfig, *, on_gpu: bool) -> dict[str, Any]:
    """Return DeepSpeed's dictionary; the batch arithmetic was checked before."""
    optimizer = config.optimizer
    return {
        "train_batch_size": config.batch.global_batch,
        "train_micro_batch_size_per_gpu": config.batch.samples_a_pass,
        "gradient_accumulation_steps": config.batch.grad_accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "bf16": {
            "enabled": config.precision == "bf16",
            "check_grad_overflow": True,
            "immediate_grad_update": False,  # the engine adds all gradients of a pass at once
        },
        # without it DeepSpeed accumulates in the dtype of the weights, which is bf16
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": config.zero.reduce_dtype if config.precision == "bf16" else "fp32",
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr_peak,
                "betas": [optimizer.beta1, optimizer.beta2],
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
                "fused": config.speed.fused_adamw,
                "torch_adam": True,  # torch's own AdamW: no extension to compile
            },
        },
        "zero_optimization": {
            "stage": config.zero.stage,
            "overlap_comm": config.zero.overlap_comm and on_gpu,
            # one more copy of every gradient; ZeRO-1 on a CPU has nothing to gain from it
            "contiguous_gradients": on_gpu or config.zero.stage == 2,
            "reduce_scatter": True,
            "reduce_bucket_size": config.zero.reduce_bucket_elements,
            "allgather_bucket_size": config.zero.reduce_bucket_elements,
            "round_robin_gradients": False,  # keeps the flat vector in the order of the parameters
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_force_ds_cpu_optimizer": False,
    }


def check_understood(settings: dict[str, Any], understood: Any) -> None:
    """Raise ValueError naming each key that a parsed DeepSpeedConfig does not hold with the value it was given.

    DeepSpeed's own models refuse unknown keys in a few sections only; elsewhere a misspelt key is passed over
    and its default is taken.
    """
    faults = []
    for path, value in _leaves(settings):
        found = _found(understood, path)
        if found is NOT_UNDERSTOOD:
            faults.append(f"{'.'.join(path)}: DeepSpeed knows no such key")
        elif found != _parsed(path, value):
            faults.append(f"{'.'.join(path)} = {value!r}: DeepSpeed read {found!r}")
    if faults:
        raise BadInput(f"DeepSpeed's dictionary: {'; '.join(faults)}")


def _leaves(settings: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _found(understood: Any, path: tuple[str, ...]) -> Any:
    """Return what the parsed settings hold at a place of the dictionary, or NOT_UNDERSTOOD."""
    match path:
        case ("optimizer", "type"):
            return understood.optimizer_name
        case ("optimizer", "params", key):
            known = {*inspect.signature(torch.optim.AdamW).parameters, "torch_adam"}
            return understood.optimizer_params[key] if key in known else NOT_UNDERSTOOD
        case ("bf16", key):
            return getattr(understood.bfloat16_config, key, NOT_UNDERSTOOD)
        case ("zero_optimization", key):
            return getattr(understood.zero_config, key, NOT_UNDERSTOOD)
        case ("data_types", key) | (key,):
            return getattr(understood, key, NOT_UNDERSTOOD)
    return NOT_UNDERSTOOD


def _parsed(path: tuple[str, ...], value: Any) -> Any:
    """Return a value as DeepSpeed holds it."""
    if path == ("optimizer", "type"):
        return value.lower()
    return DTYPES[value] if path == ("communication_data_type",) else value
