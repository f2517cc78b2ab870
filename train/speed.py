"""Settings: what ranks share under ZeRO, and switches for how the same numbers are computed faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.config import require

Attention = Literal["auto", "flash", "efficient", "cudnn", "math"]
Recomputed = Literal["none", "deepest", "transformers", "all"]


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """What ranks share, and how they sum gradients."""

    stage: Literal[1, 2] = 2
    """2 shards gradients as well and reduces them in every pass; 1 keeps them whole and reduces once a step."""
    reduce_bucket_elements: int = 200_000_000
    """Elements that ZeRO reduces and gathers at a time; ZeRO-1 in bf16 reduces its flat gradient whole."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Numbers in which ranks sum gradients; bf16 halves the traffic and rounds partial sums. Accumulation on a rank is
    fp32 either way."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass runs; not with `speed.cuda_graphs`, nor under ZeRO-1 in bf16."""

    def __post_init__(self) -> None:
        count = self.reduce_bucket_elements
        require(count > 0, "zero.reduce_bucket_elements", count, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How the same numbers are computed faster."""

    compile: bool = False
    """Compile each transformer block and each res-block with torch.compile: short compilations that all blocks of a
    shape share. The second latent shape makes sizes symbolic, so aspect buckets do not compile again."""
    cuda_graphs: bool = False
    """Replay the network's forward and backward pass as two CUDA graphs for each shape of inputs, captured at its first
    sight. Needs a GPU. Holds one more copy of the gradients and hands all of them over after the backward pass, which
    then hides no reducing of them among GPUs."""
    channels_last: bool = False
    """Hold activations as NHWC, the layout of the tensor cores' convolutions; strides are checked at the start."""
    attention: Attention = "auto"
    """Kernel of scaled dot-product attention; auto lets torch choose. A CPU has flash and math."""
    activation_checkpointing: Recomputed = "none"
    """Blocks that are recomputed in the backward pass: transformer blocks of the widest level (deepest), all of them
    (transformers), or these and the res-blocks (all)."""
    fused_kernels: bool = False
    """Compute norms, GEGLU, SiLU, residuals, and the biases beside them, in Triton kernels. Needs a GPU and
    `channels_last`."""
    fused_adamw: bool = True
    """Update masters and moments in one kernel instead of one for each operation."""

    def __post_init__(self) -> None:
        fix = "its GroupNorm reads NHWC: set speed.channels_last to true"
        require(self.channels_last or not self.fused_kernels, "speed.fused_kernels", self.fused_kernels, fix)
