#!/usr/bin/env python3
"""The whole curation, step by step; a rerun does only what is missing.

Beside that it tells what it did: --stats the funnel, --explain one sample's story.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.command_line import stop
from curate.commit import git_commit
from curate.config import CurationConfig
from curate.config_file import DEFAULT_FILE, as_dict
from curate.weights import default_weights_dir, known_sha256, registry
from pipelines import stats
from pipelines.command import add_step_flags, line, one_line, read_curation, script
from pipelines.explain import lines as story_lines
from pipelines.explain import story
from pipelines.funnel import funnel
from pipelines.funnel import lines as funnel_lines
from pipelines.runner import Report, Runner, WouldMake, versions
from pipelines.store import Root

STEPS = ("ingest", "captions", "embed", "dedup", "score", "selection", "export", "encode")
"""In the order in which one needs what another makes."""


def main() -> None:
    if "--init" in sys.argv[1:]:
        _init()
        return
    config, flags = read_curation("run", __doc__, sys.argv[1:], _flags)
    with one_line("run"):
        if flags.explain is not None:
            _tell_story(Root(config.root), flags.explain, flags.json)
        elif flags.stats:
            _tell_stats(Root(config.root), flags.json)
        else:
            _run(config, flags)


def run(runner: Runner, steps: Sequence[str] = STEPS) -> list[Report]:
    """Run these steps; write run.json under the root where the last one is among them."""
    from pipelines.preflight import preflight

    preflight(runner.config, steps)
    started, functions = time.monotonic(), flow()
    reports = [report for name in STEPS if name in steps for report in functions[name](runner)]
    if STEPS[-1] in steps and not runner.dry_run:
        runner.root.write_json("run.json", _record(runner, reports, time.monotonic() - started))
    return reports


def flow() -> dict[str, Callable[[Runner], list[Report]]]:
    """Return the steps by name; imported here, since they take seconds that --help and --explain need not wait."""
    from pipelines.captions import captions
    from pipelines.dedup import dedup
    from pipelines.embed import embed
    from pipelines.encode import encode
    from pipelines.export import export
    from pipelines.ingest import ingest
    from pipelines.score import score
    from pipelines.selection import selection

    steps = (ingest, captions, embed, dedup, score, selection, export, encode)
    return dict(zip(STEPS, steps, strict=True))


def models(config: CurationConfig) -> dict[str, str | None]:
    """Return the registered or pinned SHA-256 of each registered model that the settings name."""
    named = [config.embed.clip.weights, *(head.weights for head in config.score.heads), config.encode.vae]
    known = registry()
    return {name: known_sha256(known[name], default_weights_dir()) for name in named if name in known}


def steps_of(only: str | None, first: str | None) -> tuple[str, ...]:
    """Return the steps that the flags ask for."""
    if only is not None:
        return (only,)
    return STEPS[STEPS.index(first) :] if first is not None else STEPS


def _record(runner: Runner, reports: list[Report], seconds: float) -> dict[str, Any]:
    from pipelines import crawl_report

    config = runner.config
    return {
        "config": as_dict(config),
        "funnel": funnel(runner.root),
        "crawl": crawl_report.crawl_report(runner.root) if config.web else None,
        "steps": [as_dict(report) for report in reports],
        "models": models(config),
        "seconds": round(seconds, 3),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _run(config: CurationConfig, flags: Any) -> None:
    """Run the steps and say what they did, or in a dry run what the next one would do."""
    if flags.only is not None and flags.first is not None:
        stop(script("run"), "--only and --from: give one of them")
    steps = steps_of(flags.only, flags.first)
    with Runner(config, dry_run=flags.dry_run) as runner:
        try:
            reports = run(runner, steps)
        except WouldMake as told:
            print(json.dumps(vars(told)) if flags.json else told)
            return
        if flags.json:
            print(json.dumps([as_dict(report) for report in reports]))
        elif flags.dry_run:
            print("nothing to do: every fragment of these steps is there")
        else:
            _tell_run(runner.root, reports, whole=STEPS[-1] in steps)


def _tell_run(root: Root, reports: list[Report], whole: bool) -> None:
    print("\nsteps")
    print("\n".join(line(report) for report in reports))
    if whole:
        print("\nfunnel")
        print("\n".join(funnel_lines(root, funnel(root))))
        print(f"\ntables  {root.url}/tables/\nshards  {root.url}/shards/\nrun     {root.url}/run.json")


def _tell_story(root: Root, uid: str, as_json: bool) -> None:
    told = story(root, uid)
    print(json.dumps(told) if as_json else "\n".join(story_lines(told)))


def _tell_stats(root: Root, as_json: bool) -> None:
    told = stats.stats(root)
    print(json.dumps(told) if as_json else "\n".join(stats.lines(root, told)))


def _flags(parser: Any) -> None:
    parser.add_argument("--init", action="store_true", help=f"write a {DEFAULT_FILE} to start from, and exit")
    parser.add_argument("--only", choices=STEPS, default=None, help="run this step alone")
    parser.add_argument("--from", dest="first", choices=STEPS, default=None, help="run this step and those after it")
    parser.add_argument("--stats", action="store_true", help="print the funnel, of an unfinished run too, and exit")
    parser.add_argument(
        "--explain", type=str, metavar="UID", default=None, help="tell one sample's story; the start of a uid will do"
    )
    add_step_flags(parser)


def _init() -> None:
    """Write a configuration with every place that one must fill in."""
    target = Path(DEFAULT_FILE)
    if target.exists():
        stop(script("run"), f"{DEFAULT_FILE} is already here: edit it, or move it away")
    shutil.copyfile(Path(__file__).with_name("web.yaml"), target)
    print(f"wrote {DEFAULT_FILE}: fill in root and sources, then run python pipelines/run.py")


if __name__ == "__main__":
    main()
