"""Where curves and grids go beside metrics.jsonl: events for TensorBoard, or Weights & Biases."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from curate.bad_input import BadInput
from train.config_evaluation import Tracker

INSTALL_WANDB = "pip install wandb"
PROJECT = "darkroom"
WANDB_ID = "wandb_run.json"


class Track(Protocol):
    """Takes what a run says of itself."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Keep a few numbers of a step."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture of a step."""

    def close(self) -> None:
        """Flush and close."""


def check_tracker(track: Tracker) -> None:
    """Raise ValueError where the package that `track` asks for is not installed."""
    if track == "wandb" and find_spec("wandb") is None:
        raise BadInput(f"track = 'wandb': the package is not installed; {INSTALL_WANDB}, or set track to tensorboard")


def start_tracker(track: Tracker, folder: Path) -> Track:
    """Return the configured tracker of the run in a folder; a continued run goes on in the same place."""
    check_tracker(track)
    return WandbTrack(folder) if track == "wandb" else TensorBoardTrack(folder)


class TensorBoardTrack:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Keep a few numbers of a step."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture of a step."""
        import numpy as np

        self._events.add_image(name, np.array(image), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._events.close()


class WandbTrack:
    """A run of Weights & Biases; its own environment variables (WANDB_MODE, WANDB_ENTITY, ...) hold."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self._wandb = wandb
        said = folder / WANDB_ID
        before = json.loads(said.read_text())["id"] if said.exists() else None
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), id=before, resume="allow")
        self._run.define_metric("*", step_metric="step")  # a step that is done again is not refused
        said.write_text(json.dumps({"id": self._run.id}))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Keep a few numbers of a step."""
        self._run.log({"step": step} | values)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture of a step."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        """Flush and close."""
        self._run.finish()
