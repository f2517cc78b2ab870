"""Calibration: what each cut-off of a score finds of a labelled sample, as a table, a curve and a proposal."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np

from curate.bad_input import BadInput
from curate.calibration import Point, Share, curve, proposal, spread
from curate.config import CurationConfig
from curate.config.check import require
from pipelines.command import one_line, read_curation
from pipelines.store import Root, fragments, table_file

ABOUT = """Precision and recall of a score by cut-off, with 95 % intervals, from a CSV with the columns uid and label.
Label 1 marks what a high score stands for (unsafe for nsfw_prob, good-looking for aesthetic), 0 the rest."""
LABELS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def calibrate(argv: list[str]) -> None:
    """Run the command."""
    words = [re.sub("^--score(?=$|=)", "--column", word) for word in argv]  # --score is a group of settings
    config, flags = read_curation("score calibrate", ABOUT, words, _flags)
    with one_line("score calibrate", "run it again"):
        require(flags.labels is not None, "--labels", flags.labels, "name a CSV with the columns uid and label")
        require(flags.column is not None, "--score", flags.column, "name a column of the scores table")
        require(0 < flags.recall <= 1, "--recall", flags.recall, "must be above 0 and at most 1")
        labels = read_labels(Path(flags.labels))
        scores, marks, lost = labelled(config, labels, flags.column)
        points = curve(scores, marks)
        print("\n".join(report(points, flags.column, flags.recall, lost)))
        target = Path(flags.plot or f"calibration_{flags.column}.svg")
        draw(points, flags.column, flags.recall, target)
        print(f"curve          {target}")


def read_labels(path: Path) -> dict[str, bool]:
    """Return the label of each uid; raises ValueError naming the line."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"uid", "label"} <= set(rows.fieldnames or ()):
            raise BadInput(f"{path}: needs the columns uid and label, and has {rows.fieldnames}")
        found: dict[str, bool] = {}
        for number, row in enumerate(rows, start=2):
            label = LABELS.get((row["label"] or "").strip().lower())
            if label is None:
                raise BadInput(f"{path}, line {number}: label {row['label']!r}: use 1 or 0")
            if found.setdefault(row["uid"], label) != label:
                raise BadInput(f"{path}, line {number}: uid {row['uid']} has both labels")
    return found


def labelled(config: CurationConfig, labels: dict[str, bool], column: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return scores (N,), labels (N,) and how many labelled samples have no score."""
    import pyarrow as pa
    import pyarrow.compute as pc

    root, wanted = Root(config.root), pa.array(list(labels))
    scores, marks = [], []
    for name in fragments(root, "scores"):
        rows = root.read_table(table_file("scores", name), ["uid", column])
        rows = rows.filter(pc.is_in(rows["uid"], value_set=wanted)).drop_null()
        scores += rows[column].to_pylist()
        marks += [labels[uid] for uid in rows["uid"].to_pylist()]
    if not scores:
        raise BadInput(f"none of the {len(labels)} labelled uids has a {column} under {config.root}")
    return np.array(scores, np.float64), np.array(marks, bool), len(labels) - len(scores)


def report(points: list[Point], column: str, recall: float, lost: int) -> list[str]:
    """Return the table and the proposal as lines."""
    positives = points[0].recall.total
    lines = [f"{column}: {points[-1].found} labelled samples, {positives} of them 1; {lost} labelled without a score"]
    lines.append(f"{'cut-off':>10} {'above':>7}  {'precision (95 %)':<22} {'recall (95 %)':<22}")
    lines += [
        f"{p.cut_off:>10.4f} {p.found:>7}  {_shown(p.precision):<22} {_shown(p.recall):<22}" for p in spread(points, 15)
    ]
    chosen, safe = proposal(points, recall), proposal(points, recall, cautious=True)
    assert chosen is not None  # below all scores, the recall is 1
    lines.append(f"cut-off for recall {recall:g}: {chosen.cut_off:.6g}  {_precision_and_recall(chosen)}")
    if safe is None:
        lines.append(f"no cut-off has recall {recall:g} for certain: {positives} samples with label 1 are too few")
    else:
        lines.append(f"cut-off for recall {recall:g} or more with 97.5 % confidence: {safe.cut_off:.6g}")
    return lines


def draw(points: list[Point], column: str, recall: float, target: Path) -> None:
    """Draw precision and recall by cut-off with their intervals; .svg, .png or .pdf by the file's ending."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    cut_offs = [p.cut_off for p in points]
    for name, colour in (("precision", "tab:blue"), ("recall", "tab:orange")):
        shares: list[Share] = [getattr(p, name) for p in points]
        axes.plot(cut_offs, [share.value for share in shares], color=colour, label=name)
        axes.fill_between(
            cut_offs, [share.low for share in shares], [share.high for share in shares], color=colour, alpha=0.2
        )
    chosen = proposal(points, recall)
    if chosen is not None:
        axes.axvline(chosen.cut_off, color="black", linestyle=":", label=f"recall {recall:g}: {chosen.cut_off:.4g}")
    axes.set(xlabel=f"cut-off of {column} (found: above it)", ylabel="share, with 95 % interval", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def _precision_and_recall(point: Point) -> str:
    return f"precision {_shown(point.precision)}, recall {_shown(point.recall)}"


def _shown(share: Share) -> str:
    return f"{share.value:.3f} ({share.low:.3f}..{share.high:.3f})"


def _flags(parser: Any) -> None:
    parser.add_argument("--labels", type=str, default=None, help="CSV with the columns uid and label (1 or 0)")
    parser.add_argument("--column", type=str, default=None, help="column of the scores table; --score is the same")
    parser.add_argument("--recall", type=float, default=0.95, help="wanted share of label 1 above the cut-off")
    parser.add_argument("--plot", type=str, default=None, help="where the curve goes (calibration_<score>.svg)")
