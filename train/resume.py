"""What a resumed run must share with its checkpoint: everything that decides which numbers come next."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curate.bad_input import BadInput
from train.checkpoint import State
from train.config import TrainConfig

KEPT = (
    "model",
    "unet",
    "text_towers",
    "source",
    "precision",
    "seed",
    "objective",
    "batch.global_batch",
    "augment",
    "order",
    "ema_decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.epsilon",
)
"""Settings that stay as they are. Steps, learning rate, ranks, micro-batch and reading may change."""


def check_same_run(path: Path, state: State, config: TrainConfig, data_digest: str) -> None:
    """Raise ValueError naming what differs between a checkpoint and the settings, or the data, of now."""
    now = json.loads(json.dumps(asdict(config)))
    before = json.loads(json.dumps(state.config))
    differing = [
        f"{key} = {_at(now, key)!r}, but the checkpoint has {_at(before, key)!r}"
        for key in KEPT
        if _at(now, key) != _at(before, key)
    ]
    for what, was, is_now in zip(
        ("set of samples", "autoencoder"), state.data_digest.split("-"), data_digest.split("-"), strict=True
    ):
        if was != is_now:
            differing.append(f"another {what} than that of the checkpoint ({is_now}, was {was})")
    if differing:
        fix = "set it back, or start a new run in another folder (out)"
        raise BadInput(f"{path}: cannot continue: {'; '.join(differing)}; {fix}")


def _at(settings: dict[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part)
    return value
