"""Limits, pauses and delays of a host hold for all processes together; each `Web` here stands for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from curate import sample
from curate.config import IngestConfig
from curate.crawl.addresses import Resolver
from curate.crawl.errors import FetchError
from curate.crawl.fetch import Web
from curate.crawl.fetcher import Fetcher
from curate.crawl.hosts import Hosts
from curate.crawl.limits import Asked, Limits
from tests.curate.crawl_origin import Answer, origin

SETTINGS = IngestConfig(
    allowed_networks=("127.0.0.0/8",), timeout_s=2, deadline_s=3, retries=0, host_failures=1000, longest_wait_s=5
)


def together(works: list[Callable[[], None]]) -> None:
    """Run all at once; raises what one of them raised."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except (AssertionError, FetchError, RuntimeError) as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a request waits for ever"
    if raised:
        raise raised[0]


def test_one_process_alone_gets_all_and_gives_back_what_it_does_not_use():
    limits = Limits(8)
    assert limits.exchange("a", {"x": Asked(0, 1)})["x"].at_once == 8
    assert limits.exchange("b", {"x": Asked(0, 1)})["x"].at_once == 0
    assert limits.exchange("b", {"y": Asked(0, 1)})["y"].at_once == 8, "another host has turns of its own"
    assert limits.exchange("a", {"x": Asked(2, 0)})["x"].at_once == 2
    assert limits.exchange("b", {"x": Asked(0, 9)})["x"].at_once == 4
    assert limits.exchange("a", {"x": Asked(2, 9)})["x"].at_once == 4


def test_a_process_with_more_than_its_share_ends_some_before_it_begins_others():
    limits = Limits(8)
    limits.exchange("a", {"x": Asked(0, 1)})
    assert limits.exchange("b", {"x": Asked(0, 5)})["x"].at_once == 0
    assert limits.exchange("a", {"x": Asked(8, 5)})["x"].at_once == 4
    assert limits.exchange("b", {"x": Asked(0, 5)})["x"].at_once == 0, "the eight are still under way"
    assert limits.exchange("a", {"x": Asked(5, 5)})["x"].at_once == 4
    assert limits.exchange("b", {"x": Asked(0, 5)})["x"].at_once == 3


def test_more_processes_than_requests_take_turns_in_the_order_in_which_they_came():
    limits = Limits(1)
    assert [limits.exchange(name, {"x": Asked(0, 1)})["x"].at_once for name in "abc"] == [1, 0, 0]
    assert limits.exchange("a", {"x": Asked(1, 1)})["x"].at_once == 0, "no other after the one under way"
    assert limits.exchange("a", {"x": Asked(0, 1)})["x"].at_once == 0
    assert [limits.exchange(name, {"x": Asked(0, 1)})["x"].at_once for name in "cab"] == [0, 0, 1]


def test_a_process_that_died_loses_its_requests():
    limits = Limits(2, lost_after_s=0.0)
    assert limits.exchange("a", {"x": Asked(0, 1)})["x"].at_once == 2
    assert limits.exchange("b", {"x": Asked(0, 1)})["x"].at_once == 2
    patient = Limits(2)
    assert [patient.exchange(name, {"x": Asked(0, 1)})["x"].at_once for name in "ab"] == [2, 0]


def test_a_pause_and_a_delay_hold_for_every_process():
    limits = Limits(4)
    limits.exchange("a", {"x": Asked(0, 0, pause_s=30.0)})
    answer = limits.exchange("b", {"x": Asked(0, 3)})["x"]
    assert answer.at_once == 0
    assert 29 < answer.pause_s <= 30
    assert limits.exchange("a", {"y": Asked(0, 3, delay_s=30.0)})["y"].at_once == 1
    answer = limits.exchange("b", {"y": Asked(0, 3, delay_s=30.0)})["y"]
    assert answer.at_once == 0
    assert 29 < answer.pause_s <= 30


@pytest.mark.parametrize(("processes", "at_once"), [(2, 5), (2, 3), (5, 2)])
def test_two_processes_never_exceed_the_limit_together_and_all_are_served(processes, at_once):
    with origin({"/x": Answer(act="pause")}) as server:
        limits = Limits(at_once)
        webs = [Web(SETTINGS, limits.exchange) for _ in range(processes)]

        def asks(web: Web) -> Callable[[], None]:
            def ask() -> None:
                for _ in range(2):
                    web.get(f"{server.url}/x", max_bytes=100_000)

            return ask

        together([asks(web) for web in webs for _ in range(4)])
        assert server.asked("/x") == processes * 8
        assert at_once - 1 <= server.most_at_once <= at_once  # on a busy machine the last turn may come late


def test_retry_after_heard_by_one_process_holds_for_the_other():
    answers = {"/busy": Answer(status=429, headers={"Retry-After": "100"}, body=b""), "/good": Answer()}
    with origin(answers) as server:
        limits = Limits(4)
        one, other = (Web(SETTINGS, limits.exchange) for _ in range(2))
        with pytest.raises(FetchError):
            one.get(f"{server.url}/busy", max_bytes=100_000)
        with pytest.raises(FetchError) as caught:
            one.get(f"{server.url}/good", max_bytes=100_000)
        assert caught.value.status == sample.HOST_PAUSED
        with pytest.raises(FetchError) as caught:
            other.get(f"{server.url}/good", max_bytes=100_000)
        assert caught.value.status == sample.HOST_PAUSED
        assert server.asked("/good") == 0


