"""python -m train.checkpoint FOLDER: read every byte of its checkpoints, or of one, against what it should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from curate.bad_input import BadInput
from curate.command_line import DONE, FAILED, told_in_one_line
from curate.config_help import About, PlainParser

PROG = "train.checkpoint"
ABOUT = About(
    command="python -m train.checkpoint FOLDER",
    example="python -m train.checkpoint s3://bucket/run/train/base --json",
    reads="FOLDER, of all checkpoints of a run or of one, by path or fsspec URL",
    writes="nothing",
)


def main(argv: Sequence[str]) -> int:
    """Print a line for each checkpoint; exit code 1 where one is not whole."""
    parser = PlainParser(PROG, "Check checkpoints: every byte against its sha256.", ABOUT)
    parser.add_argument("folder", metavar="FOLDER", help="a run, its checkpoints, or one of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each")
    args = parser.parse_args(argv)
    whole = True
    with told_in_one_line(PROG, "nothing was written"):
        from train.checkpoint.newest import checkpoints_in

        folder = args.folder.rstrip("/")
        for checkpoint in checkpoints_in(folder) or checkpoints_in(f"{folder}/checkpoints") or [_one(folder)]:
            told = facts(checkpoint)
            whole &= told["whole"]
            print(json.dumps(told) if args.json else line(told), flush=True)
    return DONE if whole else FAILED


def _one(folder: str) -> str:
    """Return a folder that is a checkpoint, whole or not; raises BadInput where there is nothing."""
    from train.checkpoint.store import open_store

    if not open_store(folder).names():
        raise BadInput(f"FOLDER = {folder}: nothing there; name the checkpoints of a run, or one of them")
    return folder


def facts(checkpoint: str) -> dict[str, Any]:
    """Return what a checkpoint holds, or what is wrong with it."""
    from train.checkpoint.files import BrokenCheckpoint, read_manifest, verify

    try:
        verify(checkpoint)
        manifest = read_manifest(checkpoint)
    except BrokenCheckpoint as error:
        return {"checkpoint": checkpoint, "whole": False, "why": str(error).removeprefix(f"{checkpoint}: ")}
    state, files = manifest["state"], manifest["files"].values()
    size = {"parts": len(files), "num_bytes": sum(file["num_bytes"] for file in files)}
    return {"checkpoint": checkpoint, "whole": True, **size, **state}


def line(told: dict[str, Any]) -> str:
    """Return the same for people."""
    if not told["whole"]:
        return f"{told['checkpoint']}: NOT whole: {told['why']}"
    size = f"{told['num_bytes'] / 1e9:.3f} GB in {told['parts']} parts"
    return f"{told['checkpoint']}: whole, step {told['step']}, {told['num_elements']:,} parameters, {size}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
