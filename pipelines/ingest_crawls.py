"""Ingest of crawls: URL lists are cut into chunks, img2dataset downloads them in rounds, no listed row is lost."""

from __future__ import annotations

import glob
import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from curate import sample
from curate.bad_input import BadInput
from curate.config import CurationConfig, IngestConfig, WebSource
from curate.config_file import as_dict
from curate.crawl import download, lists
from curate.crawl.limits import Limits
from curate.crawl.retry import Tried, next_run_at_s
from pipelines.crawl_report import Watch, round_order
from pipelines.progress import Progress
from pipelines.runner import Fragment, Made, Report, Runner, Shared, Step, WouldMake, say
from pipelines.store import Root, digest, fragments, parquet_bytes, scratch_file, table_file
from pipelines.taken_down import read_taken_down
from schemas import samples, urls

FETCH_SETTINGS = ("user_agent_token", "consent", "opt_out_directives")
"""Settings whose change asks for everything again; the others hold for later requests."""
LISTED = ("url", "caption", "license", "extra")
DOWNLOADS = "raw/download"
NOT_ASKED = (sample.MISSING_URL, sample.LICENSE_REFUSED, sample.NOT_REQUESTED)


class CrawlStopped(BadInput):
    """The alarm went off: what came in is kept, the rest is asked for by the next run."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A chunk of a crawl and the rounds of requests that were made for it."""

    source: str
    name: str
    content: str
    """Digest of its rows: a list that is written again as it was asks for nothing."""
    rounds: int = 0

    def fetches(self, number: int) -> Fragment:
        name = f"{self.name}-r{number:02d}"
        return Fragment(name=name, made_from=[self.content, number], arguments=(self.source, self.name, number))


def url_step(config: CurationConfig) -> Step:
    return Step(table="urls", settings=[config.ingest.rows_per_shard], build=_build_urls)


def url_fragment(source: WebSource) -> Fragment:
    files = lists.list_files(source)
    fs, _ = fsspec.core.url_to_fs(files[0])
    made_from = [
        urls.VERSION,
        asdict(replace(source, evaluation=False)),
        {file: str(fs.ukey(fs._strip_protocol(file))) for file in files},
    ]
    return Fragment(name=source.name, made_from=made_from, arguments=(source, files))


def _build_urls(config: CurationConfig) -> Any:
    def split(source: WebSource, files: list[str]) -> Made:
        chunks, written = [], {}
        taken_down = read_taken_down(Root(config.root))
        for number, rows in enumerate(lists.read_lists(source, files, config.ingest.rows_per_shard)):
            content = digest(rows.to_pylist())
            rows = rows.filter(pa.array(~taken_down.rows(rows)))
            name = f"{source.name}-{number:05d}"
            path = scratch_file(".parquet")
            path.write_bytes(parquet_bytes(rows))
            written[_list_file(name)] = path
            chunks.append({"source": source.name, "chunk": name, "rows": len(rows), "content": content})
        return Made(rows=pa.Table.from_pylist(chunks, schema=urls.SCHEMA), files=written)

    return split


def fetch_crawls(runner: Runner, step: Step) -> tuple[Report, list[Fragment]]:
    """Ask for what is not there and for what failed and is due; return the report and the samples' fragments.

    Raises CrawlStopped, after what came in is kept, where the alarm went off.
    """
    listed = {source.name for source in runner.config.web}  # in a dry run, the table may know of others
    chunks = [_with_rounds(runner, step, chunk) for chunk in _chunks(runner.root) if chunk.source in listed]
    now_s = time.time()
    due = {chunk: len(rows) for chunk in chunks if (rows := _due(runner, chunk, now_s)) is not None}
    if any(due.values()) and glob.has_magic(runner.root.path("")):
        told = "img2dataset takes *, ? and [ for a pattern: to crawl, choose a folder without them"
        raise BadInput(f"root = {runner.root.url}: {told}")
    if runner.dry_run and due:
        raise WouldMake(step.table, len(due), len(chunks))
    stems, alarms = _download(runner, step, due, now_s)
    wanted = [chunk.fetches(number) for chunk in chunks for number in range(chunk.rounds + (chunk in due))]
    wanted = [replace(f, arguments=(*f.arguments, stems.get(f.name))) for f in wanted]
    report = runner.run(step, sorted(wanted, key=lambda fragment: fragment.name))
    if not runner.dry_run:
        runner.root.remove(DOWNLOADS, recursive=True)
    if alarms:
        raise CrawlStopped(
            f"{alarms[0]}: the crawl was stopped, what came in is kept. Check the network and the lists, then run the"
            f" same command; ingest.alarm_share = {runner.config.ingest.alarm_share} is the limit (null: none)"
        )
    rounds: dict[str, dict[str, str]] = {}
    for name, receipt in sorted(fragments(runner.root, "fetches").items(), key=round_order):
        rounds.setdefault(name.rpartition("-r")[0], {})[name] = receipt
    return report, [_samples_fragment(runner.config, chunk, rounds[chunk.name]) for chunk in chunks]


