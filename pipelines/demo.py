#!/usr/bin/env python3
"""The main job on one machine: a small crawl and a dump in, trained base and refiner and pictures out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.command_line import told_in_one_line
from curate.config_help import About, PlainParser
from pipelines.demo_crawl import Origin, write_dump

CONFIG = "pipelines/demo.yaml"
ROOT = Path("runs/demo")
ABOUT = About(
    command="python pipelines/demo.py",
    example="python pipelines/demo.py",
    reads="photographs that scikit-image and scikit-learn carry",
    writes="runs/demo/: tables, shards, trained networks, samples.png; it needs no GPU",
)
MOST_OF_FIRST_LOSS = 0.7
"""Training has learnt something where the validation loss falls to this share of the first one."""


def main() -> None:
    """Read the command line, then run the demo."""
    PlainParser("pipelines/demo.py", str(__doc__), ABOUT).parse_args()
    with told_in_one_line("pipelines/demo.py", "what is finished is kept: run the same command to go on"):
        demo()


def demo() -> None:
    """Run every command as one would type it."""
    os.chdir(Path(__file__).resolve().parents[1])
    started = time.monotonic()
    with Origin(ROOT / "crawl") as origin:
        write_dump(ROOT / "dump")
        told(f"an origin server offers a crawl at http://127.0.0.1:{origin.port}/, a dump lies in {ROOT}/dump")
        run("curation", "pipelines/run.py", "--config", CONFIG)
    run("training, base", "-m", "train.run", "base", "--config", CONFIG)
    run("training, refiner", "-m", "train.run", "refiner", "--config", CONFIG)
    run("export to diffusers", "-m", "train.export", "--config", CONFIG)
    run("sampling", "-m", "train.sample", "--config", CONFIG)
    losses = [loss_line(model) for model in ("base", "refiner")]
    told(f"done in {time.monotonic() - started:.0f} s")
    print("\n".join([*losses, *where_things_are()]))


def run(title: str, *command: str) -> None:
    """Run one command of the project with this Python; end where it fails. After Ctrl-C it may save first."""
    told(title, "python", *command)
    process = subprocess.Popen([sys.executable, *command])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code != 0:
        sys.exit(f"demo: {title} ended with code {code}")


def told(title: str, *command: str) -> None:
    shown = f": {' '.join(command)}" if command else ""
    print(f"\n=== {title}{shown}", flush=True)


def loss_line(model: str) -> str:
    """Return how far the validation loss fell; end the demo where it did not fall clearly."""
    run_json = json.loads((ROOT / "train" / model / "run.json").read_text())
    before, after = run_json["val_loss_before"], run_json["val_loss_after"]
    if not after <= MOST_OF_FIRST_LOSS * before:
        sys.exit(f"demo: the {model}'s validation loss went from {before:.4f} to {after:.4f}: it did not learn")
    return f"{model:<9} validation loss {before:.4f} -> {after:.4f} ({after / before:.0%})"


def where_things_are() -> list[str]:
    """Return where everything lies and what to do next."""
    return [
        f"tables     {ROOT}/tables/       one folder of parquet for each step",
        f"shards     {ROOT}/shards/       WebDataset, by aspect bucket; latents in {ROOT}/latents/",
        f"training   {ROOT}/train/base/ and {ROOT}/train/refiner/  (checkpoints/, unet_ema/, metrics.jsonl)",
        f"models     {ROOT}/export/base/ and {ROOT}/export/refiner/  (diffusers folders)",
        f"pictures   {ROOT}/samples.png",
        "note       CLIP and text towers are untrained here: scores mean nothing, and pictures do not follow captions",
        "next       python pipelines/run.py --init, fill in darkroom.yaml with your own lists or folders, then",
        "           python pipelines/run.py && python -m train.run base",
    ]


if __name__ == "__main__":
    main()
