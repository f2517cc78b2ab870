"""The simulated steps as an SVG: one band for each number of GPUs, a lane each for computing, network and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COLOURS = {"forward": "#4477aa", "backward": "#66ccee", "reduce": "#ee6677", "gather": "#aa3377", "read": "#ccbb44"}
LANES = ("compute", "network", "data")
LEFT, WIDTH, LANE, GAP = 150, 800, 12, 16


def svg(by_gpus: dict[int, dict[str, Any]]) -> str:
    """Return the drawing; every band is as wide as the longest step."""
    longest_s = max(step["step_s"] for step in by_gpus.values())
    band = len(LANES) * LANE + GAP
    height = 30 + band * len(by_gpus)
    body = [*_legend()]
    for number, (gpus, step) in enumerate(by_gpus.items()):
        top = 30 + number * band
        body.append(f'<text x="4" y="{top + 22}">{gpus} GPUs, {step["step_s"]:.3f} s</text>')
        body.extend(_band(step, top, longest_s))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 10}" height="{height}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12">', *body, "</svg>\n"])


def _band(step: dict[str, Any], top: int, longest_s: float) -> Iterator[str]:
    for span in step["spans"]:
        x, end = (LEFT + WIDTH * span[name] / longest_s for name in ("start_s", "end_s"))
        y = top + LANES.index(span["lane"]) * LANE
        shape = f'x="{x:.2f}" y="{y}" width="{end - x:.2f}" height="{LANE - 1}" fill="{COLOURS[span["what"]]}"'
        yield f"<rect {shape}/>"


def _legend() -> Iterator[str]:
    for number, (what, colour) in enumerate(COLOURS.items()):
        x = LEFT + 110 * number
        yield f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/><text x="{x + 16}" y="18">{what}</text>'
