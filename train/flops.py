"""Model FLOPs utilisation: what the configured U-Net computes for a picture, over what the devices could."""

from __future__ import annotations

from dataclasses import replace

import torch

from train.config import TrainConfig
from train.plan.gpus import GPUS
from train.plan.network import count_unet
from train.speed import SpeedConfig


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the dense peak in FLOP/s; None where the table does not know the device, or the precision is not bf16.

    The table has the SXM boards; a PCIe or NVL board of the same name is slower.
    """
    if "PCIE" in device_name.upper() or "NVL" in device_name:
        return None
    known = (gpu.peak_tflops * 1e12 for name, gpu in GPUS.items() if name.upper() in device_name)
    return next(known, None) if precision == "bf16" else None


def flops_an_image(config: TrainConfig, latent_hw: tuple[int, int] | None = None) -> float:
    """Return the operations of training on one picture, of `unet.sample_size` or another.

    Counted is the forward pass, three times: the backward pass has two products for each one of it. Nothing is added
    for recomputation, be it of blocks or inside attention's kernels: what is computed twice is not useful work twice
    (Chowdhery et al. 2022, PaLM, appendix B).
    """
    return 3.0 * count_unet(replace(config, speed=SpeedConfig()), "none", latent_hw).forward_flops


class Utilisation:
    """From images/s to the share of the devices' peak; says nothing where no peak is known, as on a CPU."""

    def __init__(self, config: TrainConfig, device: torch.device, world_size: int) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        peak = peak_flops(name, config.precision)
        self.told = f"MFU is not told: no peak is known for {name} in {config.precision}"
        self._flops_an_image, self._peak = 0.0, 0.0
        if peak is not None:
            self._flops_an_image, self._peak = flops_an_image(config), peak * world_size
            work = f"{self._flops_an_image / 1e12:.4g} TFLOP forward and backward an image"
            self.told = f"MFU: {work}, {world_size} x {peak / 1e12:.4g} TFLOP/s ({name})"

    def values(self, images_per_s: float) -> dict[str, float]:
        """Return `mfu`, 0..1, or nothing."""
        return {"mfu": images_per_s * self._flops_an_image / self._peak} if self._peak else {}
