"""Settings: what comes in, from crawls and dumps, and how the hosts are treated."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from math import inf
from typing import Literal

from curate.config.check import require


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """A crawl: lists of URLs with captions."""

    name: str
    """Name of the source, part of every uid."""
    url_list: str
    """File or glob (fsspec URL) of parquet, CSV, TSV or JSONL lists."""
    column_names: tuple[str, ...] = ()
    """Names of the columns in CSV and TSV lists without a header line."""
    url_column: str = "url"
    """Column with the image URL."""
    caption_column: str = "caption"
    """Column with the caption."""
    license_column: str | None = None
    """Column with the licence, where there is one."""
    sha256_column: str | None = None
    """Column with the SHA-256 (hex) that the image had when it was listed; other bytes are refused."""
    extra_columns: tuple[str, ...] = ()
    """Columns that are kept as they are, together as one JSON object in `extra` of the samples table."""
    evaluation: bool = False
    """Keep it out of training, and with it every picture near one of its own."""


CONSENT_SIGNALS = ("robots_txt", "robots_usage", "tdmrep", "x_robots_tag", "tdm_header", "content_usage", "c2pa")


RETRIED = (
    "dns",
    "timeout",
    "deadline",
    "connection",
    "tls",
    "http_refused",
    "http_busy",
    "http_server_error",
    "host_paused",
    "opt_out_unknown",
    "download_error",
)
"""Classes of failure that may pass; the others stay as they are."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Whether, how often and when a class of failed requests is made again."""

    status: str
    """Class of failure, as in the samples table."""
    runs: int = 3
    """Runs in which a row may be asked, the first one counted."""
    wait_s: float = 1.0
    """Pause before the next attempt in the same run; twice as long each time."""
    next_run_after_s: float = 3600.0
    """Pause before the next run asks again; four times as long each time."""

    def __post_init__(self) -> None:
        require(self.status in RETRIED, "ingest.retry.status", self.status, f"use one of {', '.join(RETRIED)}")
        require(self.runs > 0, f"ingest.retry[{self.status}].runs", self.runs, "must be at least 1")
        require(self.wait_s >= 0, f"ingest.retry[{self.status}].wait_s", self.wait_s, "must be 0 or more")
        pause_ok = self.next_run_after_s >= 0
        require(pause_ok, f"ingest.retry[{self.status}].next_run_after_s", self.next_run_after_s, "must be 0 or more")


RETRIES = (
    RetryPolicy(status="dns", runs=2, next_run_after_s=86_400),
    RetryPolicy(status="timeout"),
    RetryPolicy(status="deadline", runs=2),
    RetryPolicy(status="connection"),
    RetryPolicy(status="tls", runs=2, next_run_after_s=86_400),
    RetryPolicy(status="http_busy", runs=5, wait_s=2),
    RetryPolicy(status="http_server_error"),
    RetryPolicy(status="host_paused", runs=5),
    RetryPolicy(status="opt_out_unknown"),
    RetryPolicy(status="download_error"),
)
"""What may pass is asked again; names that do not resolve and broken certificates more rarely, refusals (403) never."""


