"""Settings: what is drawn and measured beside the loss, and who keeps the curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from curate.config import ClipSpec, require

Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How the network in training draws: Euler steps over the timesteps that it is trained on."""

    sampler_steps: int = 20
    """Steps; the refiner takes all of them in its own range, from a real picture with noise."""
    guidance: float = 5.0
    """Scale of classifier-free guidance; 1 is none."""
    seed: int = 0
    """Seed of the first picture's noise; the next picture takes the next number."""
    batch_size: int = 4
    """Pictures that one rank draws together; it changes speed and memory, and the pictures by rounding only."""

    def __post_init__(self) -> None:
        require(self.sampler_steps > 0, "draw.sampler_steps", self.sampler_steps, "must be at least 1")
        require(self.guidance >= 1, "draw.guidance", self.guidance, "must be at least 1")
        require(self.seed >= 0, "draw.seed", self.seed, "must be 0 or more")
        require(self.batch_size > 0, "draw.batch_size", self.batch_size, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GridsConfig:
    """Pictures of the same prompts and seeds, drawn again and again while the network learns."""

    every_steps: int = 5000
    """Steps between grids; 0 draws none."""
    count: int = 9
    """Pictures of a grid, where captions of the validation samples are the prompts."""
    prompts: str | None = None
    """File with one prompt a line, for the base; null takes captions of the validation samples."""
    draw: DrawConfig = field(default_factory=DrawConfig)
    """How they are drawn."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "grids.every_steps", self.every_steps, "must be 0 or more")
        require(self.count > 0, "grids.count", self.count, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """FID, KID, CMMD and CLIP score: drawn pictures beside real ones of the same captions."""

    every_steps: int = 0
    """Steps between evaluations while training; 0 leaves it to python -m train.evaluate."""
    samples: int = 10_000
    """Pictures that are drawn, and real ones beside them; all of the split where it has fewer."""
    draw: DrawConfig = field(default_factory=lambda: DrawConfig(sampler_steps=50))
    """How they are drawn."""
    inception: str | None = "fid_inception_v3"
    """Weights of FID's and KID's network in infra/weights.yaml; null leaves both out."""
    clip: ClipSpec = field(
        default_factory=lambda: ClipSpec(architecture="ViT-L-14-quickgelu", weights="clip_vit_l14_openai")
    )
    """CLIP of CMMD and of the CLIP score."""
    kid_subsets: int = 100
    """Random subsets that KID is averaged over."""
    kid_subset_size: int = 1000
    """Pictures of each; all of them where there are fewer."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "evaluate.every_steps", self.every_steps, "must be 0 or more")
        require(self.samples >= 2, "evaluate.samples", self.samples, "must be at least 2")
        require(self.kid_subsets > 0, "evaluate.kid_subsets", self.kid_subsets, "must be at least 1")
        require(self.kid_subset_size >= 2, "evaluate.kid_subset_size", self.kid_subset_size, "must be at least 2")
