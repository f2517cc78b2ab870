"""python -m train.run base|refiner: train, or show with --dry-run what would be trained."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from curate.config_file import stop
from train.config import TrainConfig
from train.launch import adopt_launcher, run_ranks
from train.recipes import RECIPES
from train.settings import read_train_settings

PROG = "train.run"


def main(argv: Sequence[str]) -> int:
    """Read and check the settings, then start the ranks, be one of them, or print the dry run."""
    if not argv or argv[0] not in RECIPES:
        stop(PROG, f"first say which network: {' or '.join(RECIPES)}, as in python -m train.run base")
    model, flags = argv[0], list(argv[1:])
    dry_run = "--dry-run" in flags
    config, extra = read_train_settings(
        model,
        flags,
        prog=f"{PROG} {model}",
        description=f"Train the {model}.",
        add_flags=_flags,
        root="." if dry_run else None,
    )
    if dry_run:
        from train.dry_run import dry_run as show

        show(config)
        return 0
    try:
        config.check_runnable()
        launched = adopt_launcher(os.environ)
        ranks = int(os.environ["WORLD_SIZE"]) if launched else _ranks(config)
        config = dataclasses.replace(config, batch=config.batch.for_ranks(ranks))
    except ValueError as error:
        stop(PROG, str(error))
    if not launched:
        return run_ranks("train.run", argv, ranks)
    return _be_a_rank(config, extra.resume)


def _be_a_rank(config: TrainConfig, resume: str) -> int:
    """Train; an input that is missing or does not fit is one line, not a traceback."""
    from curate.weights import MissingWeights
    from train.loop import train

    try:
        train(config, resume)
    except (ValueError, FileNotFoundError, MissingWeights) as error:
        rank = int(os.environ["RANK"])
        stop(PROG if rank == 0 else f"{PROG}, rank {rank}", str(error))
    return 0


def _flags(parser: Any) -> None:
    parser.add_argument("--dry-run", action="store_true", help="build the networks without memory, print, and exit")
    parser.add_argument("--resume", default="auto", help="auto (newest whole checkpoint), none, or a checkpoint folder")


def _ranks(config: TrainConfig) -> int:
    if config.ranks != "auto":
        return int(config.ranks)
    import torch

    return torch.cuda.device_count() or config.cpu_ranks


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
