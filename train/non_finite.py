"""What follows a loss or gradient that is not finite: all ranks alike stop, skip the batch, or roll back.

Rolling back restores the newest whole checkpoint and repeats the steps since then without the batch. A step keeps its
batch, its noise and its learning rate, for the data order is a function of seed and step; a batch that is left out
leaves a hole in the steps. The holes are recorded in `roll_backs.jsonl` beside the checkpoints, so that a resumed run
knows them, whichever checkpoint it continues from.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from train.checkpoint.newest import checkpoints_in, find, restore
from train.config import TrainConfig
from train.ema import Ema
from train.engine import Engine, World

RECORD = "roll_backs.jsonl"


class NonFinite(RuntimeError):
    """A loss or gradient was not finite; the message names step and samples."""


@dataclass(frozen=True, kw_only=True)
class RollBack:
    """One line of the record."""

    batch: int
    """Global batch whose loss or gradient was not finite."""
    to_step: int
    """Steps done at the checkpoint that was restored."""
    left_out: tuple[int, ...]
    """Global batches that are not shown any more."""
    uids: tuple[str, ...]
    """Samples of the batch."""


class Recovery:
    """Does what `watch.on_non_finite` says, and knows which batches earlier roll backs left out."""

    def __init__(self, config: TrainConfig, folder: Path, world: World, first_step: int) -> None:
        self._config, self._folder, self._world = config, folder, world
        read: list[Any] = [self._read(first_step) if world.rank == 0 else None]
        dist.broadcast_object_list(read, src=0)
        self.roll_backs: list[RollBack] = read[0]

    def _read(self, first_step: int) -> list[RollBack]:
        """Return the record of this run; that of another one, whose checkpoints were moved away, is set aside."""
        record = self._folder / RECORD
        if not first_step and record.exists() and not checkpoints_in(self._config.checkpoints_folder):
            aside = record.with_name(f"{RECORD}.before")
            os.replace(record, aside)
            self._say(f"no checkpoints are there: {record.name}, of an earlier run, is now {aside.name}")
        return read_roll_backs(self._folder)

    @property
    def left_out(self) -> frozenset[int]:
        """Global batches that no step shows."""
        return frozenset(batch for roll_back in self.roll_backs for batch in roll_back.left_out)

    @property
    def end(self) -> int:
        """Steps after which the run is over: the configured ones, without batches left out right before the end."""
        left_out, end = self.left_out, self._config.steps
        while end - 1 in left_out:
            end -= 1
        return end

    def next_batch(self, step: int) -> int:
        """Return `step`, or the next one whose batch is shown."""
        left_out = self.left_out
        while step in left_out:
            step += 1
        return step

    def follow(self, said: str, batch: int, uids: list[str], engine: Engine, ema: Ema) -> str | None:
        """Return the checkpoint that all ranks went back to, or None where the run simply goes on.

        Raises NonFinite on all ranks alike where the settings say stop, or where no roll back is left.
        """
        everywhere = gather_uids(uids, self._world)
        text = f"step {batch + 1}: {said}; samples {', '.join(everywhere)}"
        if self._config.watch.on_non_finite == "stop":
            raise NonFinite(text)
        if self._config.watch.on_non_finite == "skip":
            self._say(f"skipped {text}")
            return None
        return self._go_back(text, batch, everywhere, engine, ema)

    def _go_back(self, text: str, batch: int, uids: list[str], engine: Engine, ema: Ema) -> str:
        if len(self.roll_backs) >= self._config.watch.max_roll_backs:
            raise NonFinite(
                f"{text}; all {self._config.watch.max_roll_backs} roll backs (watch.max_roll_backs) are used up"
            )
        found = self._newest_checkpoint()
        if found is None:
            raise NonFinite(f"{text}; there is no whole checkpoint to roll back to")
        to_step = restore(found, engine, ema).step
        first = max(0, batch + 1 - self._config.watch.roll_back_leaves_out_steps)
        left_out = tuple(range(first, batch + 1))
        self.roll_backs.append(RollBack(batch=batch, to_step=to_step, left_out=left_out, uids=tuple(uids)))
        if self._world.rank == 0:
            write_roll_backs(self._folder, self.roll_backs)
        self._say(f"rolled back to step {to_step}, and leaving out {len(left_out)} batches, after {text}")
        return found

    def _newest_checkpoint(self) -> str | None:
        """Return the newest whole one; the caller has waited for those that were still being written."""
        chosen: list[Any] = [None]
        if self._world.rank == 0:
            chosen[0] = find(self._config.checkpoints_folder, "auto")
        dist.broadcast_object_list(chosen, src=0)
        return chosen[0]

    def _say(self, text: str) -> None:
        if self._world.rank == 0:
            print(text, flush=True)


def gather_uids(uids: list[str], world: World) -> list[str]:
    """Return the samples of all ranks."""
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, uids)
    return [uid for rank_uids in gathered for uid in rank_uids]


def read_roll_backs(folder: Path) -> list[RollBack]:
    """Return the record of a run, empty where it never rolled back."""
    path = folder / RECORD
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        RollBack(
            batch=line["batch"], to_step=line["to_step"], left_out=tuple(line["left_out"]), uids=tuple(line["uids"])
        )
        for line in lines
    ]


def write_roll_backs(folder: Path, roll_backs: list[RollBack]) -> None:
    """Write the record at once, whole."""
    draft = folder / f".{RECORD}.partial"
    with draft.open("w") as file:
        file.writelines(json.dumps(asdict(roll_back)) + "\n" for roll_back in roll_backs)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / RECORD)
