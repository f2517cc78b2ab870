#!/usr/bin/env python3
"""What a GPU does in one forward and backward pass of the U-Net, kernels by kind, and what it could do at best.

    python infra/bench/gpu_profile.py                          ceilings, and the full base at 1024 px with each variant
    python infra/bench/gpu_profile.py --parts ceilings
    python infra/bench/gpu_profile.py --micro_batch 16 --variants plain compile+channels_last+fused_geglu --top 40

Ceilings are matrix products and convolutions of the sizes that SDXL has, a large copy, and attention by each kernel
that torch has. The passes have no optimiser and no ZeRO, so that the network alone is seen: `ms` is the time of a
pass, `busy_ms` what kernels ran of it, and the rest is time in which the GPU waited for the CPU. bf16. One JSON line
for each; needs a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
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
from torch import nn  # noqa: E402
from torch.nn.attention import sdpa_kernel  # noqa: E402
from train_step import batch_of, timed  # noqa: E402

from train.config import BatchConfig, TrainConfig  # noqa: E402
from train.flops import peak_flops  # noqa: E402
from train.model import build_unet, output_layers, predict  # noqa: E402
from train.plan.network import count_unet  # noqa: E402
from train.recipes import RECIPES  # noqa: E402
from train.speed import SpeedConfig  # noqa: E402
from train.switches import BACKENDS, apply_switches  # noqa: E402

BF16 = torch.bfloat16
VARIANTS = ("plain", "channels_last", "fused_geglu", "compile+channels_last", "compile+channels_last+fused_geglu")
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
    "compiled": ("triton", "forward_kernel", "backward_kernel"),
    "norm": ("norm", "moments", "gammabeta"),
    "copy": ("memcpy", "memset", "cat", "copy"),
    "elementwise": ("elementwise", "reduce"),
}
"""Parts of kernels' names, the first kind that has one being taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("ceilings", "passes"), default=["ceilings", "passes"])
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
    if "passes" in args.parts:
        batch = BatchConfig(global_batch=args.micro_batch, micro_batch=args.micro_batch)
        config = dataclasses.replace(RECIPES[args.model](), batch=batch)
        for variant in args.variants:
            passes(config, variant, args.passes, args.top)


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


def passes(config: TrainConfig, variant: str, count: int, top: int) -> None:
    """Print the time of forward and backward under some switches, and the kernels' times by kind."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    device = torch.device("cuda")
    switches = {} if variant == "plain" else dict.fromkeys(variant.split("+"), True)
    with device:
        unet = build_unet(config).train()
        for layer in output_layers(unet):  # zeros are quicker to multiply than a trained network's numbers
            nn.init.normal_(layer.weight, std=0.02)
    unet.to(BF16)
    apply_switches(unet, SpeedConfig(**switches), device)
    side = config.unet.sample_size
    batch = batch_of(config, (side, side), device)
    target_BCHW = batch.pop("target_BCHW")

    def one() -> None:
        (predict(unet, BF16, **batch) - target_BCHW).square().mean().backward()
        unet.zero_grad(set_to_none=True)

    first_s = timed(one, True)
    one()
    took = statistics.median(timed(one, True) for _ in range(count))
    work = config.batch.micro_batch * 3.0 * count_unet(config, "none", (side, side)).forward_flops
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    kernels = list(kernels_of(one))
    kinds = Counter[str]()
    for name, start, end in kernels:
        kinds[kind_of(name)] += end - start
    told = {"first_s": round(first_s, 1), "ms": round(1000 * took, 1), "busy_ms": busy_ms(kernels)}
    told |= {"mfu_of_peak": round(work / took / peak, 3)} if peak else {}
    told |= {"peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1), "kernels": len(kernels)}
    told |= {"ms_by_kind": {kind: round(took / 1000, 1) for kind, took in kinds.most_common()}}
    say("passes", model=config.model, micro_batch=config.batch.micro_batch, variant=variant, **told)
    by_name = Counter[str]()
    for name, start, end in kernels:
        by_name[name] += end - start
    for name, microseconds in by_name.most_common(top):
        calls = sum(name == other for other, _, _ in kernels)
        say("kernel", variant=variant, ms=round(microseconds / 1000, 2), calls=calls, name=name[:120])


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
