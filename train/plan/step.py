"""One step, simulated: computing, reducing while it computes, then the optimiser's gather; seconds on one rank."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from train.config import TrainConfig
from train.plan.gpus import Assumptions, Gpu
from train.plan.memory import sent_bytes

FORWARD_SHARE = 1.0 / 3.0
"""Of a micro-batch's time; the backward pass has two matrix products for each one of the forward pass."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Something that one rank does for a while."""

    lane: str
    """compute, network or data."""
    what: str
    """forward, backward, reduce, gather or read."""
    start_s: float
    """From the start of the step."""
    end_s: float
    """From the start of the step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step."""

    spans: tuple[Span, ...]
    """In the order of their start within each lane."""
    compute_s: float
    """Forward and backward of all micro-batches."""
    reduce_s: float
    """The network's time for gradients, most of it beside the backward pass."""
    reduce_exposed_s: float
    """What is left of it after the last backward pass."""
    gather_s: float
    """The weights after the optimiser, which nothing hides."""
    read_s: float
    """Reading of the samples, which goes on beside the step before."""
    step_s: float
    """From one step to the next."""


def collective_s(num_bytes: float, factor: float, ranks: int, gpu: Gpu, assumed: Assumptions) -> float:
    """Return the time of one ring collective: factor 1 for a gather, 2 for an all-reduce, of (n - 1) / n of the bytes.

    NCCL lays a ring through all nodes for each adapter, and each ring carries its share of the bytes. So what leaves
    a node leaves it through all its adapters, one for each GPU, and NVLink or these together are the slower part
    (nccl-tests, PERFORMANCE.md: bus bandwidth).
    """
    if ranks == 1:
        return 0.0
    between = ranks > assumed.gpus_per_node
    all_adapters_gb_s = assumed.inter_gb_s * assumed.gpus_per_node
    link_gb_s = min(gpu.intra_gb_s, all_adapters_gb_s) if between else gpu.intra_gb_s
    moved = factor * num_bytes * (ranks - 1) / ranks
    hops = 2.0 * math.ceil(math.log2(ranks))
    return moved / (link_gb_s * 1e9 * assumed.link_efficiency) + hops * assumed.hop_us * 1e-6


def reduces_beside_the_pass(config: TrainConfig) -> bool:
    """Return whether gradients are reduced while others are computed.

    Not where a graph hands over all of them at once, and not under ZeRO-1 in bf16, which reduces its flat gradient.
    """
    flat = config.zero.stage == 1 and config.precision == "bf16"
    return config.zero.overlap_comm and not config.speed.cuda_graphs and not flat


def simulate(
    config: TrainConfig,
    *,
    parameters: int,
    pass_flops: float,
    accumulation: int,
    ranks: int,
    read_bytes: float,
    gpu: Gpu,
    assumed: Assumptions,
    speed_flops: float,
) -> Step:
    """Return one step of `accumulation` passes of `pass_flops` each, computed at `speed_flops` a second.

    Buckets become ready evenly over a backward pass and are reduced in their order. DeepSpeed all-reduces them even
    under ZeRO-2 (stage_1_and_2.py: use_multi_rank_bucket_allreduce), in every pass; under ZeRO-1 in the last one only.
    """
    overlaps = reduces_beside_the_pass(config)
    num_buckets = -(-parameters // config.zero.reduce_bucket_elements)
    bucket_elements = parameters / num_buckets
    bucket_s = collective_s(bucket_elements * sent_bytes(config), 2.0, ranks, gpu, assumed)
    width = 2 if config.precision == "bf16" else 4
    pass_s = pass_flops / speed_flops
    spans: list[Span] = []
    now = network = 0.0
    for number in range(accumulation):
        half = now + FORWARD_SHARE * pass_s
        end = now + pass_s
        spans += [Span(lane="compute", what="forward", start_s=now, end_s=half)]
        spans += [Span(lane="compute", what="backward", start_s=half, end_s=end)]
        now = end
        if ranks > 1 and (config.zero.stage == 2 or number == accumulation - 1):
            for bucket in range(num_buckets):
                ready = half + (end - half) * (bucket + 1) / num_buckets
                start = max(network, ready if overlaps else end)
                network = start + bucket_s
                spans.append(Span(lane="network", what="reduce", start_s=start, end_s=network))
            now = now if overlaps else network
    reduced = max(now, network)
    gather_s = num_buckets * collective_s(bucket_elements * width, 1.0, ranks, gpu, assumed)
    spans.append(Span(lane="network", what="gather", start_s=reduced, end_s=reduced + gather_s))
    read_s = read_bytes / (assumed.node_read_gb_s * 1e9 / assumed.gpus_per_node)
    spans.append(Span(lane="data", what="read", start_s=0.0, end_s=read_s))
    compute_s = accumulation * pass_s
    return Step(
        spans=tuple(spans),
        compute_s=compute_s,
        reduce_s=sum(span.end_s - span.start_s for span in spans if span.what == "reduce"),
        reduce_exposed_s=reduced - compute_s,
        gather_s=gather_s,
        read_s=read_s,
        step_s=max(reduced + gather_s, read_s),
    )


def bars(step: Step, width: int = 64) -> list[str]:
    """Return a line of text for each lane: F forward, B backward, R reduce, G gather, D data; small where half idle."""
    lines = []
    for lane in ("compute", "network", "data"):
        busy = [defaultdict[str, float](float) for _ in range(width)]
        for span in (span for span in step.spans if span.lane == lane):
            _spread(busy, span, width / step.step_s)
        lines.append(f"{lane:<8}|{''.join(map(_letter, busy))}|")
    return lines


def _spread(busy: list[defaultdict[str, float]], span: Span, cells_a_second: float) -> None:
    """Add to each cell the part of it that the span takes."""
    start, end = span.start_s * cells_a_second, span.end_s * cells_a_second
    for cell in range(int(start), min(math.ceil(end), len(busy))):
        busy[cell]["D" if span.what == "read" else span.what[0].upper()] += min(end, cell + 1) - max(start, cell)


def _letter(busy: dict[str, float]) -> str:
    share = sum(busy.values())
    if share < 1e-3:
        return "."
    letter = max(busy, key=lambda each: busy[each])
    return letter if share >= 0.5 else letter.lower()