@dataclass(frozen=True, kw_only=True)
class DumpSource:
    """Images that one already has, with captions: a folder, archives, or tables."""

    name: str
    """Name of the source, part of every uid."""
    folder: str
    """Folder that is searched for images, archives or tables, or one such file (fsspec URL)."""
    kind: Literal["folder", "imagefolder", "tar", "zip", "parquet", "arrow"] | None = None
    """What the folder holds: images, images with metadata files (Hugging Face), tars (WebDataset), zips, parquet or
    arrow files (Hugging Face's save_to_disk); null finds out."""
    captions: str | None = None
    """JSONL, CSV or parquet file with captions inside the folder, or inside each archive; null reads sidecars."""
    sidecar: Literal["txt", "json"] | None = None
    """Ending of the caption beside each image; null reads the .txt, or the .json where there is no .txt."""
    file_column: str = "file_name"
    """Column of the captions file with the image's path inside the folder or archive."""
    image_column: str | None = None
    """Column of a parquet or arrow file with the image's bytes; null takes the only one that can be."""
    caption_column: str | None = "caption"
    """Column (or field of a .json) with the caption; a list keeps its first entry. null: a table without captions."""
    license_column: str | None = None
    """Column (or field of a .json) with the licence, where there is one."""
    license: str | None = None
    """Licence of every image that has none in license_column."""
    max_file_mb: int = 256
    """Larger images are a status, and are not read."""
    evaluation: bool = False
    """Keep it out of training, and with it every picture near one of its own."""

    def __post_init__(self) -> None:
        where = f"dumps.{self.name}"
        require(self.max_file_mb > 0, f"{where}.max_file_mb", self.max_file_mb, "must be at least 1")
        in_rows = self.kind in ("parquet", "arrow")
        require(not (in_rows and self.captions), f"{where}.captions", self.captions, "a table has its own captions")
        needs_column = self.captions is not None or self.sidecar == "json" or self.kind == "imagefolder"
        named = self.caption_column is not None or not needs_column
        require(named, f"{where}.caption_column", self.caption_column, "name the column with the caption")
        both = self.captions is not None and self.sidecar is not None
        require(not both, f"{where}.sidecar", self.sidecar, "captions come from the captions file: set one of the two")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How images come in."""

    rows_per_shard: int = 10_000
    """Rows for each raw shard, the unit of work and of repair."""
    download_threads: int = 64
    """Concurrent downloads for each shard."""
    timeout_s: float = 10
    """Time limit of a connection or of a silent read."""
    deadline_s: float = 60
    """Time limit of a whole download with its redirects, pauses not counted."""
    retries: int = 1
    """Further attempts in the same run, for the classes of failure in `retry`."""
    retry: tuple[RetryPolicy, ...] = RETRIES
    """Classes of failure that are asked again, in this run and in later ones; the others never are."""
    longest_wait_s: float = 20
    """Longest pause within a run, for a Crawl-delay, too; whoever asks for a longer one is asked in a later run."""
    max_bytes: int = 20_000_000
    """Larger files are not read to their end, compressed answers not decompressed to theirs."""
    max_redirects: int = 5
    """Redirects that are followed, 0..5."""
    ports: tuple[int, ...] = (80, 443, 8080, 8443)
    """Ports that may be asked."""
    allowed_networks: tuple[str, ...] = ()
    """Networks beside the public internet that may be asked, on any port, such as 127.0.0.0/8 for a demonstration."""
    requests_per_host: int = 8
    """Concurrent requests to one host from all processes of the run; one in its Crawl-delay where it has one."""
    host_failures: int = 20
    """Failures in a row after which a host is left alone for a while."""
    host_pause_s: float = 120
    """How long it is left alone."""
    alarm_share: float | None = 0.9
    """The run stops when more than this share of the last requests of a shard failed, 0..1; null never stops."""
    alarm_requests: int = 500
    """Requests over which that share is taken."""
    user_agent_token: str = "darkroom"
    """Name in the User-Agent header; robots.txt and opt-out headers may address it."""
    contact: str | None = None
    """Page or e-mail address in the User-Agent header, for the owners of the sites."""
    consent: tuple[str, ...] = CONSENT_SIGNALS
    """Signals that exclude an image: robots_txt, robots_usage (Content-Usage there), tdmrep, x_robots_tag, tdm_header,
    content_usage, c2pa."""
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noml", "noindex", "noimageindex")
    """X-Robots-Tag directives that exclude an image."""
    allowed_licenses: tuple[str, ...] | None = None
    """Licences, as the lists write them, whose images may be requested; null asks for all."""

    def __post_init__(self) -> None:
        require(self.rows_per_shard > 1, "ingest.rows_per_shard", self.rows_per_shard, "must be at least 2")
        for name in ("download_threads", "timeout_s", "deadline_s", "max_bytes", "requests_per_host", "host_failures"):
            require(0 < getattr(self, name) < inf, f"ingest.{name}", getattr(self, name), "must be a number above 0")
        for name in ("retries", "longest_wait_s", "host_pause_s"):
            require(
                0 <= getattr(self, name) < inf, f"ingest.{name}", getattr(self, name), "must be a number, 0 or more"
            )
        require(0 <= self.max_redirects <= 5, "ingest.max_redirects", self.max_redirects, "must be 0..5")
        share_ok = self.alarm_share is None or 0 < self.alarm_share < 1
        require(share_ok, "ingest.alarm_share", self.alarm_share, "must be above 0 and below 1, or null")
        require(self.alarm_requests > 1, "ingest.alarm_requests", self.alarm_requests, "must be at least 2")
        known = set(self.consent) <= set(CONSENT_SIGNALS)
        require(known, "ingest.consent", self.consent, f"use {', '.join(CONSENT_SIGNALS)}")
        token = self.user_agent_token
        plain = bool(token) and all(part.isalpha() for part in token.replace("_", "-").split("-"))
        require(plain, "ingest.user_agent_token", token, "use letters, - and _ (RFC 9309)")
        contact_ok = self.contact is None or (self.contact.isascii() and self.contact.isprintable())
        require(contact_ok, "ingest.contact", self.contact, "use printable ASCII")
        statuses = [policy.status for policy in self.retry]
        require(len(statuses) == len(set(statuses)), "ingest.retry", statuses, "name each class once")
        for network in self.allowed_networks:
            require(_is_network(network), "ingest.allowed_networks", network, "use CIDR, such as 127.0.0.0/8")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
