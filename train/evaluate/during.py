"""What a run measures and draws of its averaged weights between its steps: loss, grids, scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from train.config import TrainConfig
from train.ema import Ema
from train.engine import Engine
from train.evaluate.cases import grid_cases
from train.evaluate.denoise import Painter
from train.evaluate.grids import draw_grid, save_grid
from train.evaluate.scores import Scorer, append
from train.index.reader import Index
from train.objective import Frozen, Objective
from train.report import Report
from train.validation import Validation


class Evaluation:
    """Loss, grids and scores of the averaged weights, each when it is due; all ranks take part."""

    def __init__(
        self,
        config: TrainConfig,
        index: Index,
        engine: Engine,
        ema: Ema,
        objective: Objective,
        frozen: Frozen,
        report: Report,
    ) -> None:
        world = engine.world
        self._config = config
        self._engine = engine
        self._ema = ema
        self._objective = objective
        self._report = report
        self._folder = Path(config.out_folder)
        self._validation = Validation(config, index, frozen.source(index), world=world, factor=frozen.factor)
        self._painter = Painter(config, frozen, index, objective.predict)
        self._grid = grid_cases(config, index, frozen.latent_factor) if config.grids.every_steps else []
        self._scorer = Scorer(config, index, world, report.say) if config.evaluate.every_steps else None

    def before(self, first_step: int) -> float:
        """Return the loss before the first step; a continued run takes it from run.json, which rank 0 reads."""
        known = [_loss_before(self._folder) if first_step and self._engine.world.rank == 0 else None]
        dist.broadcast_object_list(known, src=0)
        if known[0] is not None:
            return known[0]
        with self._averaged():
            loss = self._loss(first_step)
            self._draw(first_step)
        self._report.say(f"validation loss before: {loss:.4f}")
        return loss

    def is_due(self, step: int) -> bool:
        """Return whether anything is measured or drawn after a step."""
        config = self._config
        periods = (config.validate_every_steps, config.grids.every_steps, config.evaluate.every_steps)
        return any(_due(step, period) for period in periods)

    def after(self, step: int) -> None:
        """Measure and draw what is due."""
        with self._averaged():
            if _due(step, self._config.validate_every_steps):
                self._loss(step)
            if _due(step, self._config.grids.every_steps):
                self._draw(step)
            if _due(step, self._config.evaluate.every_steps):
                self._score(step)

    def at_the_end(self, step: int) -> float:
        """Measure and draw everything, and return the loss."""
        with self._averaged():
            loss = self._loss(step)
            self._draw(step)
            self._score(step)
        return loss

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Give the network its averaged weights for a while."""
        with torch.no_grad(), self._engine.weights(self._ema.part):
            self._engine.engine.eval()
            yield
            self._engine.engine.train()

    def _loss(self, step: int) -> float:
        objective = self._objective
        losses = self._validation.losses(
            lambda batch, draws: objective.losses(objective.inputs(batch, draws)), self._engine.world.device
        )
        self._report.metrics(step, losses)
        return losses["val_loss"]

    def _draw(self, step: int) -> None:
        if not self._grid:
            return
        how = self._config.grids.draw
        image = draw_grid(self._painter, self._grid, how, self._engine.world)
        if image is not None:
            save_grid(image, self._grid, how, self._folder, step)
            self._report.picture(step, "grid", image)

    def _score(self, step: int) -> None:
        if self._scorer is None:
            return
        record = self._scorer.scores(self._painter)
        self._report.metrics(step, _numbers(record))
        if self._engine.world.rank == 0:
            append(record, self._folder, step)


def _loss_before(folder: Path) -> float | None:
    record = folder / "run.json"
    return float(json.loads(record.read_text())["val_loss_before"]) if record.exists() else None


def _due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """Return the scores without what they depend on."""
    return {name: record[name] for name in ("fid", "kid", "cmmd", "clip_score") if name in record}
