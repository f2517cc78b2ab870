"""Training runs below a root: records, grids, and the points added to metrics.jsonl since the last question."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pipelines.store import Root

METRICS = "metrics.jsonl"
GRID = re.compile(r"step-(\d{8})\.png$")
MOST_BYTES = 4 << 20
"""Read at a time; what is longer comes with the next question."""


def runs(root: Root) -> list[dict[str, Any]]:
    """Return the runs with metrics, each with what its run.json says of it."""
    found = []
    for path in root.glob(f"train/*/{METRICS}"):
        name = path.rsplit("/", 2)[-2]
        said = root.read_json(f"train/{name}/run.json") or {}
        config = said.get("config") or {}
        kept = ("val_loss_before", "val_loss_after", "steps_done", "seconds", "world_size", "device", "samples")
        record = {key: said[key] for key in kept if key in said}
        record |= {"steps": config.get("steps"), "global_batch": (config.get("batch") or {}).get("global_batch")}
        untrained = said.get("text_towers_untrained")
        found.append({"run": name, "record": record, "text_towers_untrained": untrained, "grids": grids(root, name)})
    return sorted(found, key=lambda run: run["run"])


def grids(root: Root, run: str) -> list[int]:
    """Return the steps whose grids there are, in order."""
    found = (GRID.search(path) for path in root.glob(f"train/{run}/grids/step-*.png"))
    return sorted(int(match.group(1)) for match in found if match)


def grid_path(root: Root, run: str, step: int) -> str:
    """Return where a grid lies, below the root; raises LookupError where there is no such run or grid."""
    if run not in {found["run"] for found in runs(root)} or step not in grids(root, run):
        raise LookupError(f"{run}, step {step}")
    return f"train/{run}/grids/step-{step:08d}.png"


def points(root: Root, run: str, since_byte: int) -> dict[str, Any]:
    """Return the whole lines from a byte on, as series by name, and the byte to ask from next; raises LookupError."""
    if run not in {found["run"] for found in runs(root)}:
        raise LookupError(run)
    name = f"train/{run}/{METRICS}"
    size = root.size(name) or 0
    since_byte = since_byte if since_byte <= size else 0
    if since_byte == size:
        return {"run": run, "from": since_byte, "next": since_byte, "series": {}}
    data = root.read(name, since_byte, min(size - since_byte, MOST_BYTES))
    ends = data.rfind(b"\n") + 1
    series: dict[str, list[list[float | None]]] = {}
    for line in data[:ends].splitlines():
        record = json.loads(line)
        for key, value in record.items():
            for label, number in _numbers(key, value):
                series.setdefault(label, []).append([record["step"], number if math.isfinite(number) else None])
    return {"run": run, "from": since_byte, "next": since_byte + ends, "series": series}


def _numbers(key: str, value: Any) -> list[tuple[str, float]]:
    """Return a record's entry as named numbers; a list, as of validation by timestep bin, has one for each place."""
    if key in ("step", "time") or isinstance(value, (str, bool)) or value is None:
        return []
    if isinstance(value, list):
        return [(f"{key}[{at}]", float(one)) for at, one in enumerate(value) if isinstance(one, (int, float))]
    if isinstance(value, dict):
        return [(f"{key}.{name}", float(one)) for name, one in value.items() if isinstance(one, (int, float))]
    return [(key, float(value))]
