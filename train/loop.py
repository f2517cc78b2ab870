"""The training loop, one for base and refiner: they differ in configuration values only.

Shape legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from curate.bad_input import BadInput
from train.checkpoint.files import read_state
from train.checkpoint.writer import Writer
from train.clock import Clock
from train.config import OptimizerConfig, TrainConfig
from train.data.loader import Loader, dropped
from train.data.read_ahead import cache_advice
from train.data.samples import check_data
from train.ema import Ema, export_ema
from train.engine import Engine, World, start_world
from train.evaluate.during import Evaluation
from train.flops import Utilisation
from train.index.ready import index_of_split, validation_index
from train.look_ahead import LookAhead
from train.model import build_unet, count_parameters, predict
from train.non_finite import Recovery, gather_uids
from train.objective import Frozen, Objective
from train.report import Report
from train.resume import continue_run, state_of
from train.self_test import self_test
from train.switches import apply_switches, check_switches
from train.watch import SpikeDetector, Watchdog


class LossSpike(RuntimeError):
    """A loss jumped far above those before it; the message names step and samples."""


def train(config: TrainConfig, resume: str = "auto") -> None:
    """Train from the newest checkpoint (or from scratch) to the last step, or until SIGTERM or Ctrl-C."""
    # World
    world = start_world()
    config.batch.check(world.size)
    check_switches(config.speed, world.device)
    if world.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // world.size))
    stop_requested = _on_sigterm()
    folder = Path(config.out_folder)
    report = Report(folder, active=world.rank == 0, steps=config.steps, track=config.track)
    started = time.monotonic()
    if config.self_test:
        self_test(config, world)

    # Data
    frozen = Frozen(config, world.device)
    factor = frozen.latent_factor
    train_index = index_of_split(config, "train", factor=factor, rank=world.rank, say=report.say)
    if not len(train_index):
        raise BadInput(f"{config.root}/shards: no samples in the split train; run the export step")
    source = frozen.source(train_index)
    check_data(train_index, source, config, factor)
    bad_log = folder / f"bad_samples/rank-{world.rank:05d}.jsonl"
    loader = Loader(config, train_index, source, rank=world.rank, world_size=world.size, bad_log=bad_log)
    if loader.remote_reader is not None:
        share = int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) / world.size
        members_of = lambda row: loader.members(train_index.sample(row))  # noqa: E731
        report.say(cache_advice(config, train_index, members_of, share))
    order = loader.order
    num_dropped = dropped(order, train_index)
    data_digest = f"{train_index.digest}-{frozen.vae_fingerprint[:32]}"
    report.say(
        f"data: {len(train_index)} samples in {order.num_buckets} buckets; the first epoch carries"
        f" {order.carried_over(0)} over into the next, {num_dropped} dropped; {train_index.left_out} of weight 0"
    )

    # Network, optimiser, averaged weights
    unet = build_unet(config).train()
    num_parameters = count_parameters(unet.parameters())
    apply_switches(unet, config.speed, world.device)
    engine = Engine(config, unet, world)
    ema = Ema(engine.master, config.ema_decay)
    objective = Objective(config, frozen, functools.partial(predict, engine.engine, engine.dtype))

    # What is measured and drawn
    val_index = validation_index(config, train_index, factor=factor, rank=world.rank, say=report.say)
    evaluation = Evaluation(config, val_index, engine, ema, objective, frozen, report)
    utilisation = Utilisation(config, world.device, world.size)
    report.say(utilisation.told)

    # Resume
    writer = Writer(config.checkpoints_folder, world, config.keep_checkpoints)
    first_step = continue_run(config, resume, engine, ema, data_digest, report.say)
    record = _record(config, frozen, num_parameters, world, len(train_index), num_dropped)
    record["val_loss_before"] = evaluation.before(first_step)
    report.run_json(record)

    # Steps
    step = first_step
    recovery = Recovery(config, folder, world, first_step)
    if config.watch.on_non_finite == "roll_back" and not first_step:
        writer.save(engine, ema, state_of(config, 0, engine, ema, data_digest))  # to go back to
    micro_batches = LookAhead(loader.micro_batches(first_step, recovery.left_out), objective.inputs)
    clock = Clock(first_step, config)
    watchdog, spikes = Watchdog(config.watch), SpikeDetector(config.watch)
    watchdog.fed()
    stopped = False
    while step < recovery.end and not stopped:
        step = recovery.next_batch(step)

        # Gradients
        losses: list[torch.Tensor] = []
        uids: list[str] = []
        for _ in range(config.batch.grad_accumulation):
            inputs = micro_batches.take(clock)
            assert inputs.step == step
            loss = objective.losses(inputs).mean()
            engine.backward(loss)
            losses.append(loss.detach())
            uids.extend(inputs.uids)
            if not stop_requested():
                micro_batches.prepare(clock)  # while a GPU computes

        # What all ranks must know: the loss, and whether one of them was asked to stop or could not write. It waits
        # for what a GPU was given up to here, the gradients, as the optimiser would, and not for the optimiser
        mean_loss, stopped = _share(torch.stack(losses).mean(), stop_requested() or writer.failed, world)

        # Optimiser and averaged weights
        lr = learning_rate(config.optimizer, step, config.steps)
        stepped = engine.step(lr)
        if stepped.applied:
            ema.update(engine.master)
        step += 1
        if not (stepped.applied and math.isfinite(mean_loss)):
            writer.finish()  # the run may end here, or go back to what is being written
            said = f"loss {mean_loss}, gradient norm {stepped.grad_norm}; weights untouched"
            back_to = recovery.follow(said, step - 1, uids, engine, ema)
            if back_to is not None:
                saved, step = back_to, read_state(back_to).step
                micro_batches.close()
                micro_batches = LookAhead(loader.micro_batches(step, recovery.left_out), objective.inputs)
                clock = Clock(step, config)
                continue
        elif spikes.spikes(mean_loss):
            writer.finish()
            _spike(config, step, mean_loss, spikes, uids, world)

        # Status
        values = {"loss": mean_loss, "lr": lr, "grad_norm": stepped.grad_norm}
        if step % config.log_every_steps == 0 or step == recovery.end or stopped:
            speed = clock.images_per_s(step)
            values |= {"images_per_s": speed, **utilisation.values(speed), **clock.since_last_asked(world.device)}
            report.progress(step, values, clock.seconds_left(step))
        report.metrics(step, values)

        # Checkpoint, and what is measured and drawn
        if step % config.checkpoint_every_steps == 0 or step == recovery.end or stopped:
            saved = writer.save(engine, ema, state_of(config, step, engine, ema, data_digest))
        if evaluation.is_due(step) and step < recovery.end:
            watchdog.off()  # an evaluation may take longer than any step
            with clock.paused():
                evaluation.after(step)
        watchdog.fed()

    # End
    writer.finish()
    watchdog.off()
    if stopped and step < recovery.end:
        report.say(f"stopped after step {step}; the same command continues from {saved}")
    else:
        record["val_loss_after"] = evaluation.at_the_end(step)
        export_ema(config, engine, ema, folder / "unet_ema")
        _sum_up(record, report)
    record |= {"steps_done": step, "seconds": round(time.monotonic() - started, 1)}
    record["bad_samples"] = _bad_samples(loader, world, report)
    report.run_json(record)
    report.close()
    dist.barrier()
    dist.destroy_process_group()


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of a step: linear from 0 to the peak over the warm-up, then a cosine to the final rate."""
    if step < optimizer.warmup_steps:
        return optimizer.lr_peak * (step + 1) / optimizer.warmup_steps
    done = (step - optimizer.warmup_steps) / max(1, steps - 1 - optimizer.warmup_steps)
    return optimizer.lr_final + (optimizer.lr_peak - optimizer.lr_final) * 0.5 * (
        1.0 + math.cos(math.pi * min(1.0, done))
    )


