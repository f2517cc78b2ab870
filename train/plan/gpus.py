"""What the planner knows of GPUs and their networks; prices are round assumptions, to be replaced by one's own."""

from __future__ import annotations

from dataclasses import dataclass

from curate.config import require


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU in a node of eight."""

    memory_gb: float
    """Memory, in 10^9 bytes."""
    peak_tflops: float
    """Dense bf16 peak, 10^12 operations a second."""
    intra_gb_s: float
    """What one GPU sends to the others of its node, 10^9 bytes a second, one direction."""
    price: float
    """US dollars for an hour of one GPU: an assumption, not a quotation."""


GPUS = {
    # NVIDIA A100 datasheet (80 GB SXM): 312 TFLOPS bf16, NVLink 600 GB/s both directions together
    "a100": Gpu(memory_gb=80.0, peak_tflops=312.0, intra_gb_s=300.0, price=2.0),
    # NVIDIA H100 datasheet (SXM5): 1,979 TFLOPS bf16 with sparsity, half of it dense; NVLink 900 GB/s
    "h100": Gpu(memory_gb=80.0, peak_tflops=989.4, intra_gb_s=450.0, price=3.0),
    # NVIDIA H200 datasheet (SXM): 141 GB, otherwise as the H100
    "h200": Gpu(memory_gb=141.0, peak_tflops=989.4, intra_gb_s=450.0, price=3.5),
    # NVIDIA HGX B200 datasheet: 2,250 TFLOPS dense bf16 a GPU, 180 GB, NVLink 1,800 GB/s
    "b200": Gpu(memory_gb=180.0, peak_tflops=2250.0, intra_gb_s=900.0, price=5.0),
    # NVIDIA L40S datasheet: 48 GB, 362 TFLOPS dense bf16, no NVLink: PCIe 4.0 x16, 64 GB/s both directions together
    "l40s": Gpu(memory_gb=48.0, peak_tflops=362.0, intra_gb_s=32.0, price=1.2),
}


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the planner cannot count; every one is a flag and is printed."""

    mfu: float = 0.4
    """Share of the peak that the network's own operations reach; the best published full fine-tune of SDXL has 0.19."""
    gpus_per_node: int = 8
    """GPUs that NVLink joins."""
    inter_gb_s: float = 50.0
    """What one GPU's adapter sends to other nodes, 10^9 bytes a second (400 Gb/s)."""
    link_efficiency: float = 0.8
    """Share of these bandwidths that collectives reach."""
    hop_us: float = 10.0
    """Time of one hop of a tree between GPUs, in microseconds."""
    node_read_gb_s: float = 2.0
    """What the loaders of a node read, 10^9 bytes a second."""
    image_kb: float = 300.0
    """Mean size of a picture, 10^3 bytes, where pictures are read."""
    reserved_gb: float = 4.0
    """CUDA context, NCCL's buffers and workspaces of kernels, 10^9 bytes."""
    fragmentation: float = 0.05
    """Share of the memory that the allocator cannot use."""

    def __post_init__(self) -> None:
        for name in ("mfu", "link_efficiency"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "must be above 0 and at most 1")
        for name in ("gpus_per_node", "inter_gb_s", "node_read_gb_s", "image_kb"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        for name in ("hop_us", "reserved_gb"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(0 <= self.fragmentation < 1, "fragmentation", self.fragmentation, "must be 0 or more and below 1")
