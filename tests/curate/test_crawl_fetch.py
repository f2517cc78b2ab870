"""The guarded fetch: addresses, redirects, limits, and one class for each way to fail."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from dataclasses import replace

import pytest

from curate import sample
from curate.config import IngestConfig
from curate.crawl.addresses import Resolver, is_public
from curate.crawl.errors import FetchError
from curate.crawl.fetch import Web
from curate.crawl.fetcher import Fetcher
from curate.crawl.hosts import MOST_PAUSE_S
from curate.crawl.limits import Limits
from tests.curate.crawl_origin import JPEG, Answer, bomb, origin, redirect

LOOPBACK = IngestConfig(
    allowed_networks=("127.0.0.1/32",), timeout_s=0.4, deadline_s=0.8, max_bytes=100_000, host_failures=1000
)


def get(url: str, settings: IngestConfig = LOOPBACK):
    return Web(settings, Limits(4).exchange).get(url, max_bytes=settings.max_bytes)


def failure(url: str, settings: IngestConfig = LOOPBACK) -> FetchError:
    with pytest.raises(FetchError) as caught:
        get(url, settings)
    return caught.value


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.0.8",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:a9fe:a9fe::",
        "2001:0:1::1",
        "2001:db8::1",
        "3fff::1",
        "2a00:1450:4001::5efe:7f00:1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "5f00::1",
    ],
)
def test_what_is_not_public_is_known(ip):
    assert not is_public(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001:810::200e"])
def test_what_is_public_is_known(ip):
    assert is_public(ip)


def test_one_private_address_among_public_ones_refuses_the_name(monkeypatch):
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(FetchError, match=r"10\.0\.0\.1 is not a public address") as caught:
        Resolver(allowed_networks=(), ports=(80,)).addresses("two-faced.example", 80)
    assert caught.value.status == sample.ADDRESS_REFUSED
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers[:1])
    resolver = Resolver(allowed_networks=(), ports=(80,))
    assert [address.ip for address in resolver.addresses("one.example", 80)] == ["8.8.8.8"]
    with pytest.raises(FetchError, match="port 22"):
        resolver.addresses("one.example", 22)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert [address.ip for address in resolver.addresses("one.example", 80)] == ["8.8.8.8"], "asked once, no rebinding"


def test_a_private_address_gets_no_connection(monkeypatch):
    """Neither by its address in any spelling, nor by a name, nor through a redirect or a proxy of the environment."""
    with origin({"/x": Answer()}, ip="127.0.0.2") as private:
        monkeypatch.setenv("http_proxy", private.url)
        monkeypatch.setenv("HTTP_PROXY", private.url)
        host = f"127.0.0.2:{private.port}"
        spellings = [host, f"2130706434:{private.port}", f"0x7f.2:{private.port}", f"[::ffff:127.0.0.2]:{private.port}"]
        with origin({f"/{n}": redirect(f"http://{place}/x") for n, place in enumerate(spellings)}) as public:
            public.answers["/x"] = Answer()
            for n, spelled in enumerate(spellings):
                assert failure(f"http://{spelled}/x").status == sample.ADDRESS_REFUSED
                assert failure(f"{public.url}/{n}").status == sample.ADDRESS_REFUSED
            real = socket.getaddrinfo
            monkeypatch.setattr(
                socket, "getaddrinfo", lambda h, *a, **k: real("127.0.0.2" if h == "inner.example" else h, *a, **k)
            )
            assert failure(f"http://inner.example:{private.port}/x").status == sample.ADDRESS_REFUSED
            assert get(f"{public.url}/x").body == JPEG
        assert private.connections == 0
        assert get(f"{private.url}/x", replace(LOOPBACK, allowed_networks=("127.0.0.0/8",))).body == JPEG
        assert private.connections == 1


def test_host_header_stays_the_name(monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda h, *a, **k: real("127.0.0.1" if h == "pictures.example" else h, *a, **k)
    )
    with origin({"/x": Answer()}) as server:
        assert get(f"http://pictures.example:{server.port}/x").body == JPEG
        assert server.log == [(f"pictures.example:{server.port}", "/x")]


@pytest.mark.parametrize(
    "url", ["ftp://example.org/x", "file:///etc/hostname", "no url", "http://", "http://user:word@example.org/x"]
)
def test_other_urls_are_refused(url):
    assert failure(url).status == sample.MISSING_URL


def test_each_way_to_fail_has_its_class():
    answers = {
        "/gone": Answer(status=404, body=b""),
        "/denied": Answer(status=403, body=b""),
        "/busy": Answer(status=429, headers={"Retry-After": "7"}, body=b""),
        "/down": Answer(status=503, headers={"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}, body=b""),
        "/endless": Answer(status=429, headers={"Retry-After": "9" * 400}, body=b""),
        "/error": Answer(status=500, body=b""),
        "/silent": Answer(act="silent"),
        "/reset": Answer(act="reset"),
        "/cut": Answer(act="cut"),
        "/drip": Answer(act="drip"),
        "/drip-headers": Answer(act="drip_headers"),
        "/large": Answer(body=bytes(100_001)),
        "/large-unannounced": Answer(body=bytes(100_001), length=False),
        "/bomb": bomb(10_000_000),
        "/brotli": Answer(headers={"Content-Encoding": "br"}),
        "/broken-gzip": Answer(headers={"Content-Encoding": "gzip"}),
        "/loop": redirect("/loop"),
        "/to-file": redirect("file:///etc/hostname"),
    } | {f"/hop/{n}": redirect(f"/hop/{n + 1}") for n in range(6)}
    expected = {
        "/gone": sample.HTTP_GONE,
        "/denied": sample.HTTP_REFUSED,
        "/busy": sample.HTTP_BUSY,
        "/down": sample.HTTP_BUSY,
        "/endless": sample.HTTP_BUSY,
        "/error": sample.HTTP_SERVER_ERROR,
        "/silent": sample.TIMEOUT,
        "/reset": sample.CONNECTION,
        "/cut": sample.CONNECTION,
        "/drip": sample.DEADLINE,
        "/drip-headers": sample.DEADLINE,
        "/large": sample.TOO_MANY_BYTES,
        "/large-unannounced": sample.TOO_MANY_BYTES,
        "/bomb": sample.TOO_MANY_BYTES,
        "/brotli": sample.CONTENT_ENCODING,
        "/broken-gzip": sample.CONTENT_ENCODING,
        "/loop": sample.REDIRECTS,
        "/to-file": sample.MISSING_URL,
        "/hop/0": sample.REDIRECTS,
    }
    with origin(answers) as server:
        started = time.monotonic()
        failures = {path: failure(server.url + path) for path in expected}
        assert {path: error.status for path, error in failures.items()} == expected
        assert time.monotonic() - started < 5
        assert failures["/busy"].retry_after_s == 7.0
        assert failures["/down"].retry_after_s == failures["/endless"].retry_after_s == MOST_PAUSE_S
        assert server.asked("/loop") == 6


MANY = b"9" * 5000
HEADERS = {
    b"302 X\r\nLocation: http://[oops": sample.MISSING_URL,
    b"302 X\r\nLocation: //[::1": sample.MISSING_URL,
    b"302 X\r\nLocation: http://a.example:99999/": sample.MISSING_URL,
    b"302 X\r\nLocation: \xff\xfe\x80": sample.HTTP_GONE,
    b"200 OK\r\nContent-Length: " + MANY: sample.OK,
    b"200 OK\r\nContent-Length: \xb2": sample.OK,
    b"200 OK\r\nContent-Length: -5": sample.OK,
    b"200 OK\r\nContent-Length: 3, 4": sample.CONNECTION,
    b"404 X\r\nContent-Length: " + MANY: sample.HTTP_GONE,
    b"404 X\r\nContent-Length: \xb2": sample.HTTP_GONE,
    b"200 OK\r\nTransfer-Encoding: chunked": sample.CONNECTION,
    b"429 X\r\nRetry-After: \xb2": sample.HTTP_BUSY,
    b"429 X\r\nRetry-After: " + MANY: sample.HTTP_BUSY,
    b"429 X\r\nRetry-After: Mon, 01 Jan 2030 00:00:00 +" + MANY[:30]: sample.HTTP_BUSY,
    b"429 X\r\nRetry-After: Mon, 01 Jan " + MANY[:30] + b" 00:00:00 GMT": sample.HTTP_BUSY,
    b"200 OK\r\nno colon": sample.OK,
    b"2000 OK": sample.CONNECTION,
    b"nonsense": sample.CONNECTION,
}


@pytest.mark.parametrize(("said", "status"), HEADERS.items(), ids=lambda value: str(value)[:60])
def test_no_header_breaks_the_crawl(said, status):
    """Whatever a host sends, its row gets a class, and the next host is asked."""
    with origin({"/x": Answer(body=b"HTTP/1.1 " + said + b"\r\n\r\n" + JPEG, act="raw")}) as server, origin() as other:
        other.answers["/y"] = Answer()
        fetcher = Fetcher(replace(LOOPBACK, retries=0, consent=()), Limits(4).exchange)
        data, outcome = fetcher.fetch(f"{server.url}/x")
        assert (outcome.status, data) == (status, JPEG if status == sample.OK else None)
        assert fetcher.fetch(f"{server.url}/x")[1].status in (status, sample.HOST_PAUSED)
        assert fetcher.fetch(f"{other.url}/y")[0] == JPEG


def test_names_and_ports_that_lead_nowhere():
    assert failure("http://no-such-host.invalid/x").status == sample.DNS
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert failure(f"http://127.0.0.1:{closed.getsockname()[1]}/x").status == sample.CONNECTION


def test_five_redirects_are_followed():
    answers = {f"/hop/{n}": redirect(f"/hop/{n + 1}") for n in range(5)}
    with origin(answers | {"/hop/5": Answer()}) as server:
        reply = get(f"{server.url}/hop/0")
        assert (reply.body, reply.url) == (JPEG, f"{server.url}/hop/5")


def test_an_encoding_that_was_not_asked_for_is_undone():
    with origin({"/x": Answer(body=gzip.compress(JPEG), headers={"Content-Encoding": "gzip"})}) as server:
        assert get(f"{server.url}/x").body == JPEG


def test_connections_are_kept_and_the_limit_for_a_host_holds():
    with origin({"/x": Answer(act="pause")}) as server:
        web = Web(LOOPBACK, Limits(3).exchange)

        def ask() -> None:
            for _ in range(4):
                assert web.get(f"{server.url}/x", max_bytes=100_000).body == JPEG

        threads = [threading.Thread(target=ask) for _ in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_at_once == 3
        assert server.asked("/x") == 36
        assert server.connections == 3


def test_a_host_that_fails_is_left_alone_for_a_while():
    settings = replace(LOOPBACK, host_failures=2, host_pause_s=0.5, longest_wait_s=0.1)
    with origin({"/bad": Answer(status=500, body=b""), "/good": Answer(), "/gone": Answer(status=404)}) as server:
        web = Web(settings, Limits(4).exchange)

        def ask(path: str) -> str:
            try:
                web.get(server.url + path, max_bytes=100_000)
            except FetchError as error:
                return error.status
            return sample.OK

        assert [ask("/bad"), ask("/gone"), ask("/bad")] == [
            sample.HTTP_SERVER_ERROR,
            sample.HTTP_GONE,
            sample.HTTP_SERVER_ERROR,
        ]
        assert [ask("/bad"), ask("/good"), ask("/good")] == [sample.HTTP_SERVER_ERROR, *[sample.HOST_PAUSED] * 2]
        time.sleep(0.5)
        assert ask("/good") == sample.OK
        assert len(server.log) == 5


def test_retry_after_is_waited_for_and_long_ones_are_left():
    settings = replace(LOOPBACK, longest_wait_s=2)
    answers = {
        "/busy": Answer(status=429, headers={"Retry-After": "1"}, body=b""),
        "/long": Answer(status=429, headers={"Retry-After": "100"}, body=b""),
        "/good": Answer(),
    }
    with origin(answers) as server:
        web = Web(settings, Limits(4).exchange)
        with pytest.raises(FetchError):
            web.get(f"{server.url}/busy", max_bytes=100_000)
        started = time.monotonic()
        assert web.get(f"{server.url}/good", max_bytes=100_000).body == JPEG
        assert 0.8 < time.monotonic() - started < 2
        with pytest.raises(FetchError):
            web.get(f"{server.url}/long", max_bytes=100_000)
        with pytest.raises(FetchError) as caught:
            web.get(f"{server.url}/good", max_bytes=100_000)
        assert caught.value.status == sample.HOST_PAUSED
        assert 98 < (caught.value.retry_after_s or 0) <= 100
        assert server.asked("/good") == 1
