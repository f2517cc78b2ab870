#!/usr/bin/env python3
"""What a GPU does in one step of the U-Net, kernels by kind, and what it could do at best.

    python infra/bench/gpu_profile.py                          all parts, the full base at 1024 px with each variant
    python infra/bench/gpu_profile.py --parts ceilings fused
    python infra/bench/gpu_profile.py --parts step --micro_batch 16 --variants channels_last+fused_kernels --top 40

Ceilings are matrix products and convolutions of the sizes that SDXL has, a large copy, and attention by each kernel
that torch has. `fused` are the fused kernels beside torch's own, and the bandwidth that they reach if every number is
read and written once (a GroupNorm's input twice). The passes are forward and backward without optimiser and ZeRO, so
that the network alone is seen; `step` is the engine's whole step. `ms` is the time, `busy_ms` what kernels ran of it,
and the rest is time in which the GPU waited for the CPU. bf16. One JSON line for each; needs a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import sdpa_kernel  # noqa: E402
from train_step import Step, batch_of, engine_step, network, peak_memory, timed  # noqa: E402

from train.config import BatchConfig, TrainConfig  # noqa: E402
from train.engine import start_world  # noqa: E402
from train.flops import flops_an_image, peak_flops  # noqa: E402
from train.fused.geglu import geglu  # noqa: E402
from train.fused.group_norm import group_norm  # noqa: E402
from train.fused.layer_norm import add_layer_norm  # noqa: E402
from train.model import predict  # noqa: E402
from train.recipes import RECIPES  # noqa: E402
from train.speed import SpeedConfig, ZeroConfig  # noqa: E402
from train.switches import BACKENDS, apply_switches  # noqa: E402

BF16 = torch.bfloat16
FUSED = "channels_last+fused_kernels"
VARIANTS = ("plain", "channels_last", "compile+channels_last", FUSED, f"{FUSED}+cuda_graphs")
PARTS = ("ceilings", "fused", "passes", "step")
PRODUCTS_MNK = ((1, 1280, 1280), (1, 10240, 1280), (1, 1280, 5120), (4, 640, 640), (4, 5120, 640), (4, 640, 2560))
"""Products of the transformers; M in units of a sample's 1,024 tokens at the widest level."""
ATTENTION_HLS = ((10, 4096, 4096), (20, 1024, 1024), (10, 4096, 77), (20, 1024, 77))
"""Heads, queries, keys of self- and cross-attention; 64 channels a head."""
CONVOLUTIONS = ((320, 320, 128), (640, 640, 64), (1280, 1280, 32), (2560, 1280, 32), (960, 320, 128))
"""Channels in, channels out, side."""
KINDS = {
    "attention": ("flash", "fmha", "sdpa", "compute_dot_do_o", "convert_dq"),
    "layout": ("nchwtonhwc", "nhwctonchw"),
    "convolution": ("conv", "wgrad", "dgrad", "fprop", "implicit_gemm"),
    "product": ("gemm", "nvjet", "cutlass", "splitk"),
    "compiled": ("triton",),
    "fused": ("forward_kernel", "backward_kernel", "moments_kernel", "sums_kernel", "sum_kernel", "add_kernel"),
    "norm": ("norm", "moments", "gammabeta"),
    "copy": ("memcpy", "memset", "cat", "copy"),
    "elementwise": ("elementwise", "reduce"),
}
"""Parts of kernels' names, the first kind that has one being taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", choices=sorted(RECIPES), default="base")
    parser.add_argument("--micro_batch", type=int, default=8)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="switches of `speed`, joined by +")
    parser.add_argument("--passes", type=int, default=6, help="timed passes of each")
    parser.add_argument("--top", type=int, default=0, help="also print this many kernels of each")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_profile: needs a GPU; python infra/bench/train_step.py runs on a CPU, too")
    machine = {"device": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    machine |= {name: version(name) for name in ("torch", "diffusers")} | {"date": date.today().isoformat()}
    say("machine", **machine)
    if "ceilings" in args.parts:
        ceilings(args.micro_batch)
    if "fused" in args.parts:
        fused(args.micro_batch)
    batch = BatchConfig(global_batch=args.micro_batch, micro_batch=args.micro_batch)
    config = dataclasses.replace(RECIPES[args.model](), batch=batch, zero=ZeroConfig(stage=1))
    for part, variant in itertools.product(("passes", "step"), args.variants):
        if part in args.parts:
            profiled(part, dataclasses.replace(config, speed=speed_of(variant)), variant, args.passes, args.top)


def say(part: str, **told: Any) -> None:
    print(json.dumps({"bench": "gpu_profile", "part": part} | told), flush=True)


def ceilings(micro_batch: int) -> None:
    """Print TFLOP/s of products, attention and convolutions, and TB/s of a copy."""
    say("matrix", tflops=round(2e-12 * 8192**3 / seconds(product(8192, 8192, 8192))))
    source = normal(1 << 29)
    target = torch.empty_like(source)
    say("copy", tb_per_s=round(2e-12 * source.nbytes / seconds(lambda: target.copy_(source)), 2))
    for units, n, k in PRODUCTS_MNK:
        m = 1024 * units * micro_batch
        say("product", mnk=(m, n, k), tflops=round(2e-12 * m * n * k / seconds(product(m, n, k))))
    for heads, queries, keys in ATTENTION_HLS:
        for kernel in ("flash", "cudnn", "efficient"):
            attention(micro_batch, heads, queries, keys, kernel)
    for (channels_in, channels_out, side), nhwc in itertools.product(CONVOLUTIONS, (False, True)):
        convolution(micro_batch, channels_in, channels_out, side, nhwc)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16)


def product(m: int, n: int, k: int) -> Callable[[], object]:
    left, weight = normal(m, k), normal(n, k)
    return lambda: F.linear(left, weight)


def attention(batch: int, heads: int, queries: int, keys: int, kernel: str) -> None:
    query, key, value = (normal(batch, length, heads * 64).requires_grad_() for length in (queries, keys, keys))
    split = lambda tensor: tensor.view(batch, -1, heads, 64).transpose(1, 2)  # noqa: E731
    with sdpa_kernel(BACKENDS[kernel]):
        forward = lambda: F.scaled_dot_product_attention(split(query), split(key), split(value))  # noqa: E731
        both = lambda: forward().sum().backward()  # noqa: E731
        times = {"forward_ms": seconds(forward), "forward_backward_ms": seconds(both)}
    told = {name: round(1000 * each, 3) for name, each in times.items()}
    flops = 4 * batch * heads * queries * keys * 64
    say("attention", bhls=(batch, heads, queries, keys), kernel=kernel, **told, flops=flops)


def convolution(batch: int, channels_in: int, channels_out: int, side: int, nhwc: bool) -> None:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    pixels = normal(batch, channels_in, side, side).to(memory_format=layout).requires_grad_()
    weight = normal(channels_out, channels_in, 3, 3).requires_grad_()  # NCHW, as ZeRO's flat vector has it
    upstream = normal(batch, channels_out, side, side).to(memory_format=layout)
    took = seconds(lambda: F.conv2d(pixels, weight, padding=1).backward(upstream))
    flops = 3 * 2 * 9 * channels_in * channels_out * side**2 * batch
    say("convolution", channels=(channels_in, channels_out), side=side, nhwc=nhwc, tflops=round(flops / took / 1e12))


def seconds(work: Callable[[], object], calls: int = 20) -> float:
    """Return the time of one call, many of them in the GPU's queue at a time."""
    times = [timed(lambda: [work() for _ in range(calls)], True) / calls for _ in range(5)]
    return statistics.median(times[1:])


