"""The settings of training: frozen dataclasses, checked before anything loads, free of heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from curate.bad_input import BadInput
from curate.config import ClipSpec, require
from train.config_evaluation import EvaluateConfig, GridsConfig, Tracker
from train.speed import SpeedConfig, ZeroConfig
from train.watch import WatchConfig

TIME_IDS = {"base": 6, "refiner": 5}
"""Numbers of micro-conditioning: sizes and crop, and for the base the target size, for the refiner the score."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the U-Net, in diffusers' terms."""

    sample_size: int = 128
    """Side of the usual latent, in latent pixels."""
    latent_channels: int = 4
    """Channels of the latent."""
    block_out_channels: tuple[int, ...]
    """Channels of each level."""
    down_block_types: tuple[str, ...]
    """diffusers block class of each level on the way down."""
    up_block_types: tuple[str, ...]
    """diffusers block class of each level on the way up."""
    transformer_layers_per_block: tuple[int, ...]
    """Transformer layers of each level."""
    attention_heads: tuple[int, ...]
    """Attention heads of each level."""
    cross_attention_dim: int
    """Width of the text sequence."""
    pooled_dim: int
    """Width of the pooled text embedding."""
    time_id_dim: int = 256
    """Width of the sinusoid of each micro-conditioning number."""
    layers_per_block: int = 2
    """Residual blocks of each level."""
    norm_groups: int = 32
    """Groups of each GroupNorm."""

    def __post_init__(self) -> None:
        for name in ("down_block_types", "up_block_types", "transformer_layers_per_block", "attention_heads"):
            value = getattr(self, name)
            fits = len(value) == len(self.block_out_channels)
            require(fits, f"unet.{name}", value, f"needs one entry for each of {len(self.block_out_channels)} levels")
        divides = all(channels % self.norm_groups == 0 for channels in self.block_out_channels)
        require(divides, "unet.norm_groups", self.norm_groups, f"must divide each of {self.block_out_channels}")


