"""python -m train.run base|refiner: train, or show with --dry-run what would be trained."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from curate.bad_input import BadInput
from curate.command_line import DONE, EXIT_CODES, told_in_one_line
from curate.config_help import About
from train.config import TrainConfig
from train.folder_lock import FolderInUse, folder_lock
from train.launch import OTHERS_TELL_S, adopt_launcher, num_ranks, run_ranks
from train.recipes import STAGES_STEPS
from train.settings import model_asked_for, read_train_settings

PROG = "train.run"
EXAMPLE = "python -m train.run base --dry-run"
RANK_0_TELLS_FIRST_S = OTHERS_TELL_S + 8.0
"""How long another rank keeps bad input to itself."""
GO_ON = "the same command goes on from the newest checkpoint"
USAGE = f"""usage: python -m train.run base|refiner [--config FILE]... [--SETTING VALUE]...

Train one of SDXL's two networks under DeepSpeed, on this machine's GPUs or as a rank of a launcher.
Ctrl-C and SIGTERM save after the step in progress; the same command goes on from there.

reads    shards/ and latents/ under the root, as the curation writes them
writes   <root>/train/<network>/: checkpoints/, metrics.jsonl, tensorboard/, unet_ema/, run.json
example  {EXAMPLE}

python -m train.run base --help shows the flags.
{EXIT_CODES}
"""


def main(argv: Sequence[str]) -> int:
    """Read and check the settings, then start the ranks, be one of them, or print the dry run."""
    model = model_asked_for(argv, PROG, USAGE, EXAMPLE)
    if model is None:
        return DONE
    flags = list(argv[1:])
    dry_run = "--dry-run" in flags
    config, extra = read_train_settings(
        model,
        flags,
        prog=f"{PROG} {model}",
        description=f"Train the {model}.",
        add_flags=_flags,
        root="." if dry_run else None,
        about=_about(model),
    )
    with told_in_one_line(PROG, GO_ON):
        return _train(config, extra, argv)


def _train(config: TrainConfig, extra: Any, argv: Sequence[str]) -> int:
    """Print the dry run, start the ranks, or be one of them."""
    if extra.dry_run:
        from train.dry_run import dry_run

        dry_run(config, extra.json)
        return DONE
    config.check_runnable()
    if extra.stage not in (None, str(min(STAGES_STEPS))) and config.init_from is None:
        raise BadInput(
            f"stage = {extra.stage}: starts from the stage before: give --init_from FOLDER with its unet_ema"
        )
    launched = adopt_launcher(os.environ)
    ranks = int(os.environ["WORLD_SIZE"]) if launched else num_ranks(config)
    config = dataclasses.replace(config, batch=config.batch.for_ranks(ranks))
    if not launched:
        return run_ranks("train.run", argv, ranks)
    return _be_a_rank(config, extra.resume)


def _be_a_rank(config: TrainConfig, resume: str) -> int:
    """Train; an input that is missing or does not fit is one line that names the rank."""
    from train.loop import train

    rank = int(os.environ["RANK"])
    alone = folder_lock(config) if rank == 0 else _after_rank_0()
    with told_in_one_line(PROG if rank == 0 else f"{PROG}, rank {rank}", GO_ON, also=(FolderInUse,)), alone:
        train(config, resume)
    return DONE


@contextmanager
def _after_rank_0() -> Iterator[None]:
    """Let rank 0 tell first what all ranks find wrong alike: the launcher then ends the others."""
    try:
        yield
    except BadInput:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which other launchers end it
        time.sleep(RANK_0_TELLS_FIRST_S)
        raise


def _about(model: str) -> About:
    command = f"python -m train.run {model}"
    return About(
        command=command,
        example=f"{command} --batch.global_batch 64 --batch.micro_batch 8 --batch.grad_accumulation 1",
        reads=f"shards/ and latents/ under the root; train.{model} of the file",
        writes=f"<root>/train/{model}/: checkpoints/, metrics.jsonl, tensorboard/, unet_ema/, run.json",
        sections=("batch", "optimizer"),
    )


def _flags(parser: Any) -> None:
    parser.add_argument("--dry-run", action="store_true", help="count the parameters without memory, print, and exit")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print it as JSON")
    parser.add_argument("--resume", default="auto", help="auto (newest whole checkpoint), none, or a checkpoint folder")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