def fused(micro_batch: int) -> None:
    """Print forward and backward time of the fused kernels beside torch's, as long as they are on the GPU."""
    for side, width in ((64, 640), (32, 1280)):
        hidden, residual = (normal(micro_batch, side**2, width).requires_grad_() for _ in range(2))
        gain, shift, bias = (normal(width).requires_grad_() for _ in range(3))
        norm = lambda x, g=gain, s=shift: F.layer_norm(x, g.shape, g, s)  # noqa: E731
        plain = lambda h=hidden, r=residual, b=bias, n=norm: n(h + b + r)  # noqa: E731
        own = lambda h=hidden, r=residual, b=bias, g=gain, s=shift: add_layer_norm(h, b, r, g, s, 1e-5)[1]  # noqa: E731
        beside("add_layer_norm", (side**2, width), plain, own, 7 * hidden.nbytes)
        projected, both = normal(micro_batch, side**2, 8 * width).requires_grad_(), normal(8 * width).requires_grad_()

        def plain_geglu(projected: torch.Tensor = projected, both: torch.Tensor = both) -> torch.Tensor:
            value, gate = (projected + both).chunk(2, dim=-1)
            return value * F.gelu(gate)

        own = lambda p=projected, b=both: geglu(p, b)  # noqa: E731
        beside("geglu", (side**2, 8 * width), plain_geglu, own, 4 * projected.nbytes)
    for side, width in ((128, 320), (128, 960), (64, 640), (32, 1280), (32, 2560)):
        pixels = normal(micro_batch, width, side, side).to(memory_format=torch.channels_last).requires_grad_()
        offset, gain, shift = (normal(*shape).requires_grad_() for shape in ((micro_batch, width), (width,), (width,)))
        plain = lambda p=pixels, o=offset, g=gain, s=shift: F.silu(F.group_norm(p + o[:, :, None, None], 32, g, s))  # noqa: E731
        own = lambda p=pixels, o=offset, g=gain, s=shift: group_norm(p, o, g, s, 32, 1e-5, True)[0]  # noqa: E731
        beside("group_norm", (width, side, side), plain, own, 8 * pixels.nbytes)


