"""The plan as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def lines(told: dict[str, Any]) -> Iterator[str]:
    """Yield the plan for people."""
    gpu, costs = told["gpu"], told["costs"]
    yield f"SDXL {told['model']}, {costs['parameters']:,} parameters, {told['side_px']} px"
    yield f"{told['gpus']} x {gpu['name']}, ZeRO-{told['zero_stage']}"
    speeds = f"{gpu['peak_tflops']:g} TFLOP/s bf16, {gpu['intra_gb_s']:g} GB/s in its node"
    yield f"of each: {gpu['memory_gb']:g} GB, {speeds}"
    yield "assumed:"
    yield "  " + ", ".join(f"{name} {value:g}" for name, value in told["assumptions"].items())
    yield from _costs(costs)
    yield ""
    yield f"how {told['global_batch']} is made up (micro-batch x accumulation x GPUs)"
    yield "  micro  accum  checkpointed  memory GB  fits  step s  images/s"
    for shape in told["shapes"]:
        yield (
            f"  {shape['micro_batch']:>5}  {shape['accumulation']:>5}  {shape['activation_checkpointing']:>12}"
            f"  {shape['memory_gb_needed']:>9.1f}  {'yes' if shape['fits'] else 'no':>4}"
            f"  {shape['step_s']:>6.3f}  {shape['images_per_s']:>8,.0f}"
            + ("  as configured" if told["configured"].items() <= shape.items() else "")
        )
    if "refused" in told["configured"]:
        yield f"the settings' own batch is none of these: {told['configured']['refused']}"
    yield from _recommended(told)


def _costs(costs: dict[str, Any]) -> Iterator[str]:
    yield ""
    kinds = costs["by_recomputed"]
    yield f"{'one image, counted, by speed.activation_checkpointing':<54}" + "".join(f"{kind:>14}" for kind in kinds)
    for name, digits in (("forward_tflop", 3), ("all_tflop", 3), ("saved_gb", 2), ("peak_gb", 2)):
        yield f"  {SHOWN[name]:<52}" + "".join(f"{counted[name]:>14.{digits}f}" for counted in kinds.values())
    yield f"  encoders: {costs['frozen_parameters']:,} parameters, {costs['frozen_tflop']:.3f} TFLOP"


SHOWN = {
    "forward_tflop": "forward, TFLOP",
    "all_tflop": "forward and backward, TFLOP",
    "saved_gb": "saved for the backward pass, GB",
    "peak_gb": "held at the peak, GB",
}


def _recommended(told: dict[str, Any]) -> Iterator[str]:
    chosen = told["recommended"]
    yield ""
    if chosen is None:
        yield "nothing fits"
        return
    yield (
        f"recommended: batch.micro_batch {chosen['micro_batch']}, batch.grad_accumulation {chosen['accumulation']},"
        f" speed.activation_checkpointing {chosen['activation_checkpointing']}"
    )
    for name, size in chosen["memory_gb"].items():
        if size:
            past = "" if name in chosen["held_at_the_peak"] else ", not at that time"
            yield f"  {name:<46} {size:>8.3f} GB{past}"
    yield f"  {'needed at a time':<46} {chosen['memory_gb_needed']:>8.3f} GB"
    yield (
        f"  each GPU sends {chosen['reduce_gb']:.2f} GB of gradients and {chosen['gather_gb']:.2f} GB of weights a step"
        f" and reads {chosen['read_mb']:.1f} MB"
    )
    yield (
        f"{told['steps']:,} steps of {chosen['step_s']:.3f} s: {told['days']:.1f} days,"
        f" {told['gpu_hours']:,.0f} GPU hours, {told['money']:,.0f} US dollars at {told['gpu']['price']:g} an hour"
    )
    yield ""
    yield "one step by GPUs, each with its best shape (seconds; exposed: what computing does not hide)"
    yield "   GPUs  micro  accum  checkpointed  compute  reduce  exposed  gather    data    step  images/s"
    for ranks, step in told["by_gpus"].items():
        yield (
            f"  {ranks:>5}  {step['micro_batch']:>5}  {step['accumulation']:>5}"
            f"  {step['activation_checkpointing']:>12}"
            f"  {step['compute_s']:>7.3f}  {step['reduce_s']:>6.3f}  {step['reduce_exposed_s']:>7.3f}"
            f"  {step['gather_s']:>6.3f}  {step['read_s']:>6.3f}  {step['step_s']:>6.3f}  {step['images_per_s']:>8,.0f}"
        )
    yield ""
    yield "F forward, B backward, R reduce, G gather, D data; a small letter: busy for less than half of its place"
    for ranks, step in told["by_gpus"].items():
        yield ""
        yield f"{ranks} GPUs, {step['step_s']:.3f} s"
        yield from step["bars"]