@dataclass(frozen=True, kw_only=True)
class TextTower(ClipSpec):
    """A frozen text encoder and what its tokenizer pads with."""

    padding: Literal["end_of_text", "zero"] = "zero"
    """Token after the end of the caption: CLIP-L's tokenizer repeats the end, OpenCLIP's writes 0."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network learns to predict."""

    num_timesteps: int = 1000
    """Noise scales of the schedule."""
    beta_start: float = 0.00085
    """First beta; the square roots are linear."""
    beta_end: float = 0.012
    """Last beta."""
    timestep_low: int = 0
    """Smallest timestep that is drawn."""
    timestep_high: int = 999
    """Largest timestep that is drawn, inclusive."""
    prediction: Literal["epsilon", "v"] = "epsilon"
    """What is predicted: the noise, or the velocity sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) latent."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise; needs prediction v."""
    min_snr_gamma: float | None = None
    """Cap of the signal-to-noise ratio in the weights of the loss (5 is usual); null weighs all timesteps alike."""
    offset_noise: float = 0.0
    """Standard deviation of noise that is constant over a channel."""
    conditioning_dropout: float = 0.1
    """Share of samples that lose their text conditioning, 0..1."""
    dropped_text: Literal["zeros", "empty"] = "zeros"
    """What they get instead: embeddings of zeros, as SDXL's base expects them, or those of the empty caption."""
    caption_dropout: float = 0.0
    """Share of samples, beside these, whose caption is replaced by the empty one, 0..1."""
    timestep_bias: float = 1.0
    """How much likelier the timesteps of the biased range are drawn than the others; 1 draws all alike."""
    timestep_bias_low: int | None = None
    """First timestep of the biased range; null is the smallest that is drawn."""
    timestep_bias_high: int | None = None
    """Last timestep of the biased range, inclusive; null is the largest that is drawn."""

    def __post_init__(self) -> None:
        betas = (self.beta_start, self.beta_end)
        require(
            0 < betas[0] <= betas[1] < 1, "objective.beta_start, beta_end", betas, "must satisfy 0 < start <= end < 1"
        )
        ordered = 0 <= self.timestep_low <= self.timestep_high < self.num_timesteps
        fix = f"must satisfy 0 <= low <= high < {self.num_timesteps}"
        require(ordered, "objective.timestep_low, timestep_high", (self.timestep_low, self.timestep_high), fix)
        dropout = self.conditioning_dropout
        require(0 <= dropout < 1, "objective.conditioning_dropout", dropout, "must be 0 or more and below 1")
        empty = self.caption_dropout
        require(0 <= empty < 1, "objective.caption_dropout", empty, "must be 0 or more and below 1")
        velocity = self.prediction == "v" or not self.zero_terminal_snr
        fix = "epsilon says nothing about a sample of pure noise; set objective.prediction to v"
        require(velocity, "objective.zero_terminal_snr", self.zero_terminal_snr, fix)
        gamma = self.min_snr_gamma
        require(gamma is None or gamma > 0, "objective.min_snr_gamma", gamma, "must be above 0, or null")
        require(self.offset_noise >= 0, "objective.offset_noise", self.offset_noise, "must be 0 or more")
        require(self.timestep_bias > 0, "objective.timestep_bias", self.timestep_bias, "must be above 0")
        low, high = self.biased_range
        inside = self.timestep_low <= low <= high <= self.timestep_high
        fix = f"must lie in {self.timestep_low}..{self.timestep_high}"
        require(inside, "objective.timestep_bias_low, timestep_bias_high", (low, high), fix)

    @property
    def biased_range(self) -> tuple[int, int]:
        """First and last timestep that `timestep_bias` is about."""
        low = self.timestep_low if self.timestep_bias_low is None else self.timestep_bias_low
        return low, self.timestep_high if self.timestep_bias_high is None else self.timestep_bias_high


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How the global batch is made of what each rank computes at a time."""

    global_batch: int = 2048
    """Samples of one optimiser step, over all ranks."""
    micro_batch: int | None = 8
    """Samples of one forward pass on one rank; null takes what global batch, ranks and accumulation leave."""
    grad_accumulation: int = 1
    """Forward passes of one optimiser step."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "micro_batch", "grad_accumulation"):
            value = getattr(self, name)
            require(value is None or value > 0, f"batch.{name}", value, "must be at least 1")

    @property
    def samples_a_pass(self) -> int:
        """The micro-batch, after `for_ranks`."""
        assert self.micro_batch is not None, "filled in by for_ranks"
        return self.micro_batch

    def for_ranks(self, world_size: int) -> BatchConfig:
        """Return the batch with its micro-batch filled in; raises ValueError where the product does not fit."""
        share = max(1, self.global_batch // (world_size * self.grad_accumulation))
        filled = replace(self, micro_batch=self.micro_batch or share)
        filled.check(world_size)
        return filled

    def check(self, world_size: int) -> None:
        """Raise ValueError where the product is not the global batch."""
        product = world_size * self.samples_a_pass * self.grad_accumulation
        if product == self.global_batch:
            return
        raise BadInput(
            f"batch: {world_size} ranks x micro_batch {self.micro_batch} x grad_accumulation {self.grad_accumulation}"
            f" = {product}, but global_batch = {self.global_batch}; {self._fix(world_size, product)}"
        )

    def _fix(self, world_size: int, product: int) -> str:
        share, rest = divmod(self.global_batch, world_size * self.samples_a_pass)
        if rest == 0:
            return f"set batch.grad_accumulation to {share}, or batch.global_batch to {product}"
        return f"set batch.global_batch to {product}, or choose factors that give {self.global_batch}"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and gradient clipping."""

    lr_peak: float = 1e-4
    """Learning rate at the end of the warm-up."""
    lr_final: float = 1e-6
    """Learning rate at the last step."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        require(0 < self.lr_final <= self.lr_peak, "optimizer.lr_final", self.lr_final, "must be in (0, lr_peak]")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "must be 0 or more")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, "must be 0 or more and below 1")
        for name in ("clip_norm", "epsilon"):
            require(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "must be above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of pictures; cached latents know the flip only."""

    flip_prob: float = 0.5
    """Chance of a mirrored picture, 0..1."""
    jitter: float = 0.05
    """Largest relative change of brightness, contrast and saturation (pictures only)."""

    def __post_init__(self) -> None:
        require(0 <= self.flip_prob <= 1, "augment.flip_prob", self.flip_prob, "must be 0..1")
        require(0 <= self.jitter < 1, "augment.jitter", self.jitter, "must be 0 or more and below 1")


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """Which samples come together, and how often each source comes."""

    piece_rows: int = 512
    """Neighbouring rows of the index that are read together."""
    window_pieces: int = 64
    """Pieces from all over a group whose rows are shuffled together."""
    mixing: dict[str, float] | None = None
    """Share of each source in an epoch (`{web: 0.7, photos: 0.3}`); null shows every row once."""
    weight: str = "1"
    """Sampling weight of a row, SQL on the columns of the shards table: how often an epoch shows it."""

    def __post_init__(self) -> None:
        require(self.piece_rows > 0, "order.piece_rows", self.piece_rows, "must be at least 1")
        require(self.window_pieces > 0, "order.window_pieces", self.window_pieces, "must be at least 1")
        shares = (self.mixing or {}).values()
        fits = all(0 < share < math.inf for share in shares)
        require(fits, "order.mixing", self.mixing, "each share must be above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How samples are read. Nothing here changes which samples a batch has."""

    workers: int = 4
    """Processes that read and decode, on each rank; 0 does it between the steps."""
    threads: int = 8
    """Threads that fetch blocks of remote shards ahead, on each rank."""
    prefetch: int = 4
    """Micro-batches that each worker prepares ahead."""
    read_ahead_steps: int = 8
    """Global batches whose blocks of remote shards are fetched ahead."""
    cache_folder: str | None = None
    """Local folder for blocks of remote shards, one for the ranks of a node; null is one in the temporary folder."""
    cache_gb: float = 100.0
    """Most that the cache holds, in 10^9 bytes."""
    block_mb: int = 8
    """Length of a block, in 10^6 bytes."""
    max_bad_rate: float = 0.001
    """Share of samples, 0..1, that may be missing, truncated or corrupt, counted over 10,000 samples or more."""

    def __post_init__(self) -> None:
        require(self.workers >= 0, "loader.workers", self.workers, "must be 0 or more")
        for name in ("threads", "prefetch", "read_ahead_steps", "block_mb"):
            require(getattr(self, name) > 0, f"loader.{name}", getattr(self, name), "must be at least 1")
        fits = self.cache_gb * 1000 >= 4 * self.block_mb
        require(fits, "loader.cache_gb", self.cache_gb, f"must hold 4 blocks of {self.block_mb} MB or more")
        require(0 <= self.max_bad_rate <= 1, "loader.max_bad_rate", self.max_bad_rate, "must be 0..1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that one training run does."""

    root: str | None = None
    """Folder (fsspec URL) with the shards; `<root>/train/<model>` takes what training makes."""
    out: str | None = None
    """Local folder for logs, run.json and the averaged weights; null means `<root>/train/<model>`."""
    checkpoints: str | None = None
    """Folder (fsspec URL) for checkpoints, seen by all ranks; null means `<out>/checkpoints`."""
    model: Literal["base", "refiner"]
    """Which of the two networks."""
    unet: UNetConfig
    """Shape of the U-Net."""
    init_from: str | None = None
    """diffusers U-Net folder, pipeline folder, or single-file .safetensors checkpoint; null starts from scratch."""
    text_towers: tuple[TextTower, ...]
    """Frozen text encoders; the last one gives the pooled embedding."""
    vae: str | None = None
    """SDXL's autoencoder by its name in infra/weights.yaml, or a folder (fsspec URL) with a diffusers AutoencoderKL."""
    source: Literal["latents", "images"] = "latents"
    """Read cached latents, or decode, augment and encode pictures."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is predicted."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Batch arithmetic."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and schedule."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Flip and colour jitter."""
    order: OrderConfig = field(default_factory=OrderConfig)
    """The data order."""
    index: str | None = None
    """Local folder with the index, seen by all ranks; null is `<root>/index`, or `<out>/index` for a remote root."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Reading."""
    steps: int = 600_000
    """Optimiser steps of the whole run."""
    seed: int = 0
    """Seed of weights, data order and noise."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations; masters, moments and EMA are fp32 either way."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights, reached through min(decay, (1 + n) / (10 + n))."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints, which are written while the steps go on; the last step always writes one."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept."""
    validate_every_steps: int = 5000
    """Steps between validations; 0 validates before the first and after the last step only."""
    validation_samples: int = 512
    """Draws of sample, noise and timestep of one validation, the same ones every time."""
    grids: GridsConfig = field(default_factory=GridsConfig)
    """Pictures of the same prompts, drawn while the network learns."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """FID, KID, CMMD and CLIP score."""
    log_every_steps: int = 10
    """Steps between lines of metrics."""
    track: Tracker = "tensorboard"
    """Who keeps the curves beside metrics.jsonl: events for TensorBoard, or Weights & Biases."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Hanging steps, jumping losses, and losses that are not finite."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """What ranks share, and how they sum gradients."""
    self_test: bool = True
    """Before anything else, compare DeepSpeed's first gradient on a small network with plain torch's."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """Compilation, memory layout, attention kernels, recomputation."""
    ranks: int | Literal["auto"] = "auto"
    """Ranks to start where no launcher did; auto is one for each GPU, or `cpu_ranks` where there is none."""
    cpu_ranks: int = 1
    """Ranks of `auto` on a machine without a GPU."""

    def __post_init__(self) -> None:
        towers = {"base": 2, "refiner": 1}[self.model]
        require(len(self.text_towers) == towers, "text_towers", len(self.text_towers), f"{self.model} has {towers}")
        for name in ("steps", "checkpoint_every_steps", "keep_checkpoints", "validation_samples", "log_every_steps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        require(self.validate_every_steps >= 0, "validate_every_steps", self.validate_every_steps, "must be 0 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be 0 or more and below 2^63")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "must be 0 or more and below 1")
        require(self.ranks == "auto" or self.ranks > 0, "ranks", self.ranks, "must be auto or at least 1")
        require(self.cpu_ranks > 0, "cpu_ranks", self.cpu_ranks, "must be at least 1")
        trained = self.objective.timestep_high + 1
        fix = f"must be below {trained}, the timesteps that are trained"
        for name, steps in (("grids", self.grids.draw.sampler_steps), ("evaluate", self.evaluate.draw.sampler_steps)):
            require(steps < trained, f"{name}.draw.sampler_steps", steps, fix)
        in_grad = self.precision == "fp32" and self.zero.stage == 1 and self.batch.grad_accumulation > 1
        fix = "a pass would overwrite what the one before left in .grad: zero.stage 2, bf16, or one pass a step"
        require(not (in_grad and self.speed.cuda_graphs), "speed.cuda_graphs", self.speed.cuda_graphs, fix)

    def check_runnable(self) -> None:
        """Raise ValueError where a setting that real training needs is missing."""
        require(self.root is not None, "root", self.root, "name the folder with the shards (root: in the YAML file)")
        fix = "name the folder of a diffusers AutoencoderKL"
        require(self.vae is not None, f"train.{self.model}.vae", self.vae, fix)
        local = "://" not in self.out_folder
        fix = "logs go to a local or shared folder: set train.<model>.out; checkpoints may go to a URL (checkpoints)"
        require(local, "out", self.out_folder, fix)

    @property
    def data_root(self) -> str:
        """The root, after `check_runnable`."""
        assert self.root is not None
        return self.root

    @property
    def index_parent(self) -> str:
        """Folder with an index for each split."""
        return self.index or (f"{self.out_folder}/index" if "://" in self.data_root else f"{self.root}/index")

    @property
    def vae_folder(self) -> str:
        """The autoencoder's folder, after `check_runnable`."""
        assert self.vae is not None
        return self.vae

    @property
    def out_folder(self) -> str:
        """Folder for logs and run.json."""
        return self.out or f"{self.root}/train/{self.model}"

    @property
    def checkpoints_folder(self) -> str:
        """Folder or URL of the checkpoints."""
        return (self.checkpoints or f"{self.out_folder}/checkpoints").rstrip("/")