def _chunks(root: Root) -> Iterator[Chunk]:
    for source in fragments(root, "urls"):
        for row in root.read_table(table_file("urls", source)).to_pylist():
            yield Chunk(source=source, name=row["chunk"], content=row["content"])


def _with_rounds(runner: Runner, step: Step, chunk: Chunk) -> Chunk:
    while not runner.missing(step, [chunk.fetches(chunk.rounds)]):
        chunk = replace(chunk, rounds=chunk.rounds + 1)
    return chunk


def _samples_fragment(config: CurationConfig, chunk: Chunk, rounds: dict[str, str]) -> Fragment:
    """Return the fragment that the chunk's rounds, by name with their receipts, make."""
    made_from = [chunk.content, list(rounds.values()), config.ingest.allowed_licenses]
    return Fragment(name=chunk.name, made_from=made_from, arguments=("web", chunk.source, chunk.name, list(rounds)))


def _due(runner: Runner, chunk: Chunk, now_s: float) -> pa.Table | None:
    """Return the rows (uid, url) to ask for in this run; None for no round. A first round may ask for none."""
    settings = runner.config.ingest
    open_uids = _open(runner.root, chunk, settings, now_s) if chunk.rounds else None
    if open_uids is not None and not open_uids:
        return None
    listed = runner.root.read_table(_list_file(chunk.name), ["uid", "url", "license"])
    asked = [
        bool(row["url"]) and _license_ok(row["license"], settings) and (open_uids is None or row["uid"] in open_uids)
        for row in listed.to_pylist()
    ]
    due = listed.select(["uid", "url"]).filter(pa.array(asked, pa.bool_()))
    return due if len(due) or open_uids is None else None


def _open(root: Root, chunk: Chunk, settings: IngestConfig, now_s: float) -> set[str]:
    """Return the uids that may be asked for again by now, and those whose licence was not allowed so far."""
    tried = _tried(root, [chunk.fetches(number).name for number in range(chunk.rounds)])
    policies = {policy.status: policy for policy in settings.retry}
    times = {uid: next_run_at_s(row, policies) for uid, row in tried.items()}
    due = {uid for uid, at_s in times.items() if at_s is not None and at_s <= now_s}
    return due | {uid for uid, row in tried.items() if row.status == sample.LICENSE_REFUSED}


def _license_ok(said: str | None, settings: IngestConfig) -> bool:
    allowed = settings.allowed_licenses
    return allowed is None or (said or "").strip().lower() in {name.strip().lower() for name in allowed}


def _tried(root: Root, rounds: list[str]) -> dict[str, Tried]:
    """Return what is known of each row after these rounds."""
    found: dict[str, Tried] = {}
    for name in rounds:
        table = root.read_table(
            table_file("fetches", name), ["uid", "status", "counted", "requests", "fetched_at", "retry_after_s"]
        )
        for row in table.to_pylist():
            before = found[row["uid"]].runs if row["uid"] in found else 0
            found[row["uid"]] = Tried(
                status=row["status"],
                runs=before + (row["counted"] and row["requests"] > 0),
                counted=row["counted"],
                fetched_at_s=row["fetched_at"].timestamp() if row["fetched_at"] else 0.0,
                retry_after_s=row["retry_after_s"],
            )
    return found


def _download(runner: Runner, step: Step, due: dict[Chunk, int], now_s: float) -> tuple[dict[str, str], list[str]]:
    """Download the next round of chunks with rows that are due, unless an interrupted run of the same list has.

    Returns the shards by the rounds' names, and what alarms said.
    """
    stems: dict[str, str] = {}
    alarms = []
    for source in sorted({chunk.source for chunk in due}):
        folder = runner.root.fs.unstrip_protocol(runner.root.path(_download_folder(source)))
        wanted = {_asked_as(step, c): c for c, num_rows in due.items() if c.source == source and num_rows}
        download.discard_cut_off(folder)
        if left := {name: wanted[name] for name in sorted(wanted.keys() - download.finished(folder).keys())}:
            with runner.shared(Limits, "exchange", runner.config.ingest.requests_per_host) as limits:
                alarms += _ask(runner, source, left, now_s, limits)
        found = download.finished(folder)
        if lost := sorted(wanted.keys() - found.keys()):
            raise RuntimeError(f"img2dataset did not finish shard {lost[0]}: run the command again")
        stems |= {chunk.fetches(chunk.rounds).name: found[name] for name, chunk in wanted.items()}
    return stems, alarms


def _asked_as(step: Step, chunk: Chunk) -> str:
    """Return a name for the chunk's next round that another list, or other settings, do not share."""
    round_ = chunk.fetches(chunk.rounds)
    return f"{round_.name}-{digest([round_.made_from, as_dict(step.settings)])}"


