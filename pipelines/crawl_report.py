"""What a crawl did, for people and for run.json: a live line, rates, counts by class and by host."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from curate import sample
from pipelines.progress import Progress
from pipelines.store import Root, fragments, table_file

ASKED = pa.schema(
    [
        ("rows", pa.int64()),
        ("ok", pa.int64()),
        ("requests", pa.int64()),
        ("first", pa.timestamp("us", tz="UTC")),
        ("last", pa.timestamp("us", tz="UTC")),
    ]
)
MOST_HOSTS = 100
"""Hosts in run.json, those with the most failures first."""


class Watch:
    """Advances the live line as img2dataset finishes shards."""

    def __init__(self, folder: str, progress: Progress) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(folder, use_listings_cache=False)
        self._progress, self._stop = progress, threading.Event()
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _poll(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        for stats in set(self._fs.glob(f"{self._path}/*_stats.json")) - self._seen:
            self._seen.add(stats)
            self._progress.advance(_count_of(self._fs.cat_file(stats)))


def _count_of(stats: bytes) -> int:
    try:
        return int(json.loads(stats)["count"])
    except json.JSONDecodeError:  # looked at while it is being written
        return 0


def crawl_report(root: Root) -> dict[str, Any]:
    """Return, for run.json, what the requests of all runs so far came to.

    `requests` counts attempts; `rounds` has the rows asked for in each, their rate between first
    and last answer and the share that came in; `hosts` has the rows of each host by status, those
    with the most failures first. A row that was asked for in two rounds counts twice.
    """
    seen: Counter[tuple[str | None, str]] = Counter()
    rounds: dict[str, list[pa.Table]] = {}
    for name in fragments(root, "fetches"):
        rows = root.read_table(table_file("fetches", name), ["host", "status", "requests", "fetched_at"])
        for row in rows.group_by(["host", "status"]).aggregate([([], "count_all")]).to_pylist():
            seen[row["host"], row["status"]] += row["count_all"]
        rounds.setdefault(name.rpartition("-")[2], []).append(_asked(rows))
    by_round = {name: _round(pa.concat_tables(parts)) for name, parts in sorted(rounds.items(), key=round_order)}
    return {
        "rows": seen.total(),
        "requests": sum(said["requests"] for said in by_round.values()),
        "statuses": _statuses(seen),
        "rounds": by_round,
        "hosts": _hosts(seen),
    }


def round_order(item: tuple[str, Any]) -> tuple[int, str]:
    """Return what sorts items by the rounds that they are named after: r100 comes after r99."""
    return len(item[0]), item[0]


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report for people: statuses, the newest round's rate, the hosts with the most failures."""
    statuses = ", ".join(f"{status} {count:,}" for status, count in report["statuses"].items())
    told = [f"crawl: {report['rows']:,} rows, {report['requests']:,} requests ({statuses})"]
    for name, said in list(report["rounds"].items())[-1:]:
        told.append(
            f"crawl: {name}: {said['rows']:,} rows, {said['rows_per_s']:,.0f} rows/s, {said['ok_share']:.1%} ok"
        )
    failing = [(host, counts) for host, counts in report["hosts"].items() if set(counts) - {sample.OK}][:5]
    for host, counts in failing:
        told.append(f"crawl: {host}: " + ", ".join(f"{status} {count:,}" for status, count in counts.items()))
    return told


def _asked(rows: pa.Table) -> pa.Table:
    """Return one row for a fragment: rows asked for, ok, attempts, first and last time."""
    asked = rows.filter(pc.greater(rows["requests"], 0))
    times = pc.min_max(asked["fetched_at"])
    summary = {
        "rows": len(asked),
        "ok": pc.sum(pc.equal(asked["status"], sample.OK)).as_py() or 0,
        "requests": pc.sum(asked["requests"]).as_py() or 0,
        "first": times["min"].as_py(),
        "last": times["max"].as_py(),
    }
    return pa.Table.from_pylist([summary], schema=ASKED)


def _round(parts: pa.Table) -> dict[str, Any]:
    rows, ok, requests = (pc.sum(parts[name]).as_py() for name in ("rows", "ok", "requests"))
    first, last = pc.min(parts["first"]).as_py(), pc.max(parts["last"]).as_py()
    seconds = (last - first).total_seconds() if rows else 0.0
    return {
        "rows": rows,
        "requests": requests,
        "ok_share": round(ok / rows, 4) if rows else 0.0,
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / seconds, 1) if seconds else 0.0,
    }


def _statuses(seen: Counter[tuple[str | None, str]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for (_, status), count in seen.items():
        counts[status] += count
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _hosts(seen: Counter[tuple[str | None, str]]) -> dict[str, dict[str, int]]:
    hosts: dict[str, dict[str, int]] = {}
    for (host, status), count in sorted(seen.items(), key=lambda entry: (-entry[1], entry[0][1])):
        if host is not None:
            hosts.setdefault(host, {})[status] = count
    failures = {host: sum(counts.values()) - counts.get(sample.OK, 0) for host, counts in hosts.items()}
    return {host: hosts[host] for host in sorted(hosts, key=lambda host: (-failures[host], host))[:MOST_HOSTS]}
