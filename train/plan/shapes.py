"""How the global batch can be made up on a number of GPUs, what each way costs, and which is best."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from train.config import TrainConfig
from train.model import count_parameters, meta_unet
from train.plan.gpus import Assumptions, Gpu
from train.plan.memory import GB, Frozen, at_the_peak, memory_gb, needed_gb, sent_bytes
from train.plan.network import TOKENS, Counted, count_encoder, count_unet, text_parameters
from train.plan.step import Step, bars, simulate
from train.speed import Recomputed

LATENT_NUMBER_BYTES = 2 * 2
"""Mean and log-variance of each number of a latent, in float16."""
MAX_MICRO_BATCH = 64
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was counted on the network."""

    parameters: int
    """Of the U-Net."""
    by_recomputed: dict[Recomputed, Counted]
    """One image, by which blocks are computed again in the backward pass (`speed.activation_checkpointing`)."""
    frozen: Frozen
    """The encoders."""

    @staticmethod
    def of(config: TrainConfig) -> Costs:
        """Count, in some ten seconds for the published networks."""
        return Costs(
            parameters=count_parameters(meta_unet(config).parameters()),
            by_recomputed={blocks: count_unet(config, blocks) for blocks in get_args(Recomputed)},
            frozen=_frozen(config),
        )

    def told(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "parameters": self.parameters,
            "frozen_parameters": self.frozen.parameters,
            "frozen_tflop": self.frozen.flops_an_image / 1e12,
            "by_recomputed": {blocks: _counted(counted) for blocks, counted in self.by_recomputed.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One way to make up the global batch."""

    micro_batch: int
    """Images of one pass on one GPU."""
    accumulation: int
    """Passes of one step."""
    recomputed: Recomputed
    """Blocks that are computed again in the backward pass."""
    memory_gb: dict[str, float]
    """Memory of one GPU by item."""
    fits: bool
    """Whether it fits, with what is reserved and fragmented."""
    images: int
    """Images of one step, over all GPUs."""
    sent_gb: tuple[float, float]
    """What one GPU sends in a step: gradients, weights."""
    read_bytes: float
    """What one GPU reads in a step."""
    step: Step
    """The simulated step."""

    def told(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        step = dataclasses.asdict(self.step)
        spans = step.pop("spans")
        return {
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "activation_checkpointing": self.recomputed,
            "memory_gb": self.memory_gb,
            "held_at_the_peak": [*at_the_peak(self.memory_gb)],
            "memory_gb_needed": needed_gb(self.memory_gb),
            "fits": self.fits,
            "reduce_gb": self.sent_gb[0],
            "gather_gb": self.sent_gb[1],
            "read_mb": self.read_bytes / 1e6,
            "images_per_s": self.images / self.step.step_s,
            **step,
            "spans": spans,
            "bars": bars(self.step),
        }


def shapes(config: TrainConfig, costs: Costs, gpus: int, gpu: Gpu, assumed: Assumptions) -> list[Shape]:
    """Return the ways with a power of two or the configured number as micro-batch.

    There are none where the global batch is no multiple of `gpus`.
    """
    share, rest = divmod(config.batch.global_batch, gpus)
    if rest:
        return []
    asked = config.batch.micro_batch or max(1, share // config.batch.grad_accumulation)
    tried = {2**power for power in range(MAX_MICRO_BATCH.bit_length())} | {asked}
    micro_batches = sorted(micro_batch for micro_batch in tried if share % micro_batch == 0)
    return [
        _shape(config, costs, gpus, gpu, assumed, micro_batch=micro_batch, recomputed=recomputed)
        for recomputed in costs.by_recomputed
        for micro_batch in reversed(micro_batches)
    ]


def best(found: list[Shape]) -> Shape | None:
    """Return the fastest way that fits, among equally fast ones that with the fewest passes; None where none fits."""
    fitting = [shape for shape in found if shape.fits]
    return min(fitting, key=lambda shape: (round(shape.step.step_s, DIGITS), shape.accumulation), default=None)


def _shape(
    config: TrainConfig,
    costs: Costs,
    gpus: int,
    gpu: Gpu,
    assumed: Assumptions,
    *,
    micro_batch: int,
    recomputed: Recomputed,
) -> Shape:
    counted = costs.by_recomputed[recomputed]
    accumulation = config.batch.global_batch // (gpus * micro_batch)
    items = memory_gb(config, costs.parameters, counted, costs.frozen, ranks=gpus, micro_batch=micro_batch)
    room_gb = gpu.memory_gb * (1.0 - assumed.fragmentation) - assumed.reserved_gb
    read_bytes = accumulation * micro_batch * _sample_bytes(config, assumed)
    step = simulate(
        config,
        parameters=costs.parameters,
        pass_flops=micro_batch * (counted.all_flops + costs.frozen.flops_an_image),
        accumulation=accumulation,
        ranks=gpus,
        read_bytes=read_bytes,
        gpu=gpu,
        assumed=assumed,
        speed_flops=assumed.mfu * gpu.peak_tflops * 1e12,
    )
    return Shape(
        micro_batch=micro_batch,
        accumulation=accumulation,
        recomputed=recomputed,
        memory_gb=items,
        fits=needed_gb(items) <= room_gb,
        images=config.batch.global_batch,
        sent_gb=_sent_gb(config, costs.parameters, gpus, accumulation),
        read_bytes=read_bytes,
        step=step,
    )


def _sent_gb(config: TrainConfig, parameters: int, gpus: int, accumulation: int) -> tuple[float, float]:
    """Return what one GPU sends: ring all-reduces of the gradients, 2 (n - 1) / n of them, and a gather of weights."""
    width = 2 if config.precision == "bf16" else 4
    once = parameters * (gpus - 1) / gpus / GB
    passes = accumulation if config.zero.stage == 2 else 1
    return 2.0 * once * sent_bytes(config) * passes, once * width


def _sample_bytes(config: TrainConfig, assumed: Assumptions) -> float:
    if config.source == "images":
        return assumed.image_kb * 1e3
    return config.unet.latent_channels * config.unet.sample_size**2 * LATENT_NUMBER_BYTES


def _frozen(config: TrainConfig) -> Frozen:
    """Count the encoders: a text tower has two operations for each token and parameter of its layers."""
    parameters, multiplied = text_parameters(config)
    flops, peak_bytes = 2.0 * TOKENS * multiplied, 0
    if config.source == "images":
        of_encoder, encoding, peak_bytes = count_encoder(config.unet.sample_size * 8)
        parameters, flops = parameters + of_encoder, flops + encoding
    return Frozen(parameters=parameters, flops_an_image=flops, peak_bytes=peak_bytes)


def _counted(counted: Counted) -> dict[str, float]:
    return {
        "forward_tflop": counted.forward_flops / 1e12,
        "all_tflop": counted.all_flops / 1e12,
        "saved_gb": counted.saved_bytes / GB,
        "peak_gb": counted.peak_bytes / GB,
    }
