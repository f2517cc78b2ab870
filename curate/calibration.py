"""Calibration of a score's cut-off on a labelled sample: precision and recall with their intervals. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.bad_input import BadInput

Z_95 = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of a sample with its 95 % interval."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """hits / total; nan of nothing."""
        return self.hits / self.total if self.total else float("nan")


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a cut-off finds: the samples whose score is above it."""

    cut_off: float
    found: int
    precision: Share
    """Of what is found, the share that is labelled 1."""
    recall: Share
    """Of what is labelled 1, the share that is found."""


def wilson(hits: int, total: int, z: float = Z_95) -> Share:
    """Return a share with its score interval (Wilson, 1927); 0..1 of nothing."""
    if total == 0:
        return Share(hits=0, total=0, low=0.0, high=1.0)
    share, spread = hits / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == total else min(1.0, middle + half)
    return Share(hits=hits, total=total, low=low, high=high)


def curve(scores: np.ndarray, labels: np.ndarray) -> list[Point]:
    """Return what each cut-off finds, from the highest down: between each two neighbouring scores, and below all.

    scores: float (N,), labels: bool (N,), True for what a high score stands for. Raises ValueError for a sample without
    labels of both kinds, or with a score that is not finite.
    """
    if not np.isfinite(scores).all():
        raise BadInput("a labelled sample has a score that is not finite")
    if labels.all() or not labels.any():
        raise BadInput(f"all {len(labels)} labels are {int(labels.all())}: both 0 and 1 are needed")
    distinct = np.unique(scores)[::-1].astype(np.float64)
    below = np.append(distinct[1:], distinct[-1] - max(abs(distinct[-1]), 1.0) * 1e-6)
    points = []
    for cut_off in (distinct + below) / 2:
        above = scores > cut_off
        hits, found = int(labels[above].sum()), int(above.sum())
        recall = wilson(hits, int(labels.sum()))
        points.append(Point(cut_off=float(cut_off), found=found, precision=wilson(hits, found), recall=recall))
    return points


def proposal(points: list[Point], wanted_recall: float, *, cautious: bool = False) -> Point | None:
    """Return the highest cut-off whose recall, or with `cautious` its interval's low end, is the wanted one or more."""
    return next((p for p in points if (p.recall.low if cautious else p.recall.value) >= wanted_recall), None)


def spread(points: list[Point], count: int) -> list[Point]:
    """Return about `count` points of a curve, evenly by what they find."""
    if len(points) <= count:
        return points
    wanted = np.linspace(points[0].found, points[-1].found, count)
    at = np.unique(np.searchsorted([p.found for p in points], wanted).clip(0, len(points) - 1))
    return [points[i] for i in at]