def test_crawl_delay_is_kept_by_two_processes_together():
    rules = b"User-agent: *\nCrawl-delay: 99\n\nUser-agent: darkroom\nCrawl-delay: 0.4\n"
    with origin({"/robots.txt": Answer(body=rules), "/x": Answer()}) as server:
        limits = Limits(8)
        fetchers = [Fetcher(SETTINGS, limits.exchange) for _ in range(2)]
        statuses: list[str] = []
        works = [lambda f=f: statuses.append(f.fetch(f"{server.url}/x")[1].status) for f in fetchers for _ in range(3)]
        together(works)
        times = [at for (_, path), at in zip(server.log, server.asked_at, strict=True) if path == "/x"]
    assert statuses == [sample.OK] * 6
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(gaps) == 5
    assert min(gaps) > 0.38
    assert max(gaps) < 1.0


def test_who_would_wait_too_long_for_a_crawl_delay_is_left_to_the_next_run():
    with origin({"/robots.txt": Answer(body=b"User-agent: *\nCrawl-delay: 30\n"), "/x": Answer()}) as server:
        fetcher = Fetcher(replace(SETTINGS, longest_wait_s=2), Limits(8).exchange)
        found = [fetcher.fetch(f"{server.url}/x")[1] for _ in range(3)]
        assert server.asked("/x") == 1
    assert [outcome.status for outcome in found] == [sample.OK, sample.NOT_REQUESTED, sample.NOT_REQUESTED]
    assert [(outcome.requests, outcome.counted) for outcome in found] == [(1, True), (0, False), (0, False)]
    assert f"127.0.0.1:{server.port} asks for 30 s between requests" in str(found[1].error)
    with origin({"/robots.txt": Answer(body=b"User-agent: *\nCrawl-delay: 30\n"), "/x": Answer()}) as server:
        fetcher = Fetcher(replace(SETTINGS, consent=("tdmrep",)), Limits(8).exchange)
        assert [fetcher.fetch(f"{server.url}/x")[1].status for _ in range(3)] == [sample.OK] * 3


@pytest.mark.parametrize("consent", [(), ("robots_txt",)])
def test_a_host_that_asks_for_endless_pauses_holds_up_nobody_else(consent):
    answers = {
        "/robots.txt": Answer(body=b"User-agent: *\nCrawl-delay: 1e300\n"),
        "/busy": Answer(status=429, headers={"Retry-After": "9" * 400}, body=b"", act="pause"),
    }
    with origin(answers) as endless, origin({"/x": Answer()}) as other:
        limits = Limits(1)
        fetchers = [Fetcher(replace(SETTINGS, consent=consent), limits.exchange) for _ in range(2)]
        found: list[str] = []
        together([lambda f=f: found.append(f.fetch(f"{endless.url}/busy")[1].status) for f in fetchers * 3])
        assert found.count(sample.HTTP_BUSY) == 1
        assert set(found) - {sample.HTTP_BUSY} <= {sample.HOST_PAUSED, sample.NOT_REQUESTED}
        time.sleep(0.2)
        for fetcher in fetchers:
            assert [fetcher.fetch(f"{other.url}/x")[1].status for _ in range(3)] == [sample.OK] * 3


def test_of_many_hosts_those_that_are_to_be_spared_are_remembered(monkeypatch):
    monkeypatch.setattr("curate.crawl.hosts.MOST_HOSTS", 4)
    hosts = Hosts(Limits(2).exchange, failures=1, pause_s=60, longest_wait_s=1)
    hosts.space("slow.example", 30)
    with hosts.turn("slow.example"):
        pass
    hosts.space("free.example", 30)
    with pytest.raises(FetchError), hosts.turn("down.example"):
        raise FetchError(sample.TIMEOUT, "no answer")
    for number in range(30):
        with hosts.turn(f"{number}.example"):
            pass
    deadline = time.monotonic() + 5
    while hosts._open and time.monotonic() < deadline:
        time.sleep(0.05)
    hosts._forgets_at = 4
    with hosts.turn("last.example"):
        assert set(hosts._hosts) == {"slow.example", "down.example", "last.example"}
    assert hosts._forgets_at == 2 + 4
    with pytest.raises(FetchError, match="down.example is left alone"), hosts.turn("down.example"):
        pass


def test_a_crawl_delay_holds_for_a_host_that_was_forgotten():
    rules = Answer(body=b"User-agent: *\nCrawl-delay: 0.4\n")
    with origin({"/robots.txt": rules, "/x": Answer()}) as slow, origin({"/x": Answer()}) as other:
        fetcher = Fetcher(SETTINGS, Limits(8).exchange)
        hosts = fetcher._web._hosts
        assert fetcher.fetch(f"{slow.url}/x")[1].status == sample.OK
        time.sleep(0.6)
        hosts._forgets_at = 1
        assert fetcher.fetch(f"{other.url}/x")[1].status == sample.OK
        assert set(hosts._hosts) == {f"127.0.0.1:{other.port}"}
        assert [fetcher.fetch(f"{slow.url}/x")[1].status for _ in range(2)] == [sample.OK] * 2
        assert slow.asked("/robots.txt") == 1
        times = [at for (_, path), at in zip(slow.log, slow.asked_at, strict=True) if path == "/x"]
    assert times[2] - times[1] > 0.38


def test_the_answers_for_few_names_are_kept(monkeypatch):
    monkeypatch.setattr("curate.crawl.addresses.MOST_NAMES", 2)
    resolver = Resolver(allowed_networks=("127.0.0.0/8",), ports=())
    for number in (1, 2, 1, 3):
        resolver.addresses(f"127.0.0.{number}", 80)
    assert list(resolver._known) == ["127.0.0.2", "127.0.0.3"]


def test_whoever_waits_is_told_when_the_limits_are_gone():
    def gone(*_: object):
        raise ConnectionError("the process that kept them died")

    with pytest.raises(RuntimeError, match="who keeps the limits of the hosts is gone"):
        Web(SETTINGS, gone).get("http://127.0.0.1:9/x", max_bytes=1)
