"""Pictures of text: how much of what stands out from a plain ground is lines of letters.

Pages, quotes and "no picture" signs have the same perceptual hash whatever they say: their low
frequencies are those of the layout. So they are marked, and not matched by hash.
"""

from __future__ import annotations

import cv2
import numpy as np

from curate.quality import histogram

SIDE_PX = 512
GROUND_LEVELS = 24
"""Grey values this far from the ground's belong to it."""
MIN_GROUND_SHARE = 0.5
MIN_HEIGHT_PX, MAX_HEIGHT_SHARE = 4, 1 / 3
MAX_WIDTH_PER_HEIGHT = 12
"""Letters, and words whose letters touch."""
MAX_LETTERS = 500
"""Of more, the first lines speak for all."""


def text_share(luma_HW: np.ndarray) -> float:
    """Return the share of the ink, by area, that stands in lines of letters, 0..1; 0 without a plain ground.

    Luma is uint8, of any size. The ground is the commonest grey value with what is within GROUND_LEVELS
    of it, where that is half of the picture or more; ink is all else. A connected piece of ink is a letter
    (or a word) by its height and width, and in a line if two others of about its height are beside it.
    """
    counts = histogram(luma_HW)
    ground = int(np.argmax(np.convolve(counts, np.ones(9), "same")))
    if counts[max(0, ground - GROUND_LEVELS) : ground + GROUND_LEVELS + 1].sum() < MIN_GROUND_SHARE * luma_HW.size:
        return 0.0
    luma_HW = _at_512_px(luma_HW)
    ink = (np.abs(luma_HW.astype(np.int16) - ground) > GROUND_LEVELS).astype(np.uint8)
    _, _, pieces, centres = cv2.connectedComponentsWithStats(ink, connectivity=8, ltype=_label_type(ink.shape))
    pieces, middle = pieces[1:], centres[1:, 1]
    total = int(pieces[:, cv2.CC_STAT_AREA].sum())
    height, width = pieces[:, cv2.CC_STAT_HEIGHT], pieces[:, cv2.CC_STAT_WIDTH]
    is_letter = (height >= MIN_HEIGHT_PX) & (height <= MAX_HEIGHT_SHARE * len(luma_HW))
    is_letter &= width <= MAX_WIDTH_PER_HEIGHT * height
    letters = np.flatnonzero(is_letter)
    seen = letters[:MAX_LETTERS]  # they come from top to bottom
    if len(seen) == 0:
        return 0.0
    lined = seen[_in_line(pieces[seen], middle[seen])]
    area = pieces[:, cv2.CC_STAT_AREA]
    share = area[lined].sum() / max(1, area[seen].sum())
    return float(share * area[letters].sum() / total)


def _label_type(shape_HW: tuple[int, ...]) -> int:
    """Return the shortest type that numbers every second pixel of every second row: half the memory, half the time."""
    most = -(-shape_HW[0] // 2) * -(-shape_HW[1] // 2)
    return cv2.CV_16U if most < 65_535 else cv2.CV_32S


def _at_512_px(luma_HW: np.ndarray) -> np.ndarray:
    """Return uint8 luma averaged down to a longer side of 512 px at most: large enough for letters to stand apart."""
    scale = SIDE_PX / max(luma_HW.shape)
    if scale >= 1:
        return luma_HW
    height_px, width_px = (max(1, round(side * scale)) for side in luma_HW.shape)
    return cv2.resize(luma_HW, (width_px, height_px), interpolation=cv2.INTER_AREA)


def _in_line(pieces: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Return which pieces have two others of about their height beside them, bool (P,)."""
    height = pieces[:, cv2.CC_STAT_HEIGHT].astype(np.float32)
    left = pieces[:, cv2.CC_STAT_LEFT].astype(np.float32)
    right = left + pieces[:, cv2.CC_STAT_WIDTH]
    taller = np.maximum(height[:, None], height[None])
    gap = np.maximum(left[:, None], left[None]) - np.minimum(right[:, None], right[None])
    beside = (gap < 4 * taller) & (np.abs(middle[:, None] - middle[None]) < 0.5 * taller)
    beside &= taller < 2.5 * np.minimum(height[:, None], height[None])
    return beside.sum(axis=1) > 2  # itself and two others
