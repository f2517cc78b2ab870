"""Where lists of samples are cut: the rows of one picture stay together, so that its captions meet in one fragment."""

from __future__ import annotations

from collections.abc import Sequence


def chunk_end(pictures: Sequence[str | None], most: int) -> int:
    """Return where the first chunk of rows ends, given the picture of each; rows of one picture follow each other.

    A chunk has at most `most` rows and ends inside a picture only where that picture has more. None is no picture.
    """
    if len(pictures) <= most:
        return len(pictures)
    end = most
    while end > 0 and pictures[end] is not None and pictures[end] == pictures[end - 1]:
        end -= 1
    return end or most
