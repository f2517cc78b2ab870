#!/usr/bin/env python3
"""One training step of the U-Net beside a plain diffusers step, and the whole training loop beside the bare step.

    python infra/bench/train_step.py                                 the tiny network on a CPU, the full base on a GPU
    python infra/bench/train_step.py --model refiner --micro_batch 4 8 --bucket 1024x1024 832x1216
    python infra/bench/train_step.py --ways engine plain loop --channels_last --fused_kernels --cuda_graphs
    python infra/bench/train_step.py --each_switch                   the engine with each switch of `speed` by itself

`engine` is the training's own step (DeepSpeed on one rank, under ZeRO-1 unless told otherwise, AdamW) on inputs that
lie ready. `plain` is diffusers' U-Net with torch's AdamW and gradient clipping on the same inputs: on a GPU as
diffusers' published SDXL fine-tuning example sets it up (fp32 weights under autocast, gradient checkpointing), on a
CPU in the training's own precision without recomputation. `loop` is python -m train.run with everything: latents
read from shards, text towers, averaged weights, logs. Times are medians; on a CPU engine and plain take turns. MFU
counts three forward passes an image, without what is computed again, over the peak of the data sheet and over a
matrix product measured in the same run. One JSON line for each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import open_clip  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import yaml  # noqa: E402
from torch import nn  # noqa: E402

from train.config import TIME_IDS, BatchConfig, TrainConfig, UNetConfig  # noqa: E402
from train.engine import Engine, World, start_world  # noqa: E402
from train.flops import flops_an_image, peak_flops  # noqa: E402
from train.model import build_unet, output_layers, predict  # noqa: E402
from train.plan.network import TOKENS  # noqa: E402
from train.recipes import RECIPES  # noqa: E402
from train.speed import SpeedConfig, ZeroConfig  # noqa: E402
from train.switches import apply_switches  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2),
    attention_heads=(2, 4),
    layers_per_block=1,
    norm_groups=16,
    time_id_dim=32,
    cross_attention_dim=160,
    pooled_dim=96,
)
LR, FACTOR = 1e-5, 8
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(RECIPES), default="base")
    parser.add_argument("--size", choices=("tiny", "full"), help="default: full on a GPU, tiny on a CPU")
    parser.add_argument("--ways", nargs="+", choices=("engine", "plain", "loop"), default=["engine", "plain", "loop"])
    parser.add_argument("--micro_batch", type=int, nargs="+", help="default: 1 2 4 8 on a GPU, 8 on a CPU")
    parser.add_argument("--bucket", nargs="+", help="pixels, as 832x1216; default: the square of the size")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each")
    parser.add_argument("--zero_stage", type=int, choices=(1, 2), default=1, help="one rank has nothing to shard")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--fused_kernels", action="store_true")
    parser.add_argument("--cuda_graphs", action="store_true")
    parser.add_argument("--checkpointing", choices=("none", "deepest", "transformers", "all"), default="none")
    parser.add_argument("--each_switch", action="store_true", help="the engine with each switch of `speed` by itself")
    args = parser.parse_args()
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_PORT", "29512")
    world = start_world()
    on_gpu = world.device.type == "cuda"
    config = settings(args, on_gpu)
    matrix_flops = matrix_peak(world.device)
    for bucket in args.bucket or [None]:
        for micro_batch in args.micro_batch or ([1, 2, 4, 8] if on_gpu else [8]):
            config = dataclasses.replace(config, batch=BatchConfig(global_batch=micro_batch, micro_batch=micro_batch))
            work = each_switch if args.each_switch else measure
            work(args, config, latent_hw(config, bucket), world, matrix_flops)
    dist.destroy_process_group()


def settings(args: argparse.Namespace, on_gpu: bool) -> TrainConfig:
    """Return what both ways train: bf16 on a GPU, fp32 on a CPU."""
    config = RECIPES[args.model]()
    if (args.size or ("full" if on_gpu else "tiny")) == "tiny":
        config = dataclasses.replace(config, unet=TINY)
    switches = {name: getattr(args, name) for name in ("compile", "channels_last", "fused_kernels", "cuda_graphs")}
    speed = SpeedConfig(**switches, activation_checkpointing=args.checkpointing)
    zero = ZeroConfig(stage=args.zero_stage, reduce_bucket_elements=200_000_000 if on_gpu else 1_000_000)
    return dataclasses.replace(config, precision="bf16" if on_gpu else "fp32", speed=speed, zero=zero)


def latent_hw(config: TrainConfig, bucket: str | None) -> tuple[int, int]:
    if bucket is None:
        return config.unet.sample_size, config.unet.sample_size
    height, width = (int(side) // FACTOR for side in bucket.split("x"))
    return height, width


def measure(
    args: argparse.Namespace, config: TrainConfig, hw: tuple[int, int], world: World, matrix_flops: float
) -> None:
    """Print a line for each way and the ratios between them."""
    builders = {"engine": engine_step, "plain": plain_step}
    wanted = {name: builders[name] for name in args.ways if name in builders}
    of = functools.partial(seconds_of, config=config, hw=hw, world=world, steps=args.steps)
    one_by_one = world.device.type == "cuda"  # two copies of the full network leave no room for activations
    groups = [{name: wanted[name]} for name in wanted] if one_by_one else [wanted]
    flops = flops_an_image(config, hw)
    found: dict[str, dict[str, float]] = {}
    for measured in itertools.chain(map(of, groups), loop_of(args, config, hw)):
        found |= measured
        for way, told in measured.items():
            print(json.dumps(line(way, told, config, hw, world, flops, matrix_flops)), flush=True)
    took = {way: told["seconds"] for way, told in found.items()}
    ratios = {"plain_over_engine": ("plain", "engine"), "loop_over_engine": ("loop", "engine")}
    said = {name: round(took[a] / took[b], 3) for name, (a, b) in ratios.items() if {a, b} <= took.keys()}
    print(json.dumps({"bench": "train_step", "micro_batch": config.batch.micro_batch} | said), flush=True)


def loop_of(
    args: argparse.Namespace, config: TrainConfig, hw: tuple[int, int]
) -> Iterator[dict[str, dict[str, float]]]:
    if "loop" in args.ways:
        let_go()  # it is another process on the same GPU
        yield {"loop": {"seconds": loop_seconds(config, hw, args.steps)}}


def each_switch(
    args: argparse.Namespace, config: TrainConfig, hw: tuple[int, int], world: World, matrix_flops: float
) -> None:
    """Print a line for the engine without switches and with each of them."""
    on_gpu = world.device.type == "cuda"
    flops = flops_an_image(config, hw)
    plain = SpeedConfig()
    kinds = [{"fused_adamw": False}, {"compile": True}, {"channels_last": True}, {"attention": "math"}]
    kinds += [{"activation_checkpointing": blocks} for blocks in ("deepest", "transformers", "all")]
    kinds += [{"compile": True, "channels_last": True}]
    if on_gpu:
        fused = {"channels_last": True, "fused_kernels": True}
        kinds += [{"attention": "flash"}, {"cuda_graphs": True}, fused, fused | {"cuda_graphs": True}]
    for changes in ({}, *kinds, {}):
        varied = dataclasses.replace(config, speed=dataclasses.replace(plain, **changes))
        told = seconds_of({"engine": engine_step}, config=varied, hw=hw, world=world, steps=args.steps)["engine"]
        print(json.dumps(line("engine", told, varied, hw, world, flops, matrix_flops)), flush=True)


def seconds_of(
    builders: dict[str, Any], *, config: TrainConfig, hw: tuple[int, int], world: World, steps: int
) -> dict[str, dict[str, float]]:
    """Return the median step of each way, and the most memory of a GPU; the ways take turns, five steps at a time."""
    on_gpu = world.device.type == "cuda"
    let_go()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    batch = batch_of(config, hw, world.device)
    built = {name: builder(config, batch, world) for name, builder in builders.items()}
    for step, _ in built.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in built}
    while len(times[next(iter(times))]) < steps:
        for name, (step, _) in built.items():
            times[name].extend(timed(step, on_gpu) for _ in range(5))
    peak = peak_memory() if on_gpu else {}
    for _, close in built.values():
        close()
    return {name: {"seconds": statistics.median(each), **peak} for name, each in times.items()}


def peak_memory() -> dict[str, float]:
    """Return the most that tensors took at a time, and what was taken from the GPU for them: graphs keep their pool."""
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {f"peak_{name}_gb": round(size / 1e9, 2) for name, size in peaks.items()}


def let_go() -> None:
    """Free what an earlier measurement built: its network and optimiser hold each other."""
    gc.collect()
    torch.cuda.empty_cache()


def timed(step: Step, on_gpu: bool) -> float:
    began = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def batch_of(config: TrainConfig, hw: tuple[int, int], device: torch.device) -> dict[str, torch.Tensor]:
    """Return inputs of one step in the shapes of the training, the same ones for all ways."""
    unet, count = config.unet, config.batch.samples_a_pass
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    return {
        "noisy_BCHW": normal(count, unet.latent_channels, *hw),
        "target_BCHW": normal(count, unet.latent_channels, *hw),
        "timesteps_B": torch.randint(0, 200, (count,), generator=generator).to(device),
        "text_BLD": normal(count, TOKENS, unet.cross_attention_dim),
        "pooled_BD": normal(count, unet.pooled_dim),
        "time_ids_BT": torch.full((count, TIME_IDS[config.model]), 1024.0, device=device),
    }


def network(config: TrainConfig, device: torch.device) -> nn.Module:
    """Return the U-Net, built on the device; zeros are quicker to multiply than a trained network's numbers."""
    with device:
        unet = build_unet(config).train()
        for layer in output_layers(unet):
            nn.init.normal_(layer.weight, std=0.02)
    return unet


