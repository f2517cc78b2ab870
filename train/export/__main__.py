"""python -m train.export: diffusers folders and single files of base and refiner, loaded back and compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from curate.command_line import DONE, FAILED, stop, told_in_one_line
from curate.config_help import About
from train.export.write import export, trained_unet
from train.recipes import RECIPES
from train.settings import read_train_settings

PROG = "train.export"
ABOUT = About(
    command="python -m train.export",
    example="python -m train.export --single_file fp16",
    reads="<root>/train/base/unet_ema/ and refiner/unet_ema/, the autoencoder and the text towers",
    writes="<root>/export/<model>/: diffusers folder, single file, model card; loaded back and compared first",
)
SINGLE_FILE_PRECISIONS = ("fp32", "bf16", "fp16", "none")


def main(argv: Sequence[str]) -> int:
    """Export every network that was trained; exit code 1 where a loaded folder computes something else."""
    settings = {
        model: read_train_settings(
            model, argv, prog=PROG, description="Export the trained networks.", about=ABOUT, add_flags=_flags
        )
        for model in RECIPES
    }
    out = settings["base"][0].out
    if out is not None and out == settings["refiner"][0].out:
        fix = "set train.base.out and train.refiner.out in the file"
        stop(PROG, f"out = {out}: base and refiner cannot lie in one folder; {fix}")
    precision = settings["base"][1].single_file
    trained = [config for config, _ in settings.values() if (trained_unet(config) / "config.json").exists()]
    if not trained:
        first = trained_unet(settings["base"][0])
        stop(PROG, f"nothing to export: no {first}; train first (python -m train.run base)")
    with told_in_one_line(PROG, "the folders of before are untouched: run it again"):
        return DONE if all([export(config, precision) for config in trained]) else FAILED


def _flags(parser: Any) -> None:
    parser.add_argument(
        "--single_file",
        choices=SINGLE_FILE_PRECISIONS,
        default="fp32",
        help="precision of the weights in sdxl_<model>.safetensors (the original names); none writes no such file",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
