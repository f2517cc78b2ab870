"""Fetching of model weights: published only after their checksum was accepted."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import sys
import time
import urllib.request
from pathlib import Path
from typing import BinaryIO

from curate.weights.registry import (
    UNPINNED,
    WRONG_CHECKSUM,
    UnpinnedWeights,
    Weight,
    WrongChecksum,
    chunks_of,
    known_sha256,
    record,
    sha256_of,
)

TIMEOUT_S = 60.0
PROGRESS_EVERY_S = 0.5


class FetchFailed(OSError):
    """No URL of the entry delivered the whole file."""


def fetch(weight: Weight, weights_dir: Path, *, pin: bool = False) -> Path:
    """Return the verified local file, downloaded where it is missing or wrong.

    `pin` accepts whatever arrives for an entry without a checksum (or the file that is already there) and
    records its sum. Raises UnpinnedWeights, WrongChecksum or FetchFailed, and then leaves nothing behind.
    """
    path = weights_dir / weight.file_name
    expected = known_sha256(weight, weights_dir)
    if expected is None and not pin:
        raise UnpinnedWeights(f"{weight.name}: {UNPINNED}; to accept and record what arrives, add --pin")
    found = sha256_of(path) if path.is_file() else None
    if found is None or (expected is not None and found != expected):
        found = _download(weight, path, expected)
    if expected is None:
        record(weight, weights_dir, found)
    return path


def _download(weight: Weight, path: Path, expected: str | None) -> str:
    """Publish the file at `path` only after its checksum was accepted, and return the checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        found = _first_that_answers(weight, temporary)
        if expected is not None and found != expected:
            raise WrongChecksum(f"{weight.name}: {WRONG_CHECKSUM}: expected {expected}, got {found}; refused")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _first_that_answers(weight: Weight, temporary: Path) -> str:
    failures = []
    for url in weight.urls:
        try:
            return _stream(weight, url, temporary)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    raise FetchFailed(f"{weight.name}: not fetched: " + "; ".join(failures))


def _stream(weight: Weight, url: str, temporary: Path) -> str:
    """Copy one URL to disk and return its sha256; FetchFailed where its length is not the expected one."""
    with _opener().open(url, timeout=TIMEOUT_S) as response:
        announced = response.headers.get("Content-Length")
        total_bytes = weight.num_bytes or (int(announced) if announced else None)
        sha256, num_bytes = _copy(response, temporary, _Progress(weight.name, total_bytes))
    if total_bytes is not None and num_bytes != total_bytes:
        raise FetchFailed(f"expected {total_bytes} bytes, got {num_bytes}{' and more' * (num_bytes > total_bytes)}")
    return sha256


def _copy(response: BinaryIO, temporary: Path, progress: _Progress) -> tuple[str, int]:
    """Write the response to stable storage, no further than the expected length, and return its sum and length."""
    digest = hashlib.sha256()
    with open(temporary, "wb") as out:
        for chunk in chunks_of(response):
            out.write(chunk)
            digest.update(chunk)
            progress.add(len(chunk))
            if progress.total_bytes is not None and progress.num_bytes > progress.total_bytes:
                break
        out.flush()
        os.fsync(out.fileno())
    progress.close()
    return digest.hexdigest(), progress.num_bytes


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http, https and file alone; a redirect can't lead to a file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.FileHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Progress:
    """One line on stderr that is rewritten on a terminal and written once elsewhere."""

    def __init__(self, name: str, total_bytes: int | None) -> None:
        self.name = name
        self.total_bytes = total_bytes
        self.num_bytes = 0
        self.started_s = self.shown_s = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if sys.stderr.isatty() and time.monotonic() - self.shown_s > PROGRESS_EVERY_S:
            self.shown_s = time.monotonic()
            line = f"{self.name}: {size_of(self.num_bytes)} of {size_of(self.total_bytes)}"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        start = "\r\033[K" if sys.stderr.isatty() else ""
        seconds = time.monotonic() - self.started_s
        print(f"{start}{self.name}: {size_of(self.num_bytes)} in {seconds:.1f} s", file=sys.stderr)


def size_of(num_bytes: int | None) -> str:
    """Return a size for people."""
    if num_bytes is None:
        return "?"
    unit_bytes, unit = next((unit for unit in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= unit[0]), (1e3, "kB"))
    return f"{num_bytes / unit_bytes:.2f} {unit}"
