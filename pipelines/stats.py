"""The funnel at any time: of a finished run the exact one, of an unfinished one what is known so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dashboard_server.tables import Readable, readable
from pipelines.funnel import funnel
from pipelines.funnel import lines as funnel_lines
from pipelines.store import Root, table_file

TABLES = ("samples", "captions", "features", "duplicates", "scores", "selection", "shards", "latents")
FINDINGS = {
    "ingest": ("samples", "status"),
    "captions": ("captions", "caption_reason"),
    "embed": ("features", "status"),
    "dedup": ("duplicates", "kind"),
    "score": ("scores", "blocklist_hit"),
}
"""By step: the table and column of what it finds against a sample."""
OF_THE_FUNNEL = ("features", "duplicates", "scores", "selection")
"""Tables that the exact funnel is told from; while one is made anew, an older selection is still there."""
FINE = (None, "ok", False, "eval_set")
"""Values that are nothing against a sample."""


def stats(root: Root) -> dict[str, Any]:
    """Return the rows of each table by state, what each step found, and the funnel where selection is done."""
    found = {table: readable(root, table) for table in TABLES}
    return {
        "root": root.url,
        "tables": {name: {"state": table.state, "rows": _rows(root, table)} for name, table in found.items()},
        "findings": {step: _findings(root, found[table], column) for step, (table, column) in FINDINGS.items()},
        "funnel": funnel(root) if all(found[table].state == "complete" for table in OF_THE_FUNNEL) else None,
    }


def lines(root: Root, told: dict[str, Any]) -> Iterator[str]:
    """Yield the figures for people."""
    yield f"{'table':<14}{'rows':>12}  state"
    for name, table in told["tables"].items():
        yield f"{name:<14}{table['rows']:>12,}  {table['state']}"
    if told["funnel"] is not None:
        yield ""
        yield from funnel_lines(root, told["funnel"])
        return
    yield "\nfindings so far (one sample may have several; the selection step counts each sample once)"
    for step, reasons in told["findings"].items():
        yield from (f"  {step:<10} {reason:<28}{count:>10,}" for reason, count in reasons.items())


def _rows(root: Root, table: Readable) -> int:
    if table.manifest is not None:
        return int(table.manifest["rows"])
    return sum(root.num_rows(table_file(table.name, name)) for name in table.fragments)


def _findings(root: Root, table: Readable, column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in table.fragments:
        values = root.read_table(table_file(table.name, name), [column])[column]
        counts.update(_counted(values, column))
    return dict(sorted(counts.items()))


def _counted(values: pa.ChunkedArray, column: str) -> dict[str, int]:
    """Return the rows of each finding; a hit on a blocklist has no name but its column's."""
    counted = pc.value_counts(values.combine_chunks()).to_pylist()
    return {
        column if one["values"] is True else one["values"]: one["counts"]
        for one in counted
        if one["values"] not in FINE
    }
