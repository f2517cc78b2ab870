"""Labels by hand: what to look at next, the CSV that calibration reads, and how the labels agree with the score."""

from __future__ import annotations

import csv
import io
from threading import Lock
from typing import Any

from curate.bad_input import BadInput
from pipelines.dashboard_server.browse import tiles
from pipelines.dashboard_server.cut_off_list import limits
from pipelines.dashboard_server.filters import SHOWN, one_of
from pipelines.dashboard_server.index import Index

FOLDER = "labels"
GOOD, BAD = "good", "bad"
CURVE_BINS = 10


class Labels:
    """The labels of each score, in one CSV a score with the columns uid and label.

    1 marks what a high score stands for, as calibration reads it: good, or bad where lower scores are better.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = Lock()

    def file(self, score: str) -> str:
        """Return the CSV's place below the root."""
        return f"{FOLDER}/{one_of('score', score, self._index.numbers)}.csv"

    def read(self, score: str) -> dict[str, str]:
        """Return the labels by uid; raises ValueError for a file with other columns."""
        name = self.file(score)
        if not self._index.root.exists(name):
            return {}
        rows = csv.DictReader(io.StringIO(self._index.root.read(name).decode()))
        if rows.fieldnames != ["uid", "label"]:
            raise BadInput(f"{name}: has columns {rows.fieldnames}: must be uid,label")
        return {row["uid"]: row["label"] for row in rows}

    def write(self, score: str, uid: str, label: str | None) -> int:
        """Set one label, or take it back; returns how many there are. Raises ValueError and LookupError."""
        if label is not None:
            one_of("label", label, (GOOD, BAD))
        if not uid.isascii() or not self._index.rows(f"SELECT 1 FROM board WHERE uid = ? AND {SHOWN} LIMIT 1", [uid]):
            raise LookupError(uid)
        with self._lock:
            labels = self.read(score)
            labels.pop(uid, None)
            if label is not None:
                labels[uid] = self._mark(score, label)
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerows([("uid", "label"), *labels.items()])
            self._index.root.write(self.file(score), buffer.getvalue().encode())
        return len(labels)

    def queue(self, score: str, count: int) -> dict[str, Any]:
        """Return the samples without a label, the nearest to the cut-off (or to the median without one) first."""
        labels = self.read(score)
        middle = self._middle(score)
        found = self._index.rows(
            f"""SELECT number, uid, "{score}" FROM board
            WHERE {SHOWN} AND shard IS NOT NULL AND "{score}" IS NOT NULL AND meets_cut_offs
            ORDER BY abs("{score}" - ?), number LIMIT ?""",
            [middle, count + len(labels)],
        )
        values = {number: value for number, uid, value in found if uid not in labels}
        listed = [tile | {"value": values[tile["number"]]} for tile in tiles(self._index, list(values)[:count])]
        return {"tiles": listed, "labelled": len(labels), "around": middle, "file": self.file(score)}

    def curve(self, score: str) -> dict[str, Any]:
        """Return, for tenths of the labelled samples by score, the mean score and the share that is good."""
        labels, good = self.read(score), self._mark(score, GOOD)
        marks = ", ".join("?" * len(labels))
        found = (
            self._index.rows(
                f'SELECT "{score}", uid FROM board WHERE uid IN ({marks}) AND "{score}" IS NOT NULL', list(labels)
            )
            if labels
            else []
        )
        pairs = sorted((value, labels[uid] == good) for value, uid in found)
        bins = min(CURVE_BINS, len(pairs))
        points = []
        for place in range(bins):
            part = pairs[place * len(pairs) // bins : (place + 1) * len(pairs) // bins]
            mean = sum(value for value, _ in part) / len(part)
            points.append({"score": mean, "good": sum(good for _, good in part) / len(part), "labels": len(part)})
        return {"score": score, "labels": len(pairs), "points": points}

    def _mark(self, score: str, label: str) -> str:
        high_is = BAD if self._index.numbers[score].direction.startswith("lower") else GOOD
        return "1" if label == high_is else "0"

    def _middle(self, score: str) -> float:
        self.file(score)
        for limit in limits(self._index.settings):
            if limit.column == score and limit.value is not None:
                return float(limit.value)
        found = self._index.rows(f'SELECT approx_quantile("{score}", 0.5) FROM board WHERE meets_cut_offs')[0][0]
        return 0.0 if found is None else float(found)
