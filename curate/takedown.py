"""Samples that must go and stay away: by uid, by URL, by the bytes of the picture. Only hashes are kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.bad_input import BadInput

URLS = ("url", "final_url")
"""Columns of samples with a URL: the listed one, and the one that redirects led to."""
_DIGITS = {"uids": 32, "urls_sha256": 64, "sha256": 64}


@dataclass(frozen=True, kw_only=True)
class TakenDown:
    """The list, as hashes in small hex letters."""

    uids: frozenset[str] = frozenset()
    """uids of samples, which are hashes of source, URL and caption."""
    urls_sha256: frozenset[str] = frozenset()
    """SHA-256 of URLs."""
    sha256: frozenset[str] = frozenset()
    """SHA-256 of the original bytes."""

    def __post_init__(self) -> None:
        for name, digits in _DIGITS.items():
            for value in getattr(self, name):
                if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
                    raise BadInput(f"{name} = {value[:80]!r}: must be {digits} hex digits in small letters")

    def __or__(self, other: TakenDown) -> TakenDown:
        return TakenDown(**{name: getattr(self, name) | getattr(other, name) for name in _DIGITS})

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in _DIGITS)

    def columns(self) -> list[str]:
        """Return the columns of samples that `rows` looks at."""
        return ["uid", *(URLS if self.urls_sha256 else []), *(["sha256"] if self.sha256 else [])]

    def rows(self, samples: Mapping[str, Any] | pa.Table) -> np.ndarray:
        """Return which rows are on the list, bool (N,), by the columns of `columns`, as far as they are there."""
        there = samples.column_names if isinstance(samples, pa.Table) else samples.keys()
        hit = np.array(among(samples["uid"], self.uids), bool)
        if self.sha256:
            hit |= np.array(among(samples["sha256"], self.sha256), bool)
        for column in URLS if self.urls_sha256 else ():
            if column in there:
                hit |= np.array([self.has_url(url) for url in samples[column].to_pylist()], bool)
        return hit

    def has(self, uid: str, url: str | None) -> bool:
        """Return whether a sample is on the list, by what is known of it before its bytes are."""
        return uid in self.uids or self.has_url(url)

    def has_url(self, url: str | None) -> bool:
        """Return whether a URL is on the list."""
        return bool(self.urls_sha256) and url_sha256(url) in self.urls_sha256


NOTHING_TAKEN_DOWN = TakenDown()


def url_sha256(url: str | None) -> str | None:
    """Return the hash under which a URL is kept; None has none."""
    return None if url is None else hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def asked_for(uids: Iterable[str] = (), urls: Iterable[str] = (), sha256: Iterable[str] = ()) -> TakenDown:
    """Return a list of what somebody asks to take down; raises ValueError for what is no uid or no SHA-256."""
    hashed = frozenset(str(url_sha256(url)) for url in urls)
    return TakenDown(
        uids=frozenset(uid.strip().lower() for uid in uids),
        urls_sha256=hashed,
        sha256=frozenset(digest.strip().lower() for digest in sha256),
    )


def among(column: Any, wanted: frozenset[str]) -> Any:
    """Return which values of a column of pyarrow are wanted, as one of booleans."""
    return pc.is_in(column, value_set=pa.array(sorted(wanted), pa.string()))
