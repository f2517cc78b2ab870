#!/usr/bin/env python3
"""The whole curation, step by step; a rerun does only what is missing."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.config_file import DEFAULT_FILE, as_dict, stop
from pipelines import crawl_report
from pipelines.captions import captions
from pipelines.command import line, read_curation, told_in_one_line
from pipelines.dedup import dedup
from pipelines.embed import embed
from pipelines.encode import encode
from pipelines.export import export
from pipelines.funnel import funnel, lines
from pipelines.ingest import ingest
from pipelines.preflight import preflight
from pipelines.runner import Report, Runner, git_commit, versions
from pipelines.score import score
from pipelines.selection import selection

FLOW = (ingest, captions, embed, dedup, score, selection, export, encode)
"""In the order in which one needs what another makes."""


def run(runner: Runner) -> list[Report]:
    """Run every step and write run.json under the root."""
    config = runner.config
    preflight(config)
    started = time.monotonic()
    reports = [report for step in FLOW for report in step(runner)]
    found = funnel(runner.root)
    runner.root.write_json(
        "run.json",
        {
            "config": as_dict(config),
            "funnel": found,
            "crawl": crawl_report.crawl_report(runner.root) if config.web else None,
            "steps": [as_dict(report) for report in reports],
            "seconds": round(time.monotonic() - started, 3),
            "versions": versions(),
            "git_commit": git_commit(),
        },
    )
    return reports


def main() -> None:
    if "--init" in sys.argv[1:]:
        _init()
        return
    config, _ = read_curation("run", __doc__, sys.argv[1:], _flags)
    with told_in_one_line("run"), Runner(config) as runner:
        reports = run(runner)
        print("\nsteps")
        print("\n".join(line(report) for report in reports))
        print("\nfunnel")
        print("\n".join(lines(runner.root, funnel(runner.root))))
        print(f"\ntables  {config.root}/tables/\nshards  {config.root}/shards/\nrun     {config.root}/run.json")


def _flags(parser) -> None:  # noqa: ANN001 - jsonargparse's parser
    parser.add_argument("--init", action="store_true", help=f"write a {DEFAULT_FILE} to start from, and exit")


def _init() -> None:
    """Write a configuration with every place that one must fill in."""
    target = Path(DEFAULT_FILE)
    if target.exists():
        stop("pipelines/run.py", f"{DEFAULT_FILE} is already here: edit it, or move it away")
    shutil.copyfile(Path(__file__).with_name("web.yaml"), target)
    print(f"wrote {DEFAULT_FILE}: fill in root and sources, then run python pipelines/run.py")


if __name__ == "__main__":
    main()
