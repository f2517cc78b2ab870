"""The list of samples that must stay away, under the root; every step that could bring one back asks it."""

from __future__ import annotations

from curate.takedown import TakenDown
from pipelines.store import Root

FILE = "takedowns.json"


def read_taken_down(root: Root) -> TakenDown:
    """Return the list; an empty one where nothing was taken down."""
    said = root.read_json(FILE) or {}
    return TakenDown(**{name: frozenset(values) for name, values in said.items()})


def write_taken_down(root: Root, taken_down: TakenDown) -> None:
    root.write_json(FILE, {name: sorted(values) for name, values in vars(taken_down).items()})