def _ask(runner: Runner, source: str, rounds: dict[str, Chunk], now_s: float, limits: Shared) -> list[str]:
    """Download the rounds; their rows are read anew, one chunk at a time, as all of them may not fit in memory."""
    work = f"{_download_folder(source)}/{digest(sorted(rounds))}"
    count = 0
    for name, chunk in rounds.items():
        rows = _due(runner, chunk, now_s)
        assert rows is not None
        named = rows.append_column("chunk", pa.array([name] * len(rows), pa.string()))
        runner.root.write(f"{work}-lists/{name}.parquet", parquet_bytes(named))
        count += len(rows)
    runner.root.remove(f"{work}-alarm.txt")
    folder = runner.root.fs.unstrip_protocol(runner.root.path(work))
    log = Path(tempfile.gettempdir()) / f"darkroom-img2dataset-{source}.log"
    say(f"download {source}: {count:,} rows in {len(rounds)} shards; img2dataset's own output is in {log}")
    with Progress(f"download {source}", len(rounds), 0) as progress, Watch(folder, progress):
        download.download(f"{folder}-lists", folder, runner.config.ingest, limits, log)
    said = download.alarm(folder)
    return [] if said is None else [f"crawl {source}: {said}"]


def fetched(
    root: Root, settings: IngestConfig, chunk: str, number: int, stem: str | None
) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Yield every row of a round with its bytes, or with the status of what went wrong; a first round has all rows."""
    outcomes, images = download.read_download(root.fs, stem) if stem else ({}, iter(()))
    listed = {row["uid"]: row for row in root.read_table(_list_file(chunk)).to_pylist()}
    left = set(listed if number == 0 else listed.keys() & outcomes.keys())
    for uid, data in images:
        if uid not in listed:
            continue  # taken down since it was asked for
        left.discard(uid)
        row = outcomes[uid] | _wrong_bytes(data, outcomes[uid]["downloaded_sha256"], listed[uid]["sha256"])
        yield row, None if row["status"] != sample.OK else data
    for uid in sorted(left):
        yield outcomes.get(uid, {}) | _unfetched(uid, outcomes.get(uid), listed[uid], settings), None


def _wrong_bytes(data: bytes, recorded: str, listed: str | None) -> dict[str, Any]:
    found = hashlib.sha256(data).hexdigest()
    if found != recorded:
        return {"status": sample.DOWNLOAD_ERROR, "error": "bytes differ from the recorded sha256"}
    if listed is not None and found != listed:
        return {"status": sample.HASH_MISMATCH, "error": "bytes differ from the list's sha256", "sha256": found}
    return {"sha256": found}


def _unfetched(
    uid: str, outcome: dict[str, Any] | None, listing: dict[str, Any], settings: IngestConfig
) -> dict[str, Any]:
    """Return what is to say of a row without bytes."""
    if outcome is not None and outcome["status"] != sample.OK:
        return {}
    said = {"uid": uid, "requests": 0 if outcome is None else outcome["requests"], "counted": True}
    if not listing["url"]:
        return said | {"status": sample.MISSING_URL, "error": "the list has no URL"}
    if not _license_ok(listing["license"], settings):
        return said | {"status": sample.LICENSE_REFUSED, "error": "not in ingest.allowed_licenses"}
    return said | {"status": sample.DOWNLOAD_ERROR, "error": "the downloader gave no result", "requests": 1}


def crawled(root: Root, settings: IngestConfig, source: str, chunk: str, rounds: list[str]) -> Made:
    """Return the samples of a chunk: each listed row with the outcome of the last round that dealt with it."""
    latest: dict[str, dict[str, Any]] = {}
    for name in rounds:
        for row in root.read_table(table_file("fetches", name)).to_pylist():
            asked = row["status"] not in NOT_ASKED
            row["runs"] = (latest[row["uid"]]["runs"] if row["uid"] in latest else 0) + asked
            latest[row["uid"]] = row
    rows = []
    for listing in root.read_table(_list_file(chunk)).to_pylist():
        row = latest[listing["uid"]] | {"source": source} | {name: listing[name] for name in LISTED}
        if listing["url"] and not _license_ok(listing["license"], settings):
            row |= {"status": sample.LICENSE_REFUSED, "error": "not in ingest.allowed_licenses", "shard": None}
        rows.append(row)
    rows.sort(key=lambda row: row["uid"])
    table = pa.Table.from_pylist(rows, schema=samples.SCHEMA)
    return Made(rows=table, counts=counts_of(rows))


def counts_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of rows with each status."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return counts


def _list_file(chunk: str) -> str:
    return f"raw/urls/{chunk}.parquet"


def _download_folder(source: str) -> str:
    return f"{DOWNLOADS}/{source}"
