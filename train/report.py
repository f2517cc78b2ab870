"""What a run says of itself: one live line, metrics as JSON lines and curves, run.json."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from curate.commit import git_commit
from train.config_evaluation import Tracker
from train.track import start_tracker

LONGEST_LINE_BYTES = 1 << 20
PACKAGES = ("torch", "deepspeed", "diffusers", "transformers", "open_clip_torch")


class Report:
    """Rank 0's console and log files; the other ranks hold a silent one."""

    def __init__(self, folder: Path, *, active: bool, steps: int, track: Tracker) -> None:
        self._active = active
        self._folder = folder
        self._steps = steps
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            self._track = start_tracker(track, folder)
            _drop_torn_line(folder / "metrics.jsonl")
            self._lines = (folder / "metrics.jsonl").open("a", buffering=1)

    def say(self, text: str | None) -> None:
        """Print one line; None is nothing to say."""
        if self._active and text is not None:
            print(text, flush=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one record."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, "time": time.time()} | values) + "\n")
        self._track.scalars(step, values)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Show a picture beside the curves."""
        if self._active:
            self._track.picture(step, name, image)

    def progress(self, step: int, values: dict[str, float], seconds_left: float) -> None:
        """Show the live line: rewritten in place on a terminal, one line a time in a log."""
        if not self._active:
            return
        line = (
            f"step {step}/{self._steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}"
            f"  {values['images_per_s']:.1f} images/s  grad norm {values['grad_norm']:.3f}"
            f"  {_hours(seconds_left)} left"
        )
        print(line, end="\r" if sys.stdout.isatty() and step < self._steps else "\n", flush=True)

    def run_json(self, values: dict[str, Any]) -> None:
        """Write run.json at once, whole."""
        if not self._active:
            return
        draft = self._folder / ".run.json.partial"
        draft.write_text(json.dumps({"versions": versions(), "git_commit": git_commit()} | values, indent=1))
        os.replace(draft, self._folder / "run.json")

    def close(self) -> None:
        """Flush and close the files."""
        if self._active:
            self._track.close()
            self._lines.close()


def _hours(seconds: float) -> str:
    """Return hours, however many, minutes and seconds."""
    minutes, whole_seconds = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{whole_seconds:02d}"


def _drop_torn_line(path: Path) -> None:
    """Cut off what comes behind the last whole line: a full disk takes a part of one."""
    if path.exists():
        with path.open("r+b") as file:
            start = max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE_BYTES)
            file.seek(start)
            file.truncate(start + file.read().rfind(b"\n") + 1)


def versions() -> dict[str, str]:
    """Return the versions that shape the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