def engine_step(config: TrainConfig, batch: dict[str, torch.Tensor], world: World) -> tuple[Step, Step]:
    """Return a step of the training's engine, and what lets go of it."""
    unet = network(config, world.device)
    apply_switches(unet, config.speed, world.device)
    engine = Engine(config, unet, world)

    def step() -> None:
        inputs = {name: tensor for name, tensor in batch.items() if name != "target_BCHW"}
        prediction_BCHW = predict(engine.engine, engine.dtype, **inputs)
        engine.backward((prediction_BCHW - batch["target_BCHW"]).square().mean())
        engine.step(LR)

    return step, engine.close


def plain_step(config: TrainConfig, batch: dict[str, torch.Tensor], world: World) -> tuple[Step, Step]:
    """Return a step of plain diffusers and torch, and what lets go of it."""
    on_gpu = world.device.type == "cuda"
    unet = network(config, world.device)
    if on_gpu:
        unet.enable_gradient_checkpointing()
    wanted = config.optimizer
    betas = (wanted.beta1, wanted.beta2)
    adamw = torch.optim.AdamW(unet.parameters(), lr=LR, betas=betas, eps=wanted.epsilon, weight_decay=0.01)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            prediction_BCHW = unet(
                batch["noisy_BCHW"],
                batch["timesteps_B"],
                encoder_hidden_states=batch["text_BLD"],
                added_cond_kwargs={"text_embeds": batch["pooled_BD"], "time_ids": batch["time_ids_BT"]},
                return_dict=False,
            )[0]
        (prediction_BCHW.float() - batch["target_BCHW"]).square().mean().backward()
        nn.utils.clip_grad_norm_(unet.parameters(), wanted.clip_norm)
        adamw.step()
        adamw.zero_grad()

    return step, lambda: None


