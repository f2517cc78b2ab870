"""One run at a time trains into a folder."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path

from curate.lock import held
from train.config import TrainConfig

LOCK = ".lock"
WAIT_S = 300.0
"""How long a run waits for the one before: a cluster file system notices only after a while that a node is gone."""


class FolderInUse(RuntimeError):
    """Another run trains there. Not bad input: a launcher that starts again after failures should do so."""

    exit_code = 1


def folder_lock(config: TrainConfig, wait_s: float = WAIT_S) -> AbstractContextManager[None]:
    """Keep other runs off the folder of logs and checkpoints; says for whom it waits, raises FolderInUse in the end."""
    folder, began, told = config.out_folder, time.monotonic(), set[str]()

    def taken(holder: str) -> None:
        if time.monotonic() - began >= wait_s:
            fix = f"stop it, or set train.{config.model}.out to another folder"
            raise FolderInUse(f"out = {folder}: {holder} trains into it: {fix}")
        if holder not in told:
            print(f"waiting up to {wait_s:.0f} s: {holder} trains into {folder}", flush=True)
            told.add(holder)

    return held(Path(folder) / LOCK, taken)
