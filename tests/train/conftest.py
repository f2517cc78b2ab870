"""Fixtures: a synthetic root with latents, and settings of a tiny base and refiner on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.synthetic_root import Tiny, picture, write_clip, write_latents, write_root

BASE_UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1],
    "attention_heads": [2, 2],
    "layers_per_block": 1,
    "norm_groups": 8,
    "time_id_dim": 16,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Thirty small pictures in two buckets, their latents, and settings for both networks."""
    from train.autoencoder import FitConfig, fit, pixels, save_vae

    folder = tmp_path_factory.mktemp("tiny")
    root = folder / "root"
    rows = write_root(root, {(32, 32): 21, (32, 64): 9})
    import torch

    batch = torch.stack([pixels(picture(number, (32, 32))) for number in range(8)])
    settings = FitConfig(steps=8, block_out_channels=(8, 8, 16))
    vae = fit([batch], settings)
    save_vae(vae, root / "vae")
    write_latents(root, rows, vae)
    config = folder / "darkroom.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(document(folder, root)))))
    return Tiny(root=root, config=config)


def document(folder: Path, root: Path) -> dict[str, Any]:
    """Settings of both networks: two text towers for the base, the second one for the refiner."""
    spec = {"weights": None, "allow_untrained": True}
    tower_a = spec | {"architecture": write_clip(folder, "tiny_a", 32), "padding": "end_of_text"}
    tower_b = spec | {"architecture": write_clip(folder, "tiny_b", 48), "padding": "zero", "seed": 1}
    shared = {
        "vae": str(root / "vae"),
        "batch": {"global_batch": 4, "micro_batch": 2, "grad_accumulation": 1},
        "optimizer": {"lr_peak": 2e-3, "warmup_steps": 2},
        "steps": 6,
        "precision": "fp32",
        "checkpoint_every_steps": 100,
        "validation_samples": 8,
        "validate_every_steps": 0,
        "grids": {"every_steps": 0},
        "log_every_steps": 1,
        "ranks": 2,
        "loader": {"workers": 0},
    }
    base = shared | {
        "unet": BASE_UNET | {"cross_attention_dim": 80, "pooled_dim": 48},
        "text_towers": [tower_a, tower_b],
    }
    refiner = shared | {"unet": BASE_UNET | {"cross_attention_dim": 48, "pooled_dim": 48}, "text_towers": [tower_b]}
    return {"root": str(root), "train": {"base": base, "refiner": refiner}}
