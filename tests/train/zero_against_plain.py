"""Run by one, two or four ranks: ZeRO and the partitioned EMA against plain AdamW and EMA in one process."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from train.config import TrainConfig
from train.ema import Ema
from train.engine import Engine, start_world
from train.settings import read_train_settings

STEPS, LR = 5, 1e-2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.SiLU(), nn.Linear(13, 3))


def batch(step: int) -> torch.Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(step))


def main() -> None:
    config: TrainConfig = read_train_settings("base", sys.argv[1:], prog="test", description="")[0]
    world = start_world()
    engine = Engine(config, network(), world)
    ema = Ema(engine.master, config.ema_decay)
    plain = network()
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.optimizer.weight_decay
    )
    averages = [parameter.detach().clone() for parameter in plain.parameters()]
    for step in range(STEPS):
        mine = batch(step).chunk(world.size)[world.rank]
        engine.backward(engine.engine(mine).square().mean())
        stepped = engine.step(LR)
        ema.update(engine.master)
        optimizer.zero_grad()
        plain(batch(step)).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        assert stepped.applied
        assert abs(stepped.grad_norm - float(norm)) < 1e-5, (stepped.grad_norm, float(norm))
        decay = min(config.ema_decay, (2 + step) / (11 + step))
        for average, parameter in zip(averages, plain.parameters(), strict=True):
            average.mul_(decay).add_(parameter.detach(), alpha=1 - decay)
    check(engine, ema, plain, averages)
    check_non_finite(engine)
    dist.barrier()
    dist.destroy_process_group()


def check(engine: Engine, ema: Ema, plain: nn.Module, averages: list[torch.Tensor]) -> None:
    expected = flat(plain.parameters())
    assert (flat(engine.unet.parameters()) - expected).abs().max() < 1e-6
    gathered = engine.gather_on_first_rank(ema.part)
    assert (gathered is not None) == (engine.world.rank == 0)
    if gathered is not None:
        assert (gathered[: expected.numel()] - flat(averages)).abs().max() < 1e-6
    with engine.weights(ema.part) as shown:
        assert (flat(shown.parameters()) - flat(averages)).abs().max() < 1e-6
    assert (flat(engine.unet.parameters()) - expected).abs().max() < 1e-6


def check_non_finite(engine: Engine) -> None:
    before = flat(engine.unet.parameters()).clone()
    poison = float("nan") if engine.world.rank == 0 else 1.0
    engine.backward(engine.engine(batch(0).chunk(engine.world.size)[0]).square().mean() * poison)
    assert not engine.step(LR).applied
    assert torch.equal(flat(engine.unet.parameters()), before)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


if __name__ == "__main__":
    main()