def beside(name: str, shape: tuple[int, ...], plain: Step, own: Step, nbytes: int) -> None:
    """Print the kernels' time of two ways, and the bandwidth of the second if it moved so many bytes."""
    upstream = torch.randn_like(own())
    took = {}
    for way, work in (("plain_ms", plain), ("fused_ms", own)):
        both = lambda work=work: [work().backward(upstream) for _ in range(5)]  # noqa: E731
        both()
        took[way] = busy_ms(list(kernels_of(both))) / 5
    told = {way: round(each, 3) for way, each in took.items()}
    say("fused", name=name, shape=shape, **told, tb_per_s=round(nbytes / took["fused_ms"] / 1e9, 2))


def speed_of(variant: str) -> SpeedConfig:
    return SpeedConfig(**({} if variant == "plain" else dict.fromkeys(variant.split("+"), True)))


def profiled(part: str, config: TrainConfig, variant: str, count: int, top: int) -> None:
    """Print the time of the passes, or of a whole step, under some switches, and the kernels' times by kind."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    side = config.unet.sample_size
    one, close = {"passes": passes, "step": whole_step}[part](config, (side, side))
    first_s = timed(one, True)
    one()
    took = statistics.median(timed(one, True) for _ in range(count))
    work = config.batch.micro_batch * flops_an_image(config)
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    kernels = list(kernels_of(one))
    close()
    kinds = Counter[str]()
    for name, start, end in kernels:
        kinds[kind_of(name)] += end - start
    told = {"first_s": round(first_s, 1), "ms": round(1000 * took, 1), "busy_ms": busy_ms(kernels)}
    told |= {"mfu_of_peak": round(work / took / peak, 3)} if peak else {}
    told |= peak_memory() | {"kernels": len(kernels)}
    told |= {"ms_by_kind": {kind: round(took / 1000, 1) for kind, took in kinds.most_common()}}
    say(part, model=config.model, micro_batch=config.batch.micro_batch, variant=variant, **told)
    by_name = Counter[str]()
    for name, start, end in kernels:
        by_name[name] += end - start
    for name, microseconds in by_name.most_common(top):
        calls = sum(name == other for other, _, _ in kernels)
        say("kernel", variant=variant, ms=round(microseconds / 1000, 2), calls=calls, name=name[:120])


def passes(config: TrainConfig, hw: tuple[int, int]) -> tuple[Step, Step]:
    """Return forward and backward pass of the network by itself, and what lets go of it."""
    device = torch.device("cuda")
    unet = network(config, device).to(BF16)
    apply_switches(unet, config.speed, device)
    batch = batch_of(config, hw, device)
    target_BCHW = batch.pop("target_BCHW")

    def one() -> None:
        (predict(unet, BF16, **batch) - target_BCHW).square().mean().backward()
        unet.zero_grad(set_to_none=True)

    return one, lambda: None


def whole_step(config: TrainConfig, hw: tuple[int, int]) -> tuple[Step, Step]:
    """Return a step of the training's engine on one rank, and what lets go of it."""
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_PORT", "29513")
    world = start_world()
    return engine_step(config, batch_of(config, hw, world.device), world)


def kernels_of(work: Callable[[], object]) -> Iterator[tuple[str, float, float]]:
    """Yield name, start and end, in microseconds, of what runs on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            yield event.name, event.time_range.start, event.time_range.end


def kind_of(kernel: str) -> str:
    """Return what a kernel does, from its name."""
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def busy_ms(kernels: list[tuple[str, float, float]]) -> float:
    """Return the time in which at least one kernel ran."""
    busy = reached = 0.0
    for _, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return round(busy / 1000, 1)


if __name__ == "__main__":
    main()
