"""Run by two ranks: the self-test with sound and with broken gradients, and the bytes that each way to ZeRO reduces."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from unittest.mock import patch

import deepspeed
import torch
import torch.distributed as dist

from train.config import BatchConfig, TrainConfig
from train.engine import Engine, Stepped, World, start_world
from train.model import count_parameters
from train.self_test import WrongGradient, losses, self_test, small_config, small_unet
from train.settings import read_train_settings
from train.speed import SpeedConfig, ZeroConfig


def main() -> None:
    config: TrainConfig = read_train_settings("base", sys.argv[1:], prog="test", description="")[0]
    world = start_world()
    config = replace(config, batch=BatchConfig(global_batch=4, micro_batch=1, grad_accumulation=2))
    sound_gradients_pass(config, world)
    wrong_gradients_are_caught(config, world)
    bf16_weights_survive_what_is_not_finite(config, world)
    flat_gradient_is_deepspeeds(config, world)
    reduced_gradient_is_deepspeeds(config, world)
    fewer_larger_passes_reduce_less(config, world)
    closing_lets_go(config, world)
    dist.barrier()
    dist.destroy_process_group()


def sound_gradients_pass(config: TrainConfig, world: World) -> None:
    for precision, stage, reduced in (
        ("bf16", 1, "fp32"),
        ("bf16", 2, "fp32"),
        ("bf16", 2, "bf16"),
        ("fp32", 1, "fp32"),
    ):
        self_test(replace(config, precision=precision, zero=ZeroConfig(stage=stage, reduce_dtype=reduced)), world)
    self_test(replace(config, speed=SpeedConfig(channels_last=True, activation_checkpointing="all")), world)


def wrong_gradients_are_caught(config: TrainConfig, world: World) -> None:
    """A wrong factor changes the norm; a bucket that one rank does not sum changes little but the direction."""
    backward, reduce = Engine.backward, deepspeed.comm.all_reduce
    with patch.object(Engine, "backward", lambda engine, loss: backward(engine, loss * 1.5)):
        said = refused(config, world)
    assert "DeepSpeed's first gradient has norm " in said and ", plain torch's " in said, said
    found, expected = (float(said.split(word)[1].split(",")[0]) for word in ("has norm ", "plain torch's "))
    assert abs(found / expected - 1.5) < 1e-3, said

    calls: list[int] = []

    def forgetful(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(tensor.numel())
        return None if len(calls) == 2 else reduce(tensor, *args, **kwargs)

    with patch.object(deepspeed.comm, "all_reduce", forgetful):
        refused(config, world)


def refused(config: TrainConfig, world: World) -> str:
    try:
        self_test(config, world)
    except WrongGradient as error:
        return str(error)
    raise AssertionError("the self-test let a wrong gradient pass")


def bf16_weights_survive_what_is_not_finite(config: TrainConfig, world: World) -> None:
    """One rank has one bad pass: both stages see it on all ranks, and nothing of it is in the next step."""
    for stage in (1, 2):
        small = small_config(replace(config, precision="bf16", zero=ZeroConfig(stage=stage)), world)
        engine = Engine(small, small_unet(small), world)
        before = engine.master.clone()
        bad = step_of(small, engine, world, float("nan") if world.rank == 1 else 1.0)
        assert (bad.applied, bad.grad_norm) == (False, float("inf")), (stage, bad)
        assert torch.equal(engine.master, before)
        good = step_of(small, engine, world, 1.0)
        assert good.applied and isfinite(good.grad_norm), (stage, good)
        assert torch.isfinite(engine.master).all() and not torch.equal(engine.master, before)
        engine.close()


def flat_gradient_is_deepspeeds(config: TrainConfig, world: World) -> None:
    """ZeRO-1 takes norm and clipping of one vector: the numbers of DeepSpeed's list, in the same memory."""
    small = small_config(replace(config, precision="bf16", zero=ZeroConfig(stage=1)), world)
    engine = Engine(small, small_unet(small), world)
    for loss in losses(small, engine.engine, engine.dtype, world):
        engine.backward(loss())
    theirs, _ = type(engine.zero).get_grads_for_norm(engine.zero)
    (whole,) = engine.zero.get_grads_for_norm()[0]
    assert len(theirs) > 50 and torch.equal(whole, torch.cat([part.flatten() for part in theirs]))
    engine.zero._global_grad_norm = torch.tensor(4.0 * config.optimizer.clip_norm)
    before = whole.clone()
    assert engine.zero.get_grads_for_norm(for_clipping=True) == []
    assert torch.allclose(whole, before / 4.0, atol=0.0)
    assert torch.equal(whole, torch.cat([part.flatten() for part in theirs])), "the same memory"
    engine.close()


