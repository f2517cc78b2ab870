"""One URL from consent to bytes: the host's files, the request, its headers, the file's own assertions, retries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import urllib3

from curate import sample
from curate.config import IngestConfig
from curate.crawl import c2pa
from curate.crawl.consent import content_usage_opt_out, tdm_reserved, x_robots_opt_out
from curate.crawl.errors import FetchError
from curate.crawl.fetch import Web, parsed, place
from curate.crawl.limits import Exchange
from curate.crawl.retry import pause_in_run_s
from curate.crawl.sites import Sites

MOST_SIGNAL_CHARS = 500
HEADERS = {"x_robots_tag": "X-Robots-Tag", "tdm_reservation": "tdm-reservation", "content_usage": "Content-Usage"}
"""Column and the header that it holds."""
SIGNALS = ("robots_txt", "robots_usage", "tdmrep", *HEADERS, "c2pa_training_mining")


@dataclass(kw_only=True)
class Outcome:
    """What became of one URL in one run; the fields are columns of the fetches table."""

    status: str = sample.OK
    error: str | None = None
    host: str | None = None
    http_status: int | None = None
    final_url: str | None = None
    """Where redirects led; None without any."""
    signals: dict[str, str | None] = field(default_factory=dict)
    """By the names in SIGNALS: what was found, as it was found."""
    retry_after_s: float | None = None
    requests: int = 0
    """Attempts in this run."""
    seconds: float = 0.0
    fetched_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    counted: bool = True


class Fetcher:
    """Fetches URLs under the settings; its threads share connections, names, hosts and their files."""

    def __init__(self, settings: IngestConfig, exchange: Exchange) -> None:
        self._settings = settings
        self._policies = {policy.status: policy for policy in settings.retry}
        self._web = Web(settings, exchange)
        self._sites = Sites(self._web, settings.user_agent_token, settings.consent)

    def fetch(self, url: str, stopped: Callable[[], bool] = lambda: False) -> tuple[bytes | None, Outcome]:
        """Return the bytes, or None, and the outcome, after the attempts that the settings allow in a run."""
        started = time.monotonic()
        for attempt in range(self._settings.retries + 1):
            data, outcome = self._once(url)
            outcome.requests = attempt + outcome.counted
            pause_s = pause_in_run_s(
                self._policies.get(outcome.status), attempt, outcome.retry_after_s, self._settings.longest_wait_s
            )
            if attempt == self._settings.retries or pause_s == float("inf") or stopped():
                break
            time.sleep(pause_s)
        outcome.seconds = time.monotonic() - started
        return data, outcome

    def _once(self, url: str) -> tuple[bytes | None, Outcome]:
        outcome = Outcome()
        try:
            target = parsed(url)
            outcome.host = place(target)
            reply = self._web.get(
                target,
                max_bytes=self._settings.max_bytes,
                before_hop=lambda hop: self._sites.check(hop, outcome.signals),
                before_body=lambda _, response: self._heed_headers(response, outcome),
            )
            outcome.http_status = reply.http_status
            outcome.final_url = reply.url if reply.url != target.url else None
            self._heed_file(reply.body, outcome)
            return reply.body, outcome
        except FetchError as error:
            outcome.status, outcome.error = error.status, error.message
            outcome.http_status = error.http_status or outcome.http_status
            outcome.retry_after_s = error.retry_after_s
            outcome.counted = error.status != sample.NOT_REQUESTED
            return None, outcome

    def _heed_headers(self, response: urllib3.BaseHTTPResponse, outcome: Outcome) -> None:
        outcome.http_status = response.status
        values = {column: response.headers.getlist(header) for column, header in HEADERS.items()}
        for column, said in values.items():
            outcome.signals[column] = ", ".join(said)[:MOST_SIGNAL_CHARS] or outcome.signals.get(column)
        settings = self._settings
        directive = x_robots_opt_out(values["x_robots_tag"], settings.user_agent_token, settings.opt_out_directives)
        if "x_robots_tag" in settings.consent and directive:
            raise FetchError(sample.OPT_OUT_X_ROBOTS_TAG, f"X-Robots-Tag: {directive}")
        if "tdm_header" in settings.consent and tdm_reserved(values["tdm_reservation"]):
            raise FetchError(sample.OPT_OUT_TDM_HEADER, "tdm-reservation: 1")
        use = content_usage_opt_out(values["content_usage"])
        if "content_usage" in settings.consent and use:
            raise FetchError(sample.OPT_OUT_CONTENT_USAGE, f"Content-Usage: {use}=n")

    def _heed_file(self, data: bytes, outcome: Outcome) -> None:
        said = c2pa.training_mining(data)
        told = ", ".join(f"{use}={answer}" for use, answer in said.items())
        outcome.signals["c2pa_training_mining"] = told[:MOST_SIGNAL_CHARS] or None
        use = c2pa.opt_out(said)
        if "c2pa" in self._settings.consent and use:
            raise FetchError(sample.OPT_OUT_C2PA, f"{use}: {said[use]}"[:MOST_SIGNAL_CHARS])
