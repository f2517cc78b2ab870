"""The policy that ranks samples: which of several equal pictures survives.

Resolution first, then technical quality, then caption, then uid. Larger is better in every term
but the last.
"""

from __future__ import annotations

import numpy as np

TERMS = ("resolution", "technical quality", "caption", "uid")


def terms(area_px: np.ndarray, sharpness: np.ndarray, caption_is_fine: np.ndarray, uids: np.ndarray) -> np.ndarray:
    """Return int64 of shape (N, 4), smaller is better, in the order of TERMS.

    Sharpness is compared in tenths, so that rounding noise does not decide.
    """
    by_uid = np.empty(len(uids), np.int64)
    by_uid[np.argsort(uids, kind="stable")] = np.arange(len(uids))
    tenths = np.round(np.nan_to_num(sharpness) * 10).astype(np.int64)
    return np.stack([-area_px.astype(np.int64), -tenths, -caption_is_fine.astype(np.int64), by_uid], axis=1)


def rank(policy: np.ndarray) -> np.ndarray:
    """Return the place of each sample, 0 the best, int64 (N,)."""
    places = np.empty(len(policy), np.int64)
    places[np.lexsort(policy.T[::-1])] = np.arange(len(policy))
    return places


def won_by(policy: np.ndarray, winner: np.ndarray, loser: np.ndarray) -> list[str]:
    """Return the first term by which each winner (a position) is ahead of its loser."""
    differs = policy[winner] != policy[loser]
    return [TERMS[at] for at in differs.argmax(axis=1)]
