"""The training loop, one for base and refiner: they differ in configuration values only.

Shape legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from train import checkpoint
from train.autoencoder import fingerprint, load_vae, moments
from train.conditioning import TextEncoder, drop_text
from train.config import OptimizerConfig, TrainConfig
from train.data import Batch, ImageSource, LatentSource, Loader
from train.diffusion import Draws, add_noise, alphas_cumprod, draw, epsilon_loss, sample_latents
from train.ema import Ema
from train.engine import Engine, World, start_world
from train.index import Index, check_latents, read_index
from train.model import build_unet, count_parameters, load_flat, predict
from train.report import Report
from train.validation import Validation, latent_shape

_STEP_DRAWS = 31


class NonFinite(RuntimeError):
    """A loss or gradient was not finite; the message names step and samples."""


def train(config: TrainConfig, resume: str = "auto") -> None:
    """Train from the newest checkpoint (or from scratch) to the last step, or until SIGTERM."""
    # World
    world = start_world()
    config.batch.check(world.size)
    if world.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // world.size))
    stop_requested = _on_sigterm()
    folder = Path(config.out_folder)
    report = Report(folder, active=world.rank == 0, steps=config.steps)
    started = time.monotonic()

    # Data
    needs_aesthetic = config.model == "refiner"
    train_index = read_index(config.data_root, "train", needs_aesthetic=needs_aesthetic)
    if not len(train_index):
        raise ValueError(f"{config.root}/tables/shards: no samples in the split train; run the export step")
    frozen = Frozen(config, world)
    loader = Loader(config, train_index, frozen.source("train"), rank=world.rank, world_size=world.size)
    validation = _validation(config, train_index, frozen, world, report)
    report.say(f"data: {len(train_index)} samples in {len(loader.order.buckets)} buckets, 0 dropped")

    # Network, optimiser, averaged weights
    unet = build_unet(config).train()
    num_parameters = count_parameters(unet.parameters())
    if config.activation_checkpointing:
        unet.enable_gradient_checkpointing()
    engine = Engine(config, unet, world)
    ema = Ema(engine.master, config.ema_decay)
    objective = Objective(config, frozen, engine)

    # Resume
    first_step = 0
    found = _agree_on_checkpoint(folder / "checkpoints", resume, world)
    if found is not None:
        first_step = checkpoint.restore(found, engine, ema).step
        report.say(f"continuing after step {first_step} from {found}")
    record = _record(config, frozen, num_parameters, world, len(train_index))
    record["val_loss_before"] = _before(engine, ema, validation, objective, folder, first_step, report)
    report.run_json(record)

    # Steps
    step = first_step
    micro_batches = loader.micro_batches(first_step)
    clock = Clock(first_step, config)
    stopped = False
    while step < config.steps and not stopped:
        # Gradients
        losses: list[torch.Tensor] = []
        uids: list[str] = []
        for _ in range(config.batch.grad_accumulation):
            batch = next(micro_batches)
            assert batch.step == step
            loss = objective.losses(batch, objective.draws(batch)).mean()
            engine.backward(loss)
            losses.append(loss.detach())
            uids.extend(batch.uids)

        # Optimiser and averaged weights
        lr = learning_rate(config.optimizer, step, config.steps)
        stepped = engine.step(lr)
        if stepped.applied:
            ema.update(engine.master)
        step += 1

        # What all ranks must know: the loss, and whether one of them was asked to stop
        mean_loss, stopped = _share(torch.stack(losses).mean(), stop_requested(), world)
        if not (stepped.applied and math.isfinite(mean_loss)):
            _non_finite(config, step, mean_loss, stepped.grad_norm, uids, world)

        # Status
        values = {"loss": mean_loss, "lr": lr, "grad_norm": stepped.grad_norm}
        if step % config.log_every_steps == 0 or step == config.steps or stopped:
            values["images_per_s"] = clock.images_per_s(step)
            report.progress(step, values, clock.seconds_left(step))
        report.metrics(step, values)

        # Checkpoint and validation
        if step % config.checkpoint_every_steps == 0 or step == config.steps or stopped:
            saved = checkpoint.save(
                folder / "checkpoints",
                engine,
                ema,
                _state(config, step, engine, ema, num_parameters),
                config.keep_checkpoints,
            )
        if config.validate_every_steps and step % config.validate_every_steps == 0 and step < config.steps:
            report.metrics(step, {"val_loss": _validate(engine, ema, validation, objective)})

    # End
    if stopped and step < config.steps:
        report.say(f"stopped by SIGTERM after step {step}; the same command continues from {saved}")
    else:
        record["val_loss_after"] = _validate(engine, ema, validation, objective)
        _export_ema(config, engine, ema, folder / "unet_ema")
        _sum_up(record, report)
    record |= {"steps_done": step, "seconds": round(time.monotonic() - started, 1)}
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


class Frozen:
    """The networks that do not learn, outside the engine: text towers and autoencoder."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self._config = config
        self._device = world.device
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[config.precision]
        self.text = TextEncoder(config.text_towers, world.device, dtype)
        vae = load_vae(config.vae_folder)
        self.scaling_factor = float(vae.config.scaling_factor)
        if config.source == "latents":
            check_latents(config.data_root, fingerprint(vae), self.scaling_factor)
        self.factor = 1 if config.source == "latents" else 2 ** (len(vae.config.block_out_channels) - 1)
        self._vae = None if config.source == "latents" else vae.to(device=world.device, dtype=dtype)

    def source(self, split: str) -> LatentSource | ImageSource:
        """Return what reads a split."""
        if self._vae is None:
            return LatentSource(self._config.data_root, split)
        return ImageSource(self._config.data_root, self._config.augment, self._config.seed)

    def moments(self, batch: Batch) -> torch.Tensor:
        """Return the posterior moments of a batch on this rank's device."""
        arrays_BCHW = batch.arrays_BCHW.to(self._device)
        return arrays_BCHW if self._vae is None else moments(self._vae, arrays_BCHW)


