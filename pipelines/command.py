"""What every curation script shares: settings, one Ray session, one line for what the user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from curate.config import CurationConfig
from curate.config_file import read_settings, stop
from curate.image import UnreadableImage
from curate.weights import MissingWeights, UnknownWeights
from pipelines.runner import Report, Runner
from pipelines.store import MissingTable
from schemas.column import NewerTable

MENDABLE = (MissingTable, NewerTable, MissingWeights, UnknownWeights, FileNotFoundError, PermissionError, ValueError)
"""Errors that are the input's, not the program's: told in one line."""


def curation_section(document: dict[str, Any]) -> dict[str, Any]:
    """Return curation's part of the file: everything but `train`."""
    return {key: value for key, value in document.items() if key != "train"}


def read_curation(
    name: str, description: str | None, argv: Sequence[str], add_flags: Any = None
) -> tuple[CurationConfig, Any]:
    """Return the settings and the command's own flags."""
    return read_settings(
        CurationConfig,
        argv,
        prog=f"pipelines/{name}.py",
        description=description or "",
        section=curation_section,
        add_flags=add_flags,
    )


def run_step(name: str, step: Callable[[Runner], list[Report]], description: str | None) -> None:
    """Run one step as a script of its own."""
    config, _ = read_curation(name, description, sys.argv[1:])
    with told_in_one_line(name), Runner(config) as runner:
        for report in step(runner):
            print(line(report))


def line(report: Report) -> str:
    """Return what a step did, in one line."""
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(report.counts.items()))
    rate = f"{report.rows / report.seconds:,.0f} rows/s" if report.made and report.seconds > 0 else "nothing to do"
    told = f"{report.table:<14} {report.rows:>9,} rows  {report.seconds:6.1f} s  {rate}"
    return f"{told}  ({counts})" if counts else told


class told_in_one_line:
    """Ends the process with code 2 and one line for an error that the user can mend."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            print(f"pipelines/{self._name}.py: stopped; run the same command to go on", file=sys.stderr)
            sys.exit(130)
        cause = error
        while getattr(cause, "cause", None) is not None:  # Ray's wrapping, once for each task on the way
            cause = cause.cause
        if isinstance(cause, MENDABLE) and not isinstance(cause, UnreadableImage):
            stop(f"pipelines/{self._name}.py", str(cause))
