"""Settings: the training shards, pictures and latents."""

from __future__ import annotations

from dataclasses import dataclass

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The training shards."""

    resolution_px: int = 1024
    """Square root of a bucket's area."""
    multiple_px: int = 64
    """Bucket sides are multiples of this."""
    jpeg_quality: int = 95
    """Quality of the re-encoded JPEG."""
    samples_per_shard: int = 5000
    """Samples of one train shard."""
    val_fraction: float = 0.01
    """Share of samples set aside for validation, chosen by uid, 0..1."""

    def __post_init__(self) -> None:
        require(0 <= self.val_fraction < 1, "export.val_fraction", self.val_fraction, "must be 0 or more and below 1")
        ok = self.resolution_px > 0 and self.resolution_px % self.multiple_px == 0
        require(ok, "export.resolution_px", self.resolution_px, f"must be a multiple of {self.multiple_px}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderFit:
    """Fits a small autoencoder on the exported pictures where no trained one is at hand."""

    steps: int = 250
    """Optimiser steps."""
    seed: int = 0
    """Seed of weights and batches."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """The latent shards."""

    vae: str | None = None
    """SDXL's by its name in infra/weights.yaml, or a diffusers AutoencoderKL folder; null skips the step."""
    fit: AutoencoderFit | None = None
    """Fit a small autoencoder into `vae` first (demonstrations only); null uses the folder as it is."""
    batch_size: int = 16
    """Pictures for each forward pass."""
    flip: bool = True
    """Write a mirrored variant beside each picture."""
