"""Reads the training part of darkroom.yaml for every training command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from curate.command_line import stop
from curate.config import CurationConfig
from curate.config_file import read_settings
from curate.config_help import About
from curate.config_keys import did_you_mean, refuse, unknown_keys
from train.config import TrainConfig
from train.recipes import RECIPES, STAGES_STEPS, staged


def model_asked_for(argv: Sequence[str], prog: str, usage: str, example: str) -> str | None:
    """Return the first word, base or refiner; None where help was asked for and printed. Ends the process otherwise."""
    if argv and argv[0] in ("-h", "--help", "--help-all"):
        print(usage, end="")
        return None
    if not argv or argv[0] not in RECIPES:
        stop(prog, f"first say which network: {' or '.join(RECIPES)}, as in {example}")
    return argv[0]


def read_train_settings(
    model: str,
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    add_flags: Callable[[Any], None] | None = None,
    root: str | None = None,
    about: About | None = None,
) -> tuple[TrainConfig, Any]:
    """Return the recipe of `model`, or its `--stage`, with the file's `train.<model>` and the flags over it."""
    stage_px = _stage(argv, prog)
    recipe = RECIPES[model]() if stage_px is None else staged(RECIPES[model](), stage_px)
    recipe = dataclasses.replace(recipe, root=root)

    def flags(parser: Any) -> None:
        parser.add_argument("--stage", choices=list(map(str, STAGES_STEPS)), help="settings of this stage, in px")
        if add_flags is not None:
            add_flags(parser)

    return read_settings(
        TrainConfig,
        argv,
        prog=prog,
        description=description,
        section=lambda document: section(document, model),
        default=recipe,
        add_flags=flags,
        about=about,
    )


def _stage(argv: Sequence[str], prog: str) -> int | None:
    """Return the value of `--stage`, if it is there."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--stage=") else [word])]
    if "--stage" not in words:
        return None
    value = ([*words, "nothing"])[words.index("--stage") + 1]
    if value not in map(str, STAGES_STEPS):
        stop(prog, f"stage = {value}: must be one of {', '.join(map(str, STAGES_STEPS))}")
    return int(value)


def section(document: dict[str, Any], model: str) -> dict[str, Any]:
    """Return `train.<model>` with the top-level root; raises ValueError for keys that nobody knows."""
    known = {field.name for field in dataclasses.fields(CurationConfig)} | {"train"}
    _refuse_unknown("", document, known)
    train = document.get("train") or {}
    _refuse_unknown("train.", train, set(RECIPES))
    mine = train.get(model) or {}
    refuse(unknown_keys(TrainConfig, mine, f"train.{model}."))
    return {"root": document.get("root")} | mine


def _refuse_unknown(prefix: str, document: dict[str, Any], known: set[str]) -> None:
    names = {f"{prefix}{name}" for name in known}
    lines = [f"unknown key {prefix}{name}{did_you_mean(f'{prefix}{name}', names)}" for name in document]
    refuse(line for line, name in zip(lines, document, strict=True) if name not in known)
