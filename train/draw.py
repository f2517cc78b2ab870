"""Pictures from exported networks by diffusers' pipelines: the base first, the refiner where the noise is low.

Shape legend: N pictures, C channels, H and W latent height and width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from curate.bad_input import BadInput
from train.export.exported import load_pipeline
from train.micro_conditioning import AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""diffusers' class of each sampler, and what is set apart from the noise schedule of the training."""
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
"""What base and refiner must share, so that one goes on where the other ended."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn."""

    sampler: str
    """Name in `SAMPLERS`."""
    steps: int
    """Sampler steps of base and refiner together."""
    guidance: float
    """Scale of classifier-free guidance."""
    split: float
    """Share of the noise scales that the base takes."""
    seed: int
    """Seed of the first picture; the next one takes the next number."""
    batch_size: int
    """Pictures that are drawn together."""
    side_px: int
    """Side of the pictures."""


def draw_pixels(base: Path, refiner: Path | None, prompts: list[str], drawing: Drawing) -> np.ndarray:
    """Return the pictures of the exported folders, (N, height, width, 3) in 0..1; without a refiner the base does all.

    Each picture has a random number generator of its own, so that the batch size changes it by rounding only. One
    network at a time is loaded. Raises BadInput where the sampler cannot do what is asked.
    """
    generators = [torch.Generator().manual_seed(drawing.seed + number) for number in range(len(prompts))]
    pipeline = _load("base", base, drawing.sampler)
    _check_steps(pipeline.scheduler, drawing)
    if refiner is None:
        return np.concatenate(list(_base(pipeline, prompts, generators, drawing, end=None)))
    schedule = {name: pipeline.scheduler.config.get(name) for name in SCHEDULE}
    _check_split(pipeline.scheduler, drawing)
    latents = list(_base(pipeline, prompts, generators, drawing, end=drawing.split))
    del pipeline
    pipeline = _load("refiner", refiner, drawing.sampler)
    _check_schedules(schedule, {name: pipeline.scheduler.config.get(name) for name in SCHEDULE})
    return np.concatenate(list(_refiner(pipeline, prompts, generators, drawing, latents)))


def scheduler(trained: Any, sampler: str) -> Any:
    """Return diffusers' scheduler of a sampler with the noise schedule of another one, the exported one.

    Raises BadInput where the schedule ends in pure noise and the sampler has no such schedule.
    """
    name, settings = SAMPLERS[sampler]
    kind = getattr(diffusers, name)
    knows = "rescale_betas_zero_snr" in inspect.signature(kind.__init__).parameters
    if trained.config.rescale_betas_zero_snr and not knows:
        raise BadInput(
            f"sampler = {sampler}: has no schedule with a terminal SNR of zero, as the network has; take euler"
        )
    return kind.from_config(trained.config, **settings)


def steps_of_each(schedule: Any, steps: int, split: float) -> tuple[int, int]:
    """Return how many steps base and refiner take: those at and above the noise scale of the split, and those below."""
    schedule.set_timesteps(steps)
    lowest = round(schedule.config.num_train_timesteps * (1.0 - split))
    of_base = int((schedule.timesteps >= lowest).sum())
    return of_base, len(schedule.timesteps) - of_base


def _base(
    pipeline: Any, prompts: list[str], generators: list[torch.Generator], drawing: Drawing, end: float | None
) -> Iterator[Any]:
    """Yield the base's pictures, or its latents where it ends before the last step, batch by batch."""
    for some in _batches(len(prompts), drawing.batch_size):
        made = pipeline(
            prompt=prompts[some],
            generator=generators[some],
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            height=drawing.side_px,
            width=drawing.side_px,
            denoising_end=end,
            output_type="np" if end is None else "latent",
        ).images
        yield made if end is None else made.cpu()


def _refiner(
    pipeline: Any,
    prompts: list[str],
    generators: list[torch.Generator],
    drawing: Drawing,
    latents_NCHW: list[torch.Tensor],
) -> Iterator[np.ndarray]:
    """Yield the pictures of the base's latents, batch by batch."""
    side = (drawing.side_px, drawing.side_px)
    for some, batch_NCHW in zip(_batches(len(prompts), drawing.batch_size), latents_NCHW, strict=True):
        yield pipeline(
            prompt=prompts[some],
            generator=generators[some],
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            image=batch_NCHW,
            denoising_start=drawing.split,
            aesthetic_score=AESTHETIC_SCORE,
            negative_aesthetic_score=NEGATIVE_AESTHETIC_SCORE,
            original_size=side,
            target_size=side,
            output_type="np",
        ).images


def _load(model: str, folder: Path, sampler: str) -> Any:
    pipeline = load_pipeline(model, folder)
    pipeline.scheduler = scheduler(pipeline.scheduler, sampler)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _check_steps(schedule: Any, drawing: Drawing) -> None:
    """Raise BadInput where there are too few timesteps: diffusers would ask for the last one again and again."""
    timesteps = schedule.config.num_train_timesteps
    if drawing.steps >= timesteps:
        raise BadInput(
            f"steps = {drawing.steps}: the noise schedule has {timesteps} timesteps; take fewer steps than that"
        )


def _check_split(schedule: Any, drawing: Drawing) -> None:
    """Raise BadInput where one of the networks would get nothing to do, or the sampler cannot hand over."""
    if schedule.order > 1:
        raise BadInput(
            f"sampler = {drawing.sampler}: each of its steps asks twice, and diffusers would hand over to the refiner"
            " in the middle of one; set split to 1, or take another sampler"
        )
    of_base, of_refiner = steps_of_each(schedule, drawing.steps, drawing.split)
    if not (of_base and of_refiner):
        raise BadInput(
            f"split = {drawing.split:g}: gives the base {of_base} and the refiner {of_refiner} of {drawing.steps}"
            " steps; take more steps, or another split"
        )


def _check_schedules(base: dict[str, Any], refiner: dict[str, Any]) -> None:
    for name, value in base.items():
        if refiner[name] != value:
            raise BadInput(
                f"{name}: {value} in the base's noise schedule, {refiner[name]} in the refiner's; set split to 1"
            )


def _batches(count: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, count, batch_size):
        yield slice(start, start + batch_size)
