"""Reads the training part of darkroom.yaml for every training command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from curate.config import CurationConfig
from curate.config_file import read_settings
from train.config import TrainConfig
from train.recipes import RECIPES


def read_train_settings(
    model: str,
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    add_flags: Callable[[Any], None] | None = None,
    root: str | None = None,
) -> tuple[TrainConfig, Any]:
    """Return the recipe of `model` with the file's `train.<model>` and the flags laid over it."""
    recipe = dataclasses.replace(RECIPES[model](), root=root)
    return read_settings(
        TrainConfig,
        argv,
        prog=prog,
        description=description,
        section=lambda document: section(document, model),
        default=recipe,
        add_flags=add_flags,
    )


def section(document: dict[str, Any], model: str) -> dict[str, Any]:
    """Return `train.<model>` with the top-level root; raises ValueError for keys that nobody knows."""
    known = {field.name for field in dataclasses.fields(CurationConfig)} | {"train"}
    _refuse_unknown("", document, known)
    train = document.get("train") or {}
    _refuse_unknown("train.", train, set(RECIPES))
    mine = train.get(model) or {}
    _refuse_unknown(f"train.{model}.", mine, {field.name for field in dataclasses.fields(TrainConfig)})
    return {"root": document.get("root")} | mine


def _refuse_unknown(prefix: str, document: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(document) - known)
    if unknown:
        names = ", ".join(f"{prefix}{name}" for name in unknown)
        raise ValueError(f"unknown key {names}; known here: {', '.join(sorted(known))}")