def loop_seconds(config: TrainConfig, hw: tuple[int, int], steps: int) -> float:
    """Return the median step of python -m train.run on made-up latents of one bucket, over its last steps."""
    with tempfile.TemporaryDirectory(prefix="bench-train-step-") as folder:
        root = Path(folder)
        file = write_run(root, config, hw)
        command = [sys.executable, "-m", "train.run", config.model, "--config", str(file), "--ranks", "1"]
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
        with (root / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=alone, stdout=log, stderr=log, start_new_session=True
            )
        metrics = root / f"train/{config.model}/metrics.jsonl"
        times = [0.0]
        while len(times) < steps + 6 and process.poll() is None:
            time.sleep(0.2)
            times = [at for at in step_times(metrics)]
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)  # it would write a checkpoint first
        process.wait()
        if ended:
            sys.exit(f"train.run ended: {(root / 'log').read_text()[-2000:]}")
    return statistics.median(after - before for before, after in zip(times[5:], times[6:], strict=False))


LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def step_times(metrics: Path) -> Iterator[float]:
    """Yield when each step of the log was done."""
    if not metrics.exists():
        return
    for text in metrics.read_text().splitlines(keepends=True):
        if text.endswith("\n") and "grad_norm" in (record := json.loads(text)):
            yield record["time"]


