"""python -m train.evaluate base|refiner: FID, KID, CMMD and CLIP score of a network, by all ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.bad_input import BadInput
from curate.command_line import DONE, EXIT_CODES, told_in_one_line
from curate.config_help import About
from train.config import TrainConfig
from train.launch import adopt_launcher, num_ranks, run_ranks
from train.settings import model_asked_for, read_train_settings

PROG = "train.evaluate"
EXAMPLE = "python -m train.evaluate base --evaluate.samples 10000"
RUN_AGAIN = "features of real pictures are kept; run it again"
OF_TRAINING = (
    *("batch", "optimizer", "augment", "order", "speed", "zero", "watch", "grids", "init_from", "steps", "ema_decay"),
    *("checkpoints", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "track", "self_test"),
    *("validate_every_steps", "validation_samples"),
)
"""Settings that decide nothing here."""
USAGE = f"""usage: python -m train.evaluate base|refiner [--weights FOLDER] [--config FILE]... [--SETTING VALUE]...

Draw pictures for the captions of the split val, and measure FID, KID, CMMD and CLIP score beside the real ones. All
ranks draw and look; the features of the real pictures are computed once.

reads    shards/ and the index under the root; <root>/train/<network>/unet_ema/, or another U-Net folder
writes   a line of <root>/train/<network>/evaluations.jsonl; features/ beside it
example  {EXAMPLE}

python -m train.evaluate base --help shows the flags.
{EXIT_CODES}
"""


def main(argv: Sequence[str]) -> int:
    """Read the settings, then start the ranks or be one of them."""
    model = model_asked_for(argv, PROG, USAGE, EXAMPLE)
    if model is None:
        return DONE
    about = About(
        command=f"python -m train.evaluate {model}",
        example=f"python -m train.evaluate {model} --evaluate.samples 10000",
        reads=f"shards/ under the root; <root>/train/{model}/unet_ema/",
        writes=f"a line of <root>/train/{model}/evaluations.jsonl",
        sections=("evaluate",),
        hidden=OF_TRAINING,
    )
    config, flags = read_train_settings(
        model, argv[1:], prog=f"{PROG} {model}", description="Measure a network.", add_flags=_flags, about=about
    )
    with told_in_one_line(PROG, RUN_AGAIN):
        config.check_runnable()
        weights = Path(flags.weights or f"{config.out_folder}/unet_ema")
        if not (weights / "config.json").exists():
            raise BadInput(f"weights = {weights}: no U-Net there; train first, or name a diffusers U-Net folder")
        if not adopt_launcher(os.environ):
            return run_ranks(PROG, argv, num_ranks(config))
        _be_a_rank(config, weights)
    return DONE


def _be_a_rank(config: TrainConfig, weights: Path) -> None:
    import torch.distributed as dist

    from train.engine import start_world
    from train.evaluate.scores import append, evaluate_folder

    world = start_world()
    say = print if world.rank == 0 else _nothing
    record = evaluate_folder(config, weights, world, say)
    if world.rank == 0:
        append(record, Path(config.out_folder), None)
        for name, value in record.items():
            print(f"{name:<18}{value}")
    dist.barrier()
    dist.destroy_process_group()


def _nothing(text: str) -> None:
    """Say nothing: rank 0 speaks for all."""


def _flags(parser: Any) -> None:
    parser.add_argument("--weights", metavar="FOLDER", help="diffusers U-Net folder (default: the run's unet_ema)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