class Objective:
    """From a batch and its draws to a loss for each sample."""

    def __init__(self, config: TrainConfig, frozen: Frozen, engine: Engine) -> None:
        self._config = config
        self._frozen = frozen
        self._engine = engine
        self._device = engine.world.device
        self._alphas_cumprod_T = alphas_cumprod(config.objective).to(self._device)

    def draws(self, batch: Batch) -> Draws:
        """Return the batch's draws, keyed by (seed, step, position in the global batch)."""
        keys = [(self._config.seed, _STEP_DRAWS, batch.step, position) for position in batch.positions]
        return draw(self._config.objective, keys, latent_shape(self._config, batch, self._frozen.factor))

    def losses(self, batch: Batch, draws: Draws) -> torch.Tensor:
        """Return each sample's loss, shape (B,)."""
        device = self._device
        noise_BCHW, timesteps_B = draws.noise_BCHW.to(device), draws.timesteps_B.to(device)
        latents_BCHW = sample_latents(
            self._frozen.moments(batch), draws.posterior_BCHW.to(device), self._frozen.scaling_factor
        )
        noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, timesteps_B, self._alphas_cumprod_T)
        text_BLD, pooled_BD = self._frozen.text(batch.captions)
        text_BLD, pooled_BD = drop_text(text_BLD, pooled_BD, draws.dropped_B.to(device))
        time_ids_BT = batch.time_ids_BT.to(device)
        prediction_BCHW = predict(
            self._engine.engine, noisy_BCHW, timesteps_B, text_BLD, pooled_BD, time_ids_BT, self._engine.dtype
        )
        return epsilon_loss(prediction_BCHW, noise_BCHW)


class Clock:
    """Speed and time left, measured from the first step of this process on."""

    def __init__(self, first_step: int, config: TrainConfig) -> None:
        self._first_step = first_step
        self._config = config
        self._started = time.monotonic()

    def images_per_s(self, step: int) -> float:
        """Return the mean speed so far."""
        return (step - self._first_step) * self._config.batch.global_batch / (time.monotonic() - self._started)

    def seconds_left(self, step: int) -> float:
        """Return the time to the last step at the mean speed so far."""
        return (self._config.steps - step) * self._config.batch.global_batch / self.images_per_s(step)


def _on_sigterm() -> Any:
    """Return a function that says whether SIGTERM has arrived; the step in progress is finished first."""
    arrived: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: arrived.append(number))
    return lambda: bool(arrived)


