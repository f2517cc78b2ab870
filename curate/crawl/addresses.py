"""Which addresses may be asked: names are resolved once, and every address is checked."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from curate import sample
from curate.crawl.errors import FetchError

KNOWN_FOR_S = 300.0
"""How long the answer for a name is used again, a failure too."""

MOST_NAMES = 100_000
"""Names whose answers are kept."""

IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")
"""The routed part of IPv6; loopback, mapped, NAT64, link-local, private and multicast addresses lie outside."""

NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 carries an IPv4 address
        "3fff::/20",  # documentation
    )
)
ISATAP = (0x00005EFE, 0x02005EFE)
"""Third quarter of an IPv6 address whose last quarter is an IPv4 address (RFC 5214)."""


@dataclass(frozen=True)
class Address:
    """An address that was checked."""

    family: int
    ip: str


def is_public(ip: str) -> bool:
    """Return whether an address is one of the public internet's, and carries no other address inside."""
    address = ipaddress.ip_address(ip)
    if any(address in network for network in NOT_PUBLIC if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        embeds_ipv4 = (int(address) >> 32) & 0xFFFFFFFF in ISATAP
        return address in IPV6_PUBLIC and address.is_global and not embeds_ipv4
    return address.is_global and not address.is_multicast and not address.is_reserved


class Resolver:
    """Resolves names, keeps the answers for a while, and refuses a name with any address that is not allowed."""

    def __init__(self, *, allowed_networks: Sequence[str], ports: Sequence[int]) -> None:
        self._allowed = [ipaddress.ip_network(network) for network in allowed_networks]
        self._ports = frozenset(ports)
        self._known: dict[str, tuple[float, list[Address] | FetchError]] = {}
        self._lock = threading.Lock()

    def addresses(self, host: str, port: int) -> list[Address]:
        """Return the host's addresses; raises FetchError where it has none or one of them is refused."""
        found = self._resolved(host.strip("[]"))
        for address in found:
            if reason := self._refusal(address.ip, port):
                raise FetchError(sample.ADDRESS_REFUSED, reason)
        return found

    def _refusal(self, ip: str, port: int) -> str | None:
        if "%" in ip:
            return f"{ip} is an address with a scope"
        address = ipaddress.ip_address(ip)
        if any(address in network for network in self._allowed if network.version == address.version):
            return None
        if not is_public(ip):
            return f"{ip} is not a public address"
        return None if port in self._ports else f"port {port} is not one of ingest.ports"

    def _resolved(self, host: str) -> list[Address]:
        with self._lock:
            until, found = self._known.get(host, (0.0, []))
        if until < time.monotonic():
            found = _ask(host)
            with self._lock:
                self._known.pop(host, None)
                self._known[host] = (time.monotonic() + KNOWN_FOR_S, found)
                if len(self._known) > MOST_NAMES:
                    del self._known[next(iter(self._known))]  # the oldest
        if isinstance(found, FetchError):
            raise found.again()
        return found


def _ask(host: str) -> list[Address] | FetchError:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return FetchError(sample.DNS, f"{host}: {error}")
    found = [Address(int(family), str(place[0])) for family, _, _, _, place in answers]
    return list(dict.fromkeys(found)) or FetchError(sample.DNS, f"{host}: no address")
