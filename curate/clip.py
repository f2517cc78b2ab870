"""CLIP through open_clip: one loader for registered weights and for declared untrained models.

Shape legend: B images, C channels, H height, W width, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch

from curate.config import ClipSpec
from curate.weights import checked_path_of


def load_clip(spec: ClipSpec, device: str | torch.device = "cpu") -> Any:
    """Return the open_clip model in eval mode with frozen fp32 weights.

    Raises MissingWeights where the registered file is absent, WrongChecksum where it is another one,
    RuntimeError where it does not fit the architecture.
    """
    name = architecture_name(spec.architecture)
    if spec.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = open_clip.create_model(name, pretrained=None, device=device)
    else:
        model = open_clip.create_model(name, pretrained=str(checked_path_of(spec.weights)), device=device)
    return model.eval().requires_grad_(False)


def tokenizer(spec: ClipSpec) -> Any:
    """Return open_clip's tokenizer: texts -> int64 tokens of shape (B, context length)."""
    return open_clip.get_tokenizer(architecture_name(spec.architecture))


def preprocessing(model: Any) -> Any:
    """Return open_clip's own inference transform for the model: PIL image -> float32 CHW."""
    config = open_clip.get_model_preprocess_cfg(model)
    return open_clip.image_transform(
        config["size"],
        is_train=False,
        mean=config["mean"],
        std=config["std"],
        interpolation=config.get("interpolation"),
        resize_mode=config.get("resize_mode"),
    )


def resizer(model: Any) -> str:
    """Return how `preprocessing` resizes, for records of what was measured."""
    config = open_clip.get_model_preprocess_cfg(model)
    return f"open_clip's own: {config['interpolation']}, {config['resize_mode']}, to {config['size']} px"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the model wants to see, for the common transform: shorter side to `side_px`, bicubic, middle square."""

    side_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def common_preprocessing(model: Any) -> Preprocessing | None:
    """Return the model's preprocessing, or None where it is not the common transform."""
    config = open_clip.get_model_preprocess_cfg(model)
    sides = set(config["size"]) if isinstance(config["size"], tuple | list) else {config["size"]}
    if len(sides) != 1 or config["interpolation"] != "bicubic" or config["resize_mode"] != "shortest":
        return None
    return Preprocessing(side_px=sides.pop(), mean=tuple(config["mean"]), std=tuple(config["std"]))


def describe(spec: ClipSpec) -> str:
    """Return the model's name for humans; says when it is untrained."""
    return f"{Path(spec.architecture).stem}, " + (spec.weights or f"UNTRAINED random weights, seed {spec.seed}")


def architecture_name(architecture: str) -> str:
    """Register a JSON model config with open_clip where a path is given; return the name."""
    if not architecture.endswith(".json"):
        return architecture
    path = Path(architecture)
    if not path.exists():
        raise FileNotFoundError(f"clip.architecture = {architecture}: no such model config")
    open_clip.add_model_config(path)
    return path.stem
