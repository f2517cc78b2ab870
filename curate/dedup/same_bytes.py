"""Samples with the same bytes: error images, and copies for which one of them stands.

Equal bytes make an equal picture: what is near one copy is near all. So only the best-ranked copy
is compared any further, and what becomes of it becomes of the others. Samples that are ahead (kept
before, or of an evaluation set) survive whatever they equal; that one equals them is set down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate import ranking
from curate.config import DedupConfig
from curate.dedup.relations import first_equal


@dataclass(frozen=True, kw_only=True)
class SameBytes:
    """Which samples need no further comparison; positions among those that were looked at."""

    error: np.ndarray
    """int64 (E,): error images."""
    error_of: np.ndarray
    """int64 (E,): the best-ranked sample with the same bytes, which names their cluster."""
    copy: np.ndarray
    """int64 (C,): copies."""
    copy_of: np.ndarray
    """int64 (C,): the sample that stands for each."""
    lost: np.ndarray
    """int64 (L,): samples that stand for their bytes, though samples ahead have them."""
    lost_to: np.ndarray
    """int64 (L,): the best-ranked sample ahead with the same bytes."""


def sift(came: np.ndarray, config: DedupConfig) -> SameBytes:
    """Return the error images and the copies among records with `sha`, `key`, `uid`, `caption` and `url`.

    An error image is one whose bytes come under too many different captions or URLs. Samples that
    are ahead are neither, and do not count. Captions and URLs are compared by a 32-bit hash.
    """
    rows, group = _repeated(came)
    own = ~ranking.is_ahead(came["key"][rows])
    is_error = own.copy()
    is_error[own] = _is_error(came, rows[own], group[own], config)
    best = rows[np.flatnonzero(np.r_[True, group[1:] != group[:-1]][: len(group)])][group]
    best_own = np.full(len(rows), -1, np.int64)
    best_own[group[own][::-1]] = rows[own][::-1]  # the last to be written is the best
    best_own = best_own[group]
    copy = own & ~is_error & (rows != best_own)
    lost = own & ~is_error & ~copy & (rows != best)
    return SameBytes(
        error=rows[is_error],
        error_of=best_own[is_error],
        copy=rows[copy],
        copy_of=best_own[copy],
        lost=rows[lost],
        lost_to=best[lost],
    )


def _repeated(came: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows whose bytes come more than once, and their group: groups in a row, the best rank first."""
    first = first_equal(list(came["sha"].T))
    rows = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
    by_uid = came["uid"][rows, 1], came["uid"][rows, 0]
    rows = rows[np.lexsort((*by_uid, came["key"][rows], first[rows]))]
    group = np.cumsum(np.r_[False, first[rows][1:] != first[rows][:-1]][: len(rows)])
    return rows, group


def _is_error(came: np.ndarray, rows: np.ndarray, group: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Return which of the rows, groups in a row, are error images, bool (len(rows),)."""
    groups = int(group[-1]) + 1 if len(group) else 0
    least = min(config.error_image_captions, config.error_image_urls)
    enough = np.bincount(group, minlength=groups)[group] >= least
    is_error = np.zeros(groups, bool)
    for name, limit in (("caption", config.error_image_captions), ("url", config.error_image_urls)):
        is_error |= _different(came[name][rows[enough]], group[enough], groups) >= limit
    return is_error[group]


def _different(value: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Return how many different values each group has, int64 (groups,)."""
    order = np.lexsort((value, group))
    value, group = value[order], group[order]
    is_new = np.r_[True, (group[1:] != group[:-1]) | (value[1:] != value[:-1])][: len(value)]
    return np.bincount(group[is_new], minlength=groups)