def closing_lets_go(config: TrainConfig, world: World) -> None:
    """Weights and optimiser go with a closed engine: the self-test's must not stay beside the training's."""
    for precision, stage in (("bf16", 1), ("bf16", 2), ("fp32", 1)):
        small = small_config(replace(config, precision=precision, zero=ZeroConfig(stage=stage)), world)
        unet = small_unet(small)
        engine = Engine(small, unet, world)
        step_of(small, engine, world, 1.0)
        held = [weakref.ref(each) for each in (unet, unet.conv_in.weight, engine.zero, engine.master)]
        engine.close()
        del engine, unet
        gc.collect()
        assert [each() is None for each in held] == [True] * 4, (precision, stage, held)


def reduced_gradient_is_deepspeeds(config: TrainConfig, world: World) -> None:
    """ZeRO-1 in fp32 reduces one vector: the numbers, norm and weights of DeepSpeed's own method, and no stale ones."""
    small = small_config(replace(config, precision="fp32", zero=ZeroConfig(stage=1)), world)
    ours, theirs = (Engine(small, small_unet(small), world) for _ in range(2))
    del theirs.zero.reduce_gradients  # the class' own one is behind it
    for engine in (ours, theirs):
        for loss in losses(small, engine.engine, engine.dtype, world):
            engine.backward(loss() * 100.0)
    listed = torch.cat([part.flatten() for part in theirs.zero.averaged_gradients[0]])
    part = ours.zero.averaged_gradients[0].flat_partition
    assert len(theirs.zero.averaged_gradients[0]) > 50 and torch.equal(part, listed) and part.any()
    stepped, expected = ours.step(1e-3), theirs.step(1e-3)
    assert expected.grad_norm > 2.0 * config.optimizer.clip_norm, expected
    assert abs(stepped.grad_norm / expected.grad_norm - 1.0) < 1e-6, (stepped, expected)
    torch.testing.assert_close(ours.master, theirs.master, rtol=0.0, atol=1e-7)
    ours.zero.reduce_gradients()
    assert not ours.zero.averaged_gradients[0].flat_partition.any(), "no pass reached a parameter since the step"
    for engine in (ours, theirs):
        engine.close()


def step_of(config: TrainConfig, engine: Engine, world: World, factor: float) -> Stepped:
    """Take a step of two passes, the first pass' loss times the factor."""
    first, second = losses(config, engine.engine, engine.dtype, world)
    engine.backward(first() * factor)
    engine.backward(second())
    return engine.step(1e-3)


def fewer_larger_passes_reduce_less(config: TrainConfig, world: World) -> None:
    """ZeRO-2 reduces every gradient in each pass, so four passes cost four times what one pass of all samples does."""
    config = replace(config, precision="bf16")
    counts = {
        name: reduced_bytes(replace(config, zero=ZeroConfig(stage=stage)), passes, world)
        for name, stage, passes in (("one pass", 2, 1), ("four passes", 2, 4), ("four passes, ZeRO-1", 1, 4))
    }
    print(f"reduced bytes: {counts}", flush=True)
    assert counts["four passes"] == 4 * counts["one pass"], counts
    assert counts["four passes, ZeRO-1"] <= counts["one pass"] * 1.01, counts  # its flat vector is padded


def reduced_bytes(config: TrainConfig, passes: int, world: World) -> int:
    small = small_config(replace(config, batch=replace(config.batch, grad_accumulation=passes)), world)
    unet = small_unet(small)
    engine = Engine(small, unet, world)
    with counted_bytes() as count:
        for loss in losses(small, engine.engine, engine.dtype, world):
            engine.backward(loss())
    total = count()
    if small.zero.stage == 2:  # fp32 sums of all gradients, in every pass
        assert total == 4 * count_parameters(unet.parameters()) * passes, total
    engine.step(0.0)
    engine.close()
    return total


@contextmanager
def counted_bytes() -> Iterator[Callable[[], int]]:
    """Count what torch.distributed is asked to reduce."""
    bytes_: list[int] = []

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        def call(*tensors: torch.Tensor, **kwargs: object) -> object:
            tensor = tensors[0] if tensors else kwargs["tensor"]
            bytes_.append(tensor.numel() * tensor.element_size())
            return function(*tensors, **kwargs)

        return call

    names = ("all_reduce", "reduce", "reduce_scatter_tensor")
    patches = [patch.object(dist, name, counting(getattr(dist, name))) for name in names]
    for each in patches:
        each.start()
    try:
        yield lambda: sum(bytes_)
    finally:
        for each in patches:
            each.stop()


if __name__ == "__main__":
    main()
