"""Settings: the training shards, pictures and latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The training shards."""

    resolution_px: int = 1024
    """Square root of a bucket's area."""
    multiple_px: int = 64
    """Bucket sides are multiples of this."""
    max_enlargement: float = 2.0
    """A picture is enlarged by this factor at most, 1 or more; see small_images."""
    small_images: Literal["smaller_bucket", "enlarge"] = "smaller_bucket"
    """smaller_bucket: what would be enlarged further goes to the buckets of half the resolution, or a quarter, ...;
    enlarge: it goes to the full resolution at any factor, and the original size tells the network."""
    downscale: Literal["lanczos", "area"] = "lanczos"
    """Filter that makes pictures smaller; enlarging is always Lanczos."""
    decode: Literal["fast", "exact"] = "fast"
    """fast: plain JPEGs are decoded reduced where they stay at or above the size they are resized to."""
    image_format: Literal["jpeg", "webp", "png"] = "jpeg"
    """Format of the pictures in the shards."""
    jpeg_quality: int = 95
    """Quality of the re-encoded JPEG, 1..100."""
    jpeg_chroma: Literal["444", "420"] = "444"
    """444 keeps the colours at full size; 420 halves their sides, for smaller files."""
    webp_quality: int = 95
    """Quality of the re-encoded WebP, 1..100; 100 is lossless."""
    pass_through: bool = True
    """Keep the original bytes of a picture that has the bucket's size and the format, in RGB, without metadata."""
    faces: Literal["keep", "blur"] = "keep"
    """blur: faces are looked for in each picture and blurred before it is written."""
    face_detector: Literal["cascades", "yunet"] = "cascades"
    """cascades: those that come with OpenCV, which miss many; yunet: a small network, after
    `python -m curate.weights fetch face_yunet`."""
    min_face_share: float = 0.04
    """Smallest face that is looked for, as a share of the shorter side, above 0, up to 1."""
    samples_per_shard: int = 5000
    """Most samples of one train shard."""
    max_shard_mb: float = 2000.0
    """A shard that reaches this size goes on in another file; a single larger sample has a file of its own."""
    val_fraction: float = 0.01
    """Share of samples set aside for validation, chosen by uid, 0..1."""

    def __post_init__(self) -> None:
        require(0 <= self.val_fraction < 1, "export.val_fraction", self.val_fraction, "must be 0 or more and below 1")
        require(self.multiple_px > 0, "export.multiple_px", self.multiple_px, "must be at least 1")
        ok = self.resolution_px > 0 and self.resolution_px % self.multiple_px == 0
        require(ok, "export.resolution_px", self.resolution_px, f"must be a multiple of {self.multiple_px}")
        require(self.max_enlargement >= 1, "export.max_enlargement", self.max_enlargement, "must be 1 or more")
        for name in ("jpeg_quality", "webp_quality"):
            require(1 <= getattr(self, name) <= 100, f"export.{name}", getattr(self, name), "must be 1..100")
        share_ok = 0 < self.min_face_share <= 1
        require(share_ok, "export.min_face_share", self.min_face_share, "must be above 0, up to 1")
        require(self.samples_per_shard > 0, "export.samples_per_shard", self.samples_per_shard, "must be at least 1")
        require(self.max_shard_mb > 0, "export.max_shard_mb", self.max_shard_mb, "must be above 0")


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

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "encode.batch_size", self.batch_size, "must be at least 1")
        steps = self.fit.steps if self.fit is not None else 1
        require(steps > 0, "encode.fit.steps", steps, "must be at least 1")
        fit_ok = self.fit is None or self.vae is not None
        require(fit_ok, "encode.vae", self.vae, "name the folder that the fitted autoencoder goes to, or set fit: null")
