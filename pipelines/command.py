"""What every curation script shares: settings, what --help says, one Ray session, how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from curate.command_line import told_in_one_line
from curate.config import CurationConfig
from curate.config_file import as_dict, read_settings
from curate.config_help import About
from pipelines.places import check_places
from pipelines.runner import Report, Runner, WouldMake
from schemas.column import NewerTable

GO_ON = "what is finished is kept: run the same command to go on"

READS_AND_WRITES = {
    "ingest": ("the sources under web and dumps", "raw/*.tar, tables/samples (urls, fetches, listings beside it)"),
    "captions": ("tables/samples", "tables/captions (texts, caption_counts, recaptions beside it)"),
    "embed": ("tables/samples, raw/*.tar", "tables/features"),
    "dedup": ("tables/samples, captions and features", "tables/duplicates"),
    "score": ("tables/samples and features", "tables/scores"),
    "selection": ("tables/samples, captions, features, duplicates and scores", "tables/selection"),
    "export": ("tables/selection and those before it, raw/*.tar", "shards/, tables/shards"),
    "encode": ("shards/, tables/shards", "latents/, tables/latents"),
    "run": ("the sources under web and dumps", "everything under the root: raw/, tables/, shards/, latents/, run.json"),
    "takedown": ("every table", "tables, raw/, shards/ and latents/ without the samples; takedowns.json"),
    "score calibrate": ("a CSV with the columns uid and label, tables/scores", "calibration_<score>.svg"),
    "strips": ("tables/duplicates and samples, raw/*.tar", "a folder of PNG strips"),
}
"""By command, under the root."""

EXAMPLES = {
    "ingest": '--root runs/mine --dumps \'[{"name": "archive", "folder": "pictures"}]\'',
    "captions": "--captions.min_words 3",
    "embed": "--embed.batch_size 128",
    "dedup": "--dedup.radius_bits 3 --dry-run",
    "score": "--score.blocklists_sha256 '[hashes.txt]'",
    "score calibrate": "--labels labels.csv --score nsfw_prob --recall 0.95",
    "selection": "--selection.min_side_px 256 --selection.min_aesthetic 5",
    "export": "--export.resolution_px 512",
    "encode": "--encode.vae sdxl_vae",
    "run": "--config darkroom.yaml --from selection",
    "takedown": "--url https://example.org/a.jpg --with-duplicates --dry-run",
    "strips": "--largest 50 --out strips",
}
SECTIONS = {
    "ingest": ("ingest",),
    "captions": ("captions",),
    "embed": ("embed",),
    "dedup": ("dedup",),
    "score": ("score",),
    "selection": ("selection",),
    "export": ("export",),
    "encode": ("encode",),
}
"""The sections that a command's --help lists in full."""


def curation_section(document: dict[str, Any]) -> dict[str, Any]:
    """Return curation's part of the file: everything but `train`."""
    return {key: value for key, value in document.items() if key != "train"}


def about(name: str) -> About:
    """Return what --help says of a command beside its own words."""
    reads, writes = READS_AND_WRITES[name]
    command = f"python {script(name)}"
    example = f"{command} {EXAMPLES[name]}"
    return About(command=command, example=example, reads=reads, writes=writes, sections=SECTIONS.get(name, ()))


def script(name: str) -> str:
    """Return a command as it is typed: a script, and for some a word behind it."""
    file, *word = name.split(" ")
    return " ".join([f"pipelines/{file}.py", *word])


def read_curation(
    name: str, description: str | None, argv: Sequence[str], add_flags: Any = None
) -> tuple[CurationConfig, Any]:
    """Return the settings and the command's own flags; ends the process with one line for a root of no use."""
    config, flags = read_settings(
        CurationConfig,
        argv,
        prog=script(name),
        description=description or "",
        section=curation_section,
        add_flags=add_flags,
        about=about(name),
    )
    with one_line(name):
        check_places(config)
    return config, flags


def run_step(name: str, step: Callable[[Runner], list[Report]], description: str | None) -> None:
    """Run one step as a script of its own, or say what it would make."""
    config, flags = read_curation(name, description, sys.argv[1:], add_step_flags)
    with one_line(name), Runner(config, dry_run=flags.dry_run) as runner:
        try:
            reports = step(runner)
        except WouldMake as told:
            print(json.dumps(vars(told)) if flags.json else told)
            return
        print(json.dumps([as_dict(report) for report in reports]) if flags.json else "\n".join(map(line, reports)))


def add_step_flags(parser: Any) -> None:
    """Add the flags that every step has."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and make nothing")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON on stdout")


def line(report: Report) -> str:
    """Return what a step did, in one line."""
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(report.counts.items()))
    rate = f"{report.rows / report.seconds:,.0f} rows/s" if report.made and report.seconds > 0 else "nothing to do"
    told = f"{report.table:<14} {report.rows:>9,} rows  {report.seconds:6.1f} s  {rate}"
    return f"{told}  ({counts})" if counts else told


def one_line(name: str, go_on: str = GO_ON) -> told_in_one_line:
    """Return the context in which a script's bad input and Ctrl-C become one line."""
    return told_in_one_line(script(name), go_on, also=(NewerTable,))
