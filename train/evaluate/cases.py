"""What is drawn: the captions of a split's samples, or the prompts of a file, each in a bucket of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from curate.bad_input import BadInput
from train.config import TrainConfig
from train.index.reader import Index
from train.micro_conditioning import AESTHETIC_SCORE, time_ids
from train.prompts import prompts_of_file


@dataclass(frozen=True, kw_only=True)
class Case:
    """One picture to draw."""

    number: int
    """Its place; the seed of its noise is counted from it."""
    caption: str
    """Its prompt."""
    bucket_hw: tuple[int, int]
    """Its size in pixels."""
    row: int | None
    """Row of the index with the real picture of the caption; None for a prompt of a file."""

    def time_ids(self, model: str, aesthetic: float = AESTHETIC_SCORE) -> tuple[float, ...]:
        """Return the micro-conditioning of an uncropped picture of this size."""
        return time_ids(model, self.bucket_hw, (0, 0), self.bucket_hw, aesthetic)


def cases_of_samples(index: Index, count: int) -> list[Case]:
    """Return `count` samples from all over the index, or all of them where it has fewer."""
    count = min(count, len(index))
    samples = ((row, index.sample(row)) for row in (number * len(index) // count for number in range(count)))
    return [
        Case(number=number, caption=sample.caption, bucket_hw=sample.bucket_hw, row=row)
        for number, (row, sample) in enumerate(samples)
    ]


def cases_of_prompts(path: str, side_px: int) -> list[Case]:
    """Return the lines of a file as square pictures; raises BadInput where they cannot be read."""
    return [
        Case(number=number, caption=prompt, bucket_hw=(side_px, side_px), row=None)
        for number, prompt in enumerate(prompts_of_file(path, "grids.prompts"))
    ]


def grid_cases(config: TrainConfig, index: Index, factor: int) -> list[Case]:
    """Return what the grids show; the refiner starts from real pictures, so it takes no file of prompts."""
    if config.grids.prompts is None:
        return cases_of_samples(index, config.grids.count)
    if config.model == "refiner":
        raise BadInput("grids.prompts: the refiner's grids start from real pictures; leave it null")
    return cases_of_prompts(config.grids.prompts, config.unet.sample_size * factor)


def batches(cases: Sequence[Case], batch_size: int) -> Iterator[list[Case]]:
    """Yield the cases in batches of one bucket each."""
    for _, of_bucket in groupby(sorted(cases, key=lambda case: case.bucket_hw), key=lambda case: case.bucket_hw):
        alike = list(of_bucket)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]
