"""What one GPU holds during a step under ZeRO-1 or 2, item by item, in 10^9 bytes."""

from __future__ import annotations

from dataclasses import dataclass

from train.config import TrainConfig
from train.plan.network import Counted

GB = 1e9
MASTER_AND_MOMENTS_BYTES, EMA_BYTES = 12, 4
SAVED, BACKWARD = "activations saved for the backward pass", "more at the peak of the backward pass"
GRADIENTS = "gradients of a pass, at its end"
ENCODING, STEP = "encoding of pictures, before", "copies of the own part's gradient, at the step"
TIMES = ((ENCODING,), (SAVED, BACKWARD), (GRADIENTS,), (STEP,))
"""What is held for a part of the step only, by that part."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The encoders beside the U-Net, and what they cost."""

    parameters: int
    """Of the text towers, and of the autoencoder where pictures are encoded on the way."""
    flops_an_image: float
    """Operations for one image."""
    peak_bytes: int
    """Most that encoding one picture holds; 0 where latents are read."""


def memory_gb(
    config: TrainConfig, parameters: int, counted: Counted, frozen: Frozen, *, ranks: int, micro_batch: int
) -> dict[str, float]:
    """Return the items; `needed_gb` knows which of them are held at the same time.

    DeepSpeed flattens the weights into one buffer, keeps fp32 masters, both moments and the EMA of its own part. Under
    ZeRO-2 it fills buckets of which overlapping keeps two (stage_1_and_2.py: setup_buckets,
    gradient_reduction_w_predivide), and at the step it flattens the fp32 gradient of its part once more. Under ZeRO-1
    in bf16 the engine adds the gradients of a pass up when all are there. Graphs keep the activations' memory.
    """
    width = 2 if config.precision == "bf16" else 4
    part = -(-parameters // ranks)
    zero_2 = config.zero.stage == 2
    zero_1_in_bf16 = not zero_2 and config.precision == "bf16"
    graphs = config.speed.cuda_graphs
    items = {
        "weights": parameters * width,
        "gradients kept, summed up in fp32": (part if zero_2 else parameters) * 4,
        "fp32 masters and two moments": part * MASTER_AND_MOMENTS_BYTES,
        "EMA": part * EMA_BYTES,
        "reduce buckets": config.zero.reduce_bucket_elements * bucket_bytes(config) if zero_2 else 0,
        "gradients of CUDA graphs": parameters * width if graphs else 0,
        "pool of CUDA graphs": micro_batch * counted.peak_bytes if graphs else 0,
        "weights of convolutions, laid out anew": counted.fixed_bytes,
        "frozen encoders": frozen.parameters * width,
        SAVED: 0 if graphs else micro_batch * counted.saved_bytes,
        BACKWARD: 0 if graphs else micro_batch * (counted.peak_bytes - counted.saved_bytes),
        ENCODING: micro_batch * frozen.peak_bytes,
        GRADIENTS: parameters * width if zero_1_in_bf16 and not graphs else 0,
        STEP: part * 8 if zero_2 else 0,
    }
    return {name: size / GB for name, size in items.items()}


def sent_bytes(config: TrainConfig) -> int:
    """Return the bytes of a gradient's element on its way between ranks."""
    return 2 if config.precision == "bf16" and config.zero.reduce_dtype == "bf16" else 4


def bucket_bytes(config: TrainConfig) -> int:
    """Return the bytes for each element of ZeRO-2's buckets: it fills them with gradients as they are, sends a copy."""
    width = 2 if config.precision == "bf16" else 4
    buckets = 2 if config.zero.overlap_comm else 1
    return width * buckets + (sent_bytes(config) if sent_bytes(config) != width else 0)


def at_the_peak(items: dict[str, float]) -> dict[str, float]:
    """Return the items that are held when most is: the lasting ones, and those of one time of the step.

    Pictures are encoded, activations held, gradients added up, the optimiser steps: one after the other.
    """
    peak = max(TIMES, key=lambda names: sum(items[name] for name in names))
    past = {name for names in TIMES if names != peak for name in names}
    return {name: size for name, size in items.items() if name not in past}


def needed_gb(items: dict[str, float]) -> float:
    """Return the most that is held at a time."""
    return sum(at_the_peak(items).values())
