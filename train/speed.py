"""Switches for how the same numbers are computed faster; each is off unless the settings say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.config import require

Attention = Literal["auto", "flash", "efficient", "cudnn", "math"]
Recomputed = Literal["none", "deepest", "transformers", "all"]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How the same numbers are computed faster."""

    compile: bool = False
    """Compile each transformer block and each res-block with torch.compile: short compilations that all blocks of a
    shape share. The second latent shape makes sizes symbolic, so aspect buckets do not compile again."""
    cuda_graphs: bool = False
    """Replay the compiled blocks as CUDA graphs. Needs a GPU, `compile`, one aspect bucket, and no recomputation."""
    channels_last: bool = False
    """Hold activations as NHWC, the layout of the tensor cores' convolutions; strides are checked at the start."""
    attention: Attention = "auto"
    """Kernel of scaled dot-product attention; auto lets torch choose. A CPU has flash and math."""
    activation_checkpointing: Recomputed = "none"
    """Blocks that are recomputed in the backward pass: transformer blocks of the widest level (deepest), all of them
    (transformers), or these and the res-blocks (all)."""
    fused_adamw: bool = True
    """Update masters and moments in one kernel instead of one for each operation."""

    def __post_init__(self) -> None:
        fix = "they replay compiled blocks: set speed.compile to true"
        require(self.compile or not self.cuda_graphs, "speed.cuda_graphs", self.cuda_graphs, fix)
        keeps = self.activation_checkpointing == "none" or not self.cuda_graphs
        fix = "a recomputed block would overwrite the graph's memory: set speed.activation_checkpointing to none"
        require(keeps, "speed.cuda_graphs", self.cuda_graphs, fix)
