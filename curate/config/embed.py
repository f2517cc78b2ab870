"""Settings: what is measured on each picture, and the model behind embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """A CLIP model by open_clip architecture and registered weights."""

    architecture: str = "ViT-L-14-quickgelu"
    """open_clip architecture name, or the path of an open_clip JSON model config."""
    weights: str | None = "clip_vit_l14_openai"
    """Name in infra/weights.yaml; null means untrained."""
    allow_untrained: bool = False
    """Accept random weights where `weights` is null (demonstrations and tests only)."""
    seed: int = 0
    """Seed of the random weights of an untrained model."""

    def __post_init__(self) -> None:
        require(
            self.weights is not None or self.allow_untrained,
            "clip.weights",
            self.weights,
            "name weights of infra/weights.yaml (python -m curate.weights list), or set allow_untrained: true",
        )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What is measured on each picture."""

    clip: ClipSpec = field(default_factory=ClipSpec)
    """The model behind embeddings, similarity and scores."""
    batch_size: int = 64
    """Images for each forward pass."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations of the model."""
    decode: Literal["fast", "exact"] = "fast"
    """fast: plain JPEGs are decoded reduced, and resized for the model by torch; exact: Pillow and open_clip's own
    transform for every picture, at three to five times the cost."""
    decode_threads: int = 2
    """Threads of each model process that read, decode and measure while the model works."""
    actors: int = 1
    """Model processes over the whole cluster; with GPUs, one for each."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto takes GPUs where the cluster has any; gpu insists on them; cpu leaves them alone."""
    gpus_per_actor: float = 1.0
    """GPUs of each model process; below 1, several share one."""
    max_megapixels: float = 120.0
    """Larger pictures are refused by their header, before decoding; 178 at most, which is what Pillow opens."""

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "embed.batch_size", self.batch_size, "must be at least 1")
        require(self.actors > 0, "embed.actors", self.actors, "must be at least 1")
        require(self.decode_threads > 0, "embed.decode_threads", self.decode_threads, "must be at least 1")
        pixels_ok = 0 < self.max_megapixels <= 178
        require(pixels_ok, "embed.max_megapixels", self.max_megapixels, "must be above 0 and at most 178")
        share = self.gpus_per_actor
        fits = 0 < share <= 1 or share == int(share) > 0
        require(fits, "embed.gpus_per_actor", share, "must be a share of one GPU (above 0, up to 1) or a whole number")
