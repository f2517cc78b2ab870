#!/usr/bin/env python3
"""What a checkpoint costs the steps: step times with none, with one written beside them, and waiting for each.

    python infra/bench/checkpoint.py [--parameters 20000000] [--steps 60] [--every 10] [--folder PLACE]
    torchrun --nproc-per-node=8 infra/bench/checkpoint.py --parameters 2567463684 --rows 512     GPUs, each a rank

A stack of linear layers with that many parameters takes real steps of the training's engine (ZeRO-2, AdamW, averaged
weights) in fp32. `--folder` may be a URL; without it a temporary folder is used. One JSON line for each way; the ways
take turns, and a step's time is the median of its kind. On a machine without spare cores the writer's hashing takes
time from the steps, which then shows as slower steps "while_writing".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

from train.checkpoint.files import State  # noqa: E402
from train.checkpoint.writer import Writer  # noqa: E402
from train.config import BatchConfig  # noqa: E402
from train.ema import Ema  # noqa: E402
from train.engine import Engine, World, start_world  # noqa: E402
from train.recipes import base  # noqa: E402

WIDTH, LR = 1024, 1e-4
WAYS = ("none", "beside", "waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--rows", type=int, default=128, help="rows of a batch on each rank")
    parser.add_argument("--steps", type=int, default=60, help="steps of each way")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--folder", help="where checkpoints go: a folder or an fsspec URL")
    args = parser.parse_args()
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_PORT", "29511")
    world = start_world()
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as temporary:
        folder = [args.folder or temporary]
        dist.broadcast_object_list(folder, src=0)
        measure(args, folder[0], world)
    dist.destroy_process_group()


def measure(args: argparse.Namespace, folder: str, world: World) -> None:
    layers = max(1, round(args.parameters / (WIDTH * WIDTH + WIDTH)))
    network = nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU()) for _ in range(layers)])
    batch = BatchConfig(global_batch=world.size, micro_batch=1)
    engine = Engine(dataclasses.replace(base(), precision="fp32", batch=batch), network, world)
    run = Run(engine, Ema(engine.master, 0.9999), Writer(folder, world, keep=1), args)
    run.steps("none", 5)  # warm-up
    run.writer.save(engine, run.ema, run.state())  # allocates the host's copy
    run.writer.finish()
    run.forget()
    for _ in range(3):
        for way in WAYS:
            run.steps(way, args.steps // 3)
    if world.rank == 0:
        for way in WAYS:
            print(json.dumps(run.line(way)), flush=True)
    dist.barrier()


class Run:
    """Steps of the engine, and how long each took."""

    def __init__(self, engine: Engine, ema: Ema, writer: Writer, args: argparse.Namespace) -> None:
        self.engine, self.ema, self.writer, self._args = engine, ema, writer, args
        self._rows = torch.randn(args.rows, WIDTH, device=engine.world.device)
        self._num_elements = sum(parameter.numel() for parameter in engine.unet.parameters())
        self._step = 0
        self.forget()

    def forget(self) -> None:
        self._times: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
        self._stalls: dict[str, list[float]] = {way: [] for way in WAYS}
        self._seconds = dict.fromkeys(WAYS, 0.0)
        self._done = dict.fromkeys(WAYS, 0)

    def steps(self, way: str, count: int) -> None:
        began = time.perf_counter()
        for _ in range(count):
            busy, step_began = self.writer.busy, time.perf_counter()
            self._one_step()
            self._times[way, busy].append(time.perf_counter() - step_began)
            if way != "none" and self._step % self._args.every == 0:
                self._stalls[way].append(self._save(way))
        self._seconds[way] += time.perf_counter() - began
        self._done[way] += count
        self.writer.finish()

    def state(self) -> State:
        return State(step=self._step, seed=0, ema_updates=0, num_elements=self._num_elements, adam_step=0.0, config={})

    def line(self, way: str) -> dict[str, object]:
        """Return the figures of a way, times in milliseconds."""
        medians = {
            name: round(1000 * statistics.median(times), 1)
            for name, times in (
                ("step_ms", self._times[way, False]),
                ("step_ms_while_writing", self._times[way, True]),
                ("stall_ms", self._stalls[way]),
            )
            if times
        }
        said = {"bench": "checkpoint", "checkpoints": way, "ranks": self.engine.world.size}
        said |= {"checkpoint_mb": round(16 * self._num_elements / 1e6), "device": self.engine.world.device.type}
        mean = round(1000 * self._seconds[way] / self._done[way], 1)
        return said | medians | {"mean_step_ms_with_stalls": mean}

    def _one_step(self) -> None:
        self.engine.backward(self.engine.engine(self._rows).square().mean())
        self.engine.step(LR)
        self.ema.update(self.engine.master)
        self._step += 1
        if self._rows.is_cuda:
            torch.cuda.synchronize()

    def _save(self, way: str) -> float:
        """Return the seconds that the steps stood still."""
        began = time.perf_counter()
        self.writer.save(self.engine, self.ema, self.state())
        if way == "waiting":
            self.writer.finish()
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
