"""Networks as a training run leaves them, without the training: random weights and the record of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from tests.train.synthetic_root import Tiny
from train.config import TrainConfig
from train.model import build_unet, count_parameters
from train.settings import read_train_settings


def trained(tiny: Tiny, folder: Path, model: str = "base", **objective: object) -> tuple[TrainConfig, Path]:
    """Write `unet_ema` and `run.json` of a network in a root of its own; return its settings and the YAML file."""
    document = yaml.safe_load(tiny.config.read_text())
    document["root"] = str(folder)
    document["train"][model]["objective"] = objective
    file = folder / "darkroom.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document))
    config, _ = read_train_settings(model, ["--config", str(file)], prog="test", description="")
    unet = build_unet(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # the zero-initialised layers would hide every mistake
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    unet.save_pretrained(Path(config.out_folder) / "unet_ema")
    record = {
        "versions": {"python": "3.11.0", "torch": "2.0"},
        "git_commit": "0123abcd",
        "config": asdict(config),
        "parameters": count_parameters(unet.parameters()),
        "samples": 30,
        "world_size": 2,
        "device": "cpu",
        "scaling_factor": 1.5,
        "text_towers_untrained": True,
        "val_loss_before": 1.0,
        "val_loss_after": 0.25,
        "steps_done": 6,
        "seconds": 3.5,
    }
    (Path(config.out_folder) / "run.json").write_text(json.dumps(record))
    return config, file
