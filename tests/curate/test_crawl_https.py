"""Requests over TLS: a certificate of an authority made here, wrong ones, and the same rules for addresses."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from curate import sample
from curate.config import IngestConfig
from curate.crawl.errors import FetchError
from curate.crawl.fetch import Reply, Web
from curate.crawl.fetcher import Fetcher
from curate.crawl.limits import Limits
from tests.curate.crawl_origin import JPEG, Answer, origin, redirect

LOOPBACK = IngestConfig(
    allowed_networks=("127.0.0.1/32",), timeout_s=0.4, deadline_s=0.8, max_bytes=100_000, retries=0, host_failures=1000
)
NOW = datetime.datetime.now(datetime.UTC)
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "darkroom's tests")])


class Authority:
    """Signs certificates; whoever has `file` trusts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _certificate(NAME, self.key.public_key(), NOW + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.file = folder / "authority.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *names: str, ends: datetime.datetime | None = None) -> ssl.SSLContext:
        """Return what a server needs to be one of those names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        certificate = (
            _certificate(subject, key.public_key(), ends or NOW + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def _certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime.datetime):
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(NAME)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=9))
        .not_valid_after(ends)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture
def authority(tmp_path, monkeypatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


def get(url: str, settings: IngestConfig = LOOPBACK) -> Reply:
    return Web(settings, Limits(4).exchange).get(url, max_bytes=settings.max_bytes)


def failure(url: str, settings: IngestConfig = LOOPBACK) -> FetchError:
    with pytest.raises(FetchError) as caught:
        get(url, settings)
    return caught.value


def names_are_loopback(monkeypatch, *names: str, ip: str = "127.0.0.1") -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda h, *a, **k: real(ip if h in names else h, *a, **k))


def test_a_picture_over_tls_with_consent_files_and_kept_connections(authority):
    rules = Answer(body=b"User-agent: *\nDisallow: /closed\n")
    answers = {"/robots.txt": rules, "/x": Answer(), "/closed": Answer()}
    with origin(answers, tls=authority.server("127.0.0.1")) as server:
        fetcher = Fetcher(LOOPBACK, Limits(4).exchange)
        found = [fetcher.fetch(f"{server.url}{path}") for path in ("/x", "/closed", "/x")]
        assert [data for data, _ in found] == [JPEG, None, JPEG]
        assert found[1][1].status == sample.OPT_OUT_ROBOTS_TXT
        assert server.asked("/closed") == 0
        assert server.connections == 1


def test_the_name_is_what_the_certificate_the_host_header_and_sni_say(authority, monkeypatch):
    names_are_loopback(monkeypatch, "pictures.example", "other.example")
    asked_for: list[str | None] = []
    context = authority.server("pictures.example")
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    with origin({"/x": Answer()}, tls=context) as server:
        assert get(f"https://pictures.example:{server.port}/x").body == JPEG
        assert asked_for == ["pictures.example"]
        assert server.log == [(f"pictures.example:{server.port}", "/x")]
        assert failure(f"https://other.example:{server.port}/x").status == sample.TLS
        assert len(server.log) == 1


def test_a_wrong_certificate_is_a_class_of_its_own_and_nothing_is_asked(authority, tmp_path):
    (tmp_path / "unknown").mkdir()
    contexts = {
        "Hostname|IP address mismatch": authority.server("127.0.0.9"),
        "expired": authority.server("127.0.0.1", ends=NOW - datetime.timedelta(days=1)),
        "unable to get local issuer|signature failure|self-signed": Authority(tmp_path / "unknown").server("127.0.0.1"),
    }
    for words, context in contexts.items():
        with origin({"/x": Answer()}, tls=context) as server:
            error = failure(f"{server.url}/x")
            assert error.status == sample.TLS, words
            assert any(word in error.message for word in words.split("|")), error.message
            assert server.log == []


def test_a_server_that_speaks_no_tls_or_nothing_at_all(authority):
    with origin({"/x": Answer()}) as plain:
        assert failure(f"https://127.0.0.1:{plain.port}/x").status == sample.TLS
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert failure(f"https://127.0.0.1:{silent.getsockname()[1]}/x").status == sample.TIMEOUT
        assert time.monotonic() - started < 2


def test_limits_of_time_and_size_hold_over_tls(authority):
    answers = {
        "/drip": Answer(act="drip"),
        "/silent": Answer(act="silent"),
        "/cut": Answer(act="cut"),
        "/large": Answer(body=bytes(100_001), length=False),
    }
    with origin(answers, tls=authority.server("127.0.0.1")) as server:
        assert {path: failure(server.url + path).status for path in answers} == {
            "/drip": sample.DEADLINE,
            "/silent": sample.TIMEOUT,
            "/cut": sample.CONNECTION,
            "/large": sample.TOO_MANY_BYTES,
        }


def test_a_private_address_gets_no_connection_over_tls_nor_through_redirects(authority, monkeypatch):
    names_are_loopback(monkeypatch, "inner.example", ip="127.0.0.2")
    inner_tls = authority.server("127.0.0.2", "inner.example")
    with origin({"/x": Answer()}, ip="127.0.0.2", tls=inner_tls) as private:
        targets = {"/by-address": f"{private.url}/x", "/by-name": f"https://inner.example:{private.port}/x"}
        monkeypatch.setenv("https_proxy", private.url)
        redirects = {path: redirect(target) for path, target in targets.items()}
        with (
            origin(dict(redirects)) as plain,
            origin(dict(redirects), tls=authority.server("127.0.0.1")) as secure,
        ):
            for target in targets.values():
                assert failure(target).status == sample.ADDRESS_REFUSED
            for server in (plain, secure):
                assert [failure(server.url + path).status for path in targets] == [sample.ADDRESS_REFUSED] * 2
            assert len(secure.log) == len(plain.log) == 2
        assert private.connections == 0
        everywhere = replace(LOOPBACK, allowed_networks=("127.0.0.0/8",))
        assert get(targets["/by-name"], everywhere).body == JPEG
        assert private.connections == 1


def test_redirects_lead_from_http_to_https_and_back(authority):
    with origin({"/x": Answer()}, tls=authority.server("127.0.0.1")) as secure, origin({"/y": Answer()}) as plain:
        plain.answers["/to-tls"] = redirect(f"{secure.url}/x")
        secure.answers["/back"] = redirect(f"{plain.url}/y")
        reply = get(f"{plain.url}/to-tls")
        assert (reply.body, reply.url) == (JPEG, f"{secure.url}/x")
        assert get(f"{secure.url}/back").url == f"{plain.url}/y"


def test_many_threads_share_connections_over_tls(authority):
    with origin({"/x": Answer(act="pause")}, tls=authority.server("127.0.0.1")) as server:
        web = Web(replace(LOOPBACK, timeout_s=3, deadline_s=5), Limits(3).exchange)
        threads = [
            threading.Thread(target=web.get, args=(f"{server.url}/x",), kwargs={"max_bytes": 9**6}) for _ in range(9)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (server.asked("/x"), server.most_at_once, server.connections) == (9, 3, 3)