def _validation(config: TrainConfig, train_index: Index, frozen: Frozen, world: World, report: Report) -> Validation:
    index = read_index(config.data_root, "val", needs_aesthetic=config.model == "refiner")
    split = "val"
    if not len(index):
        index, split = Index(table=train_index.table.slice(0, config.validation_samples)), "train"
        report.say("validation: the split val is empty, so the loss is taken on the first samples of train")
    return Validation(config, index, frozen.source(split), world=world, factor=frozen.factor)


def _agree_on_checkpoint(folder: Path, resume: str, world: World) -> Path | None:
    """Let rank 0 verify and choose, so that all ranks continue from the same one."""
    if resume == "none" and any(folder.glob("step-*")):
        raise ValueError(f"--resume none: {folder} holds checkpoints; move them away, or set train.<model>.out")
    chosen: list[Path | None] = [checkpoint.find(folder, resume) if world.rank == 0 else None]
    dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def _before(
    engine: Engine,
    ema: Ema,
    validation: Validation,
    objective: Objective,
    folder: Path,
    first_step: int,
    report: Report,
) -> float:
    """Return the validation loss before the first step, from run.json where this is a continuation."""
    if first_step and (folder / "run.json").exists():
        return json.loads((folder / "run.json").read_text())["val_loss_before"]
    loss = _validate(engine, ema, validation, objective)
    report.say(f"validation loss before: {loss:.4f}")
    return loss


def _validate(engine: Engine, ema: Ema, validation: Validation, objective: Objective) -> float:
    """Return the fixed-noise loss of the averaged weights."""
    with torch.no_grad(), engine.weights(ema.part):
        engine.engine.eval()
        loss = validation.mean_loss(objective.losses, engine.world.device)
        engine.engine.train()
    return loss


def _share(loss: torch.Tensor, stop: bool, world: World) -> tuple[float, bool]:
    """Return the mean loss over ranks and whether any rank was asked to stop."""
    numbers = torch.stack([loss.double(), torch.tensor(float(stop), dtype=torch.float64, device=loss.device)])
    dist.all_reduce(numbers)
    return float(numbers[0]) / world.size, bool(numbers[1] > 0)


def _non_finite(config: TrainConfig, step: int, loss: float, grad_norm: float, uids: list[str], world: World) -> None:
    """Name step and samples; raise NonFinite on all ranks alike where the settings say stop."""
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, uids)
    named = ", ".join(uid for rank_uids in gathered for uid in rank_uids)
    text = f"step {step}: loss {loss}, gradient norm {grad_norm}; weights untouched; samples {named}"
    if config.on_non_finite == "stop":
        raise NonFinite(text)
    if world.rank == 0:
        print(f"skipped {text}", flush=True)


def _state(config: TrainConfig, step: int, engine: Engine, ema: Ema, num_parameters: int) -> checkpoint.State:
    moments = engine.moments
    return checkpoint.State(
        step=step,
        seed=config.seed,
        ema_updates=ema.num_updates,
        num_elements=num_parameters,
        adam_step=float(moments["step"]) if moments else 0.0,
        config=asdict(config),
    )


def _record(config: TrainConfig, frozen: Frozen, num_parameters: int, world: World, num_samples: int) -> dict[str, Any]:
    """Return the first part of run.json."""
    return {
        "config": asdict(config),
        "parameters": num_parameters,
        "samples": num_samples,
        "dropped": 0,
        "world_size": world.size,
        "device": str(world.device.type),
        "scaling_factor": frozen.scaling_factor,
        "text_towers_untrained": any(tower.weights is None for tower in config.text_towers),
    }


def _export_ema(config: TrainConfig, engine: Engine, ema: Ema, folder: Path) -> None:
    """Write the averaged weights as a diffusers U-Net folder."""
    flat = engine.gather_on_first_rank(ema.part)
    if flat is None:
        return
    unet = build_unet(config)
    load_flat(unet, flat)
    unet.save_pretrained(folder)


def _sum_up(record: dict[str, Any], report: Report) -> None:
    before, after = record["val_loss_before"], record["val_loss_after"]
    note = "; the text towers are UNTRAINED random weights" if record["text_towers_untrained"] else ""
    report.say(
        f"validation loss (averaged weights, fixed noise): {before:.4f} -> {after:.4f}, {after / before:.0%}{note}"
    )
