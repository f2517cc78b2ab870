"""Which rows are asked again and when, the alarm, and retries within a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from curate import sample
from curate.config import RETRIES, IngestConfig, RetryPolicy
from curate.crawl.alarm import Alarm
from curate.crawl.fetcher import Fetcher
from curate.crawl.limits import Limits
from curate.crawl.retry import Tried, next_run_at_s, pause_in_run_s
from tests.curate.crawl_origin import JPEG, Answer, origin

POLICIES = {"timeout": RetryPolicy(status="timeout", runs=3, wait_s=1, next_run_after_s=100)}


def tried(status: str, runs: int, **changes: object) -> Tried:
    known = {"counted": True, "fetched_at_s": 1000.0, "retry_after_s": None} | changes
    return Tried(status=status, runs=runs, **known)


@pytest.mark.parametrize(
    ("row", "at_s"),
    [
        (tried("timeout", 1), 1100.0),
        (tried("timeout", 2), 1400.0),
        (tried("timeout", 3), None),
        (tried("timeout", 1, retry_after_s=5000.0), 6000.0),
        (tried("timeout", 1, retry_after_s=5.0), 1100.0),
        (tried("timeout", 1, counted=False), 0.0),
        (tried("timeout", 0, counted=False), 0.0),
        (tried("http_gone", 1), None),
        (tried("ok", 1), None),
        (tried("not_requested", 0), 0.0),
    ],
)
def test_when_the_next_run_asks(row, at_s):
    assert next_run_at_s(row, POLICIES) == at_s


def test_pauses_within_a_run():
    policy = POLICIES["timeout"]
    assert [pause_in_run_s(policy, attempt, None, 20) for attempt in range(3)] == [1.0, 2.0, 4.0]
    assert pause_in_run_s(policy, 0, 7.0, 20) == 7.0
    assert pause_in_run_s(policy, 0, 30.0, 20) == float("inf")
    assert pause_in_run_s(None, 0, None, 20) == float("inf")


def test_failures_that_pass_are_asked_again_in_the_run_and_others_are_not():
    quick = tuple(replace(policy, wait_s=0.01) for policy in RETRIES)
    settings = IngestConfig(
        allowed_networks=("127.0.0.1/32",), retries=2, retry=quick, consent=(), timeout_s=0.3, host_failures=1000
    )
    once = {"/gone": 404, "/denied": 403}
    again = {"/error": 500, "/busy": 429}
    answers = {path: Answer(status=status, body=b"") for path, status in (once | again).items()}
    with origin(answers | {"/cut": Answer(act="cut"), "/page": Answer(body=b"<html>")}) as server:
        fetcher = Fetcher(settings, Limits(4).exchange)
        requests = {path: fetcher.fetch(server.url + path)[1].requests for path in server.answers}
        assert requests == {"/gone": 1, "/denied": 1, "/error": 3, "/busy": 3, "/cut": 3, "/page": 1}
        assert {path: server.asked(path) for path in requests} == requests
        server.answers["/busy"] = Answer()
        data, outcome = fetcher.fetch(f"{server.url}/busy")
        assert (data, outcome.status, outcome.requests) == (JPEG, sample.OK, 1)


def test_the_alarm_looks_at_the_last_requests_and_only_at_failures_that_may_be_ours():
    alarm = Alarm(0.5, 4)
    for status in ("http_gone", "not_an_image", "opt_out_robots_txt", "http_gone", "ok", "dns", "timeout"):
        alarm.count(status, "a.example")
        assert alarm.raised is None
    alarm.count("ok", "b.example")
    assert alarm.raised is None
    alarm.count("dns", "b.example")
    assert alarm.raised == "3 of the last 4 requests failed (dns 2, timeout 1; most often a.example 2, b.example 1)"


def test_the_alarm_can_be_switched_off():
    alarm = Alarm(None, 2)
    for _ in range(5):
        alarm.count("dns", None)
    assert alarm.raised is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_redirects": 6}, "ingest.max_redirects = 6: must be 0..5"),
        ({"alarm_share": 1.0}, "ingest.alarm_share = 1.0"),
        ({"consent": ("robots",)}, "ingest.consent"),
        ({"user_agent_token": "dark room"}, "ingest.user_agent_token = 'dark room'"),
        ({"contact": "a\nb"}, "ingest.contact"),
        ({"allowed_networks": ("127.0.0.1/8",)}, "ingest.allowed_networks = '127.0.0.1/8': use CIDR"),
        ({"retry": (RetryPolicy(status="dns"), RetryPolicy(status="dns"))}, "ingest.retry"),
        ({"max_bytes": 0}, "ingest.max_bytes = 0"),
        ({"longest_wait_s": float("inf")}, "ingest.longest_wait_s = inf: must be a number, 0 or more"),
        ({"deadline_s": float("nan")}, "ingest.deadline_s = nan: must be a number above 0"),
    ],
)
def test_impossible_settings_are_named(changes, words):
    with pytest.raises(ValueError) as caught:
        IngestConfig(**changes)
    assert words in str(caught.value)


def test_an_unknown_class_of_failure_is_named():
    with pytest.raises(ValueError, match="ingest.retry.status = 'http_gone': use one of dns"):
        RetryPolicy(status="http_gone")
