"""Run by two ranks: what a bf16 run under ZeRO-2 does with sizes, frozen networks, small updates and averages.

    RANK=... python -m tests.train.traps_on_two_ranks FOLDER --config darkroom.yaml

Each rank writes what it saw to FOLDER/rank-<n>.json.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.train.test_data import index_of
from train.config import BatchConfig, TrainConfig
from train.data.loader import Loader
from train.ema import Ema
from train.engine import Engine, World, start_world
from train.evaluate.scores import Scorer
from train.index.reader import Index
from train.model import build_unet, count_parameters, predict
from train.objective import Frozen, Objective
from train.settings import read_train_settings

LR, STEPS = 1e-3, 10


def main() -> None:
    folder = Path(sys.argv[1])
    said: TrainConfig = read_train_settings("base", sys.argv[2:], prog="test", description="")[0]
    config = replace(said, precision="bf16", source="images", batch=BatchConfig(global_batch=4, micro_batch=2))
    world = start_world()
    index = index_of(Path(config.data_root))
    facts = training_step(config, index, world) | small_updates(config, world) | shares_of_work(config, index, world)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(facts))
    dist.barrier()
    dist.destroy_process_group()


def training_step(config: TrainConfig, index: Index, world: World) -> dict[str, Any]:
    """One step of the U-Net on pictures, with sizes that bf16 cannot hold."""
    frozen = Frozen(config, world.device)
    unet = build_unet(config).train()
    num_parameters = count_parameters(unet.parameters())
    engine = Engine(config, unet, world)
    ema = Ema(engine.master, config.ema_decay)
    seen: list[Any] = []
    unet.add_time_proj.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output.dtype)))
    outside = [p for network in (*frozen.text.towers, frozen.vae) for p in network.parameters()]  # type: ignore[union-attr]
    before = [parameter.clone() for parameter in outside]

    loader = Loader(config, index, frozen.source(index), rank=world.rank, world_size=world.size)
    batch = next(loader.micro_batches(0))
    batch.time_ids_BT[:, :2] = torch.tensor([1333.0, 513.0])
    objective = Objective(config, frozen, functools.partial(predict, engine.engine, engine.dtype))
    engine.backward(objective.losses(objective.inputs(batch)).mean())
    stepped = engine.step(LR)
    ema.update(engine.master)

    inside = {parameter.data_ptr() for parameter in engine.engine.parameters()}
    facts = {
        "applied": stepped.applied,
        "dtype": str(next(unet.parameters()).dtype),
        "sizes": seen[0][0].view(len(batch.uids), -1)[:, :2].tolist(),
        "sinusoid": str(seen[0][1]),
        "parameters": num_parameters,
        "parameters_inside": count_parameters(engine.engine.parameters()),
        "frozen_inside": sum(parameter.data_ptr() in inside for parameter in outside),
        "frozen_changed": sum(not torch.equal(old, new) for old, new in zip(before, outside, strict=True)),
        "master": [engine.master.numel(), str(engine.master.dtype)],
        "ema": [ema.part.numel(), str(ema.part.dtype)],
    }
    engine.close()
    return facts


def small_updates(config: TrainConfig, world: World) -> dict[str, Any]:
    """Ten steps of AdamW by 0.001 from 1, below which bf16's next number is 0.996; the same in plain bf16."""
    module, plain = (nn.Linear(8, 1, bias=False) for _ in range(2))
    for each in (module, plain):
        nn.init.ones_(each.weight)
    plain.to(torch.bfloat16)
    engine = Engine(replace(config, optimizer=replace(config.optimizer, weight_decay=0.0)), module, world)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LR, weight_decay=0.0)
    ones = torch.ones(2, 8, dtype=torch.bfloat16)
    for _ in range(STEPS):
        engine.backward(engine.engine(ones).float().mean())
        engine.step(LR)
        plain(ones).float().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    facts = {
        "small_master": engine.master.tolist(),
        "small_weights": module.weight.detach().float().flatten().tolist(),
        "small_plain": plain.weight.detach().float().flatten().tolist(),
    }
    engine.close()
    return facts


def shares_of_work(config: TrainConfig, index: Index, world: World) -> dict[str, Any]:
    """The pictures that this rank draws of an evaluation, and how long the ranks wait for a silent one."""
    how = replace(config.evaluate, samples=7)
    mine = Scorer(replace(config, evaluate=how), index, world, print)._mine
    group = dist.group.WORLD._get_backend(world.device)  # type: ignore[union-attr]
    return {"cases": [case.number for case in mine], "timeout_s": group.options._timeout.total_seconds()}


if __name__ == "__main__":
    main()