def _on_sigterm() -> Any:
    """Return a function that says whether SIGTERM or SIGINT has arrived; the step in progress is finished first."""
    arrived: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # train.launch takes Ctrl-C itself and sends SIGTERM
            signal.signal(number, lambda number, _frame: arrived.append(number))
    return lambda: bool(arrived)


def _bad_samples(loader: Loader, world: World, report: Report) -> dict[str, int]:
    """Return the bad samples of all ranks since this start, by reason, and print them."""
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, dict(loader.bad))
    total = sum((Counter(bad) for bad in gathered), Counter())
    if total:
        report.say(f"data: others stood in for {total.total()} bad samples, named in bad_samples/: {dict(total)}")
    return dict(total)


def _share(loss: torch.Tensor, stop: bool, world: World) -> tuple[float, bool]:
    """Return the mean loss over ranks and whether any rank was asked to stop."""
    numbers = torch.stack([loss.double(), torch.tensor(float(stop), dtype=torch.float64, device=loss.device)])
    dist.all_reduce(numbers)
    return float(numbers[0]) / world.size, bool(numbers[1] > 0)


def _spike(config: TrainConfig, step: int, loss: float, spikes: SpikeDetector, uids: list[str], world: World) -> None:
    """Name step and samples of a spike; raise LossSpike on all ranks alike where the settings say stop."""
    named = ", ".join(gather_uids(uids, world))
    text = (
        f"step {step}: loss {loss:.4f} is {spikes.deviations(loss):.1f} deviations above the last ones; samples {named}"
    )
    if config.watch.on_spike == "stop":
        raise LossSpike(text)
    if world.rank == 0:
        print(f"loss spike at {text}", flush=True)


def _record(
    config: TrainConfig, frozen: Frozen, num_parameters: int, world: World, num_samples: int, num_dropped: int
) -> dict[str, Any]:
    """Return the first part of run.json."""
    return {
        "config": asdict(config),
        "parameters": num_parameters,
        "samples": num_samples,
        "dropped": num_dropped,
        "world_size": world.size,
        "device": str(world.device.type),
        "scaling_factor": frozen.scaling_factor,
        "text_towers_untrained": any(tower.weights is None for tower in config.text_towers),
    }


def _sum_up(record: dict[str, Any], report: Report) -> None:
    before, after = record["val_loss_before"], record["val_loss_after"]
    note = "; the text towers are UNTRAINED random weights" if record["text_towers_untrained"] else ""
    report.say(
        f"validation loss (averaged weights, fixed noise): {before:.4f} -> {after:.4f}, {after / before:.0%}{note}"
    )