def write_run(root: Path, config: TrainConfig, hw: tuple[int, int]) -> Path:
    """Write latents of one bucket, an untrained autoencoder, and the settings of a run on them."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from train_data import write_root

    from train.autoencoder import latent_facts, save_vae

    height, width = (side * FACTOR for side in hw)
    write_root(root, "latents", max(64, 4 * config.batch.samples_a_pass), ((height, width),))
    ends = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    channels = config.unet.latent_channels
    vae = AutoencoderKL(
        down_block_types=ends[0],
        up_block_types=ends[1],
        block_out_channels=(8, 8, 8, 8),
        latent_channels=channels,
        norm_num_groups=8,
    )
    save_vae(vae, root / "vae")
    (root / "latents/run.json").write_text(json.dumps(latent_facts(vae)))
    settings = run_settings(root, config)
    settings["unet"]["sample_size"] = math.isqrt(hw[0] * hw[1])  # pictures of another size would be refused
    file = root / "darkroom.yaml"
    file.write_text(yaml.safe_dump({"root": str(root), "train": {config.model: settings}}))
    return file


def run_settings(root: Path, config: TrainConfig) -> dict[str, Any]:
    untrained = {"weights": None, "allow_untrained": True}
    towers: list[dict[str, Any]] = [
        {"architecture": tower.architecture, "padding": tower.padding} | untrained for tower in config.text_towers
    ]
    names = ("clip_a", "clip_b") if config.model == "base" else ("clip_b",)
    for tower, name in zip(towers, names, strict=True):
        demo = REPOSITORY / f"pipelines/demo_models/{name}.json"
        tower["architecture"] = str(demo) if config.unet == TINY else text_only(tower["architecture"], root)
    unet = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config.unet).items()}
    if config.unet == TINY and config.model == "refiner":
        unet["cross_attention_dim"] = unet["pooled_dim"]
    return {
        "unet": unet,
        "vae": str(root / "vae"),
        "text_towers": towers,
        "batch": dataclasses.asdict(config.batch),
        "precision": config.precision,
        "speed": dataclasses.asdict(config.speed),
        "zero": dataclasses.asdict(config.zero),
        "augment": {"flip_prob": 0.0},
        "grids": {"every_steps": 0},
        "validation_samples": config.batch.samples_a_pass,
        "checkpoint_every_steps": 1_000_000,
        "loader": {"workers": 2},
    }


def text_only(architecture: str, root: Path) -> str:
    """Return a model config with the text half of a CLIP and next to no other half: training lets go of that."""
    model = open_clip.get_model_config(architecture)
    model["vision_cfg"] = {"image_size": 28, "layers": 1, "width": 64, "patch_size": 14}
    file = root / f"text_of_{architecture}.json"
    file.write_text(json.dumps(model))
    return str(file)


def matrix_peak(device: torch.device) -> float:
    """Return the operations a second that a large square matrix product reaches, in the training's precision."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1536
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    times = [timed(lambda: torch.mm(left, left), on_gpu) for _ in range(12)]
    return 2.0 * side**3 / statistics.median(times[2:])


def line(
    way: str,
    told: dict[str, float],
    config: TrainConfig,
    hw: tuple[int, int],
    world: World,
    flops: float,
    matrix_flops: float,
) -> dict[str, Any]:
    """Return the figures of one way."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    images_per_s = config.batch.samples_a_pass / told["seconds"]
    peak = peak_flops(device, config.precision)
    said: dict[str, Any] = {"bench": "train_step", "way": way, "model": config.model, "device": device}
    said |= {"precision": config.precision, "bucket_px": f"{hw[0] * FACTOR}x{hw[1] * FACTOR}"}
    said |= {"micro_batch": config.batch.micro_batch, "speed": dataclasses.asdict(config.speed)}
    said |= {"step_ms": round(1000 * told["seconds"], 1), "images_per_s": round(images_per_s, 2)}
    said |= {"tflop_an_image": round(flops / 1e12, 4), "mfu_of_matrix": round(images_per_s * flops / matrix_flops, 3)}
    said |= {"matrix_tflops": round(matrix_flops / 1e12, 3)}
    said |= {"mfu_of_peak": round(images_per_s * flops / peak, 3)} if peak else {}
    said |= {name: value for name, value in told.items() if name != "seconds"}
    packages = {name: version(name) for name in ("torch", "deepspeed", "diffusers")}
    return said | packages | {"date": date.today().isoformat()}


if __name__ == "__main__":
    main()
