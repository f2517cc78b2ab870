"""Model weights: what may be loaded, where it comes from, and whether the file is the one that was meant.

    python -m curate.weights list
    python -m curate.weights fetch NAME... [--pin]
    python -m curate.weights verify [NAME...]

`infra/weights.yaml` is the registry. Files lie flat in one folder (`--weights-dir`, else $DARKROOM_WEIGHTS, else
`~/.cache/darkroom/weights`), named after their entry, so a folder filled on one machine serves a cluster without
internet. Nothing here imports torch, and no file format that has to be unpickled freely is accepted.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import http.client
import json
import os
import re
import secrets
import shlex
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from curate.bad_input import BadInput
from curate.command_line import BAD, DONE, EXIT_CODES, FAILED, INTERRUPTED

REGISTRY_FILE = Path(__file__).resolve().parent.parent / "infra" / "weights.yaml"
PINS_FILE = "pins.json"
FORMATS = (".safetensors", ".npz", ".npy", ".pth", ".zip")
"""None is unpickled freely: .pth by torch.load(weights_only=True), .npz and .npy without pickles, .zip is a SavedModel
of which the checkpoint's variables are read."""
KINDS = ("open_clip", "diffusers", "head")
SCHEMES = ("https", "http", "file")
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
PROGRESS_EVERY_S = 0.5

MISSING = "missing"
UNPINNED = "no checksum is recorded"
WRONG_CHECKSUM = "wrong checksum"


class MissingWeights(FileNotFoundError):
    """The file of a registered entry is not in the weights folder."""


class UnknownWeights(BadInput):
    """The registry has no entry of that name."""


class UnpinnedWeights(BadInput):
    """The entry has no checksum, and the user has not accepted one."""


class WrongChecksum(BadInput):
    """The bytes that arrived are not the bytes that were registered."""


class FetchFailed(OSError):
    """No URL of the entry delivered the whole file."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One entry of the registry."""

    name: str
    kind: str
    """Which loader reads it, one of KINDS."""
    urls: tuple[str, ...]
    """Tried in this order; http, https and file."""
    sha256: str | None
    """64 hex digits; None where nobody has established it yet."""
    num_bytes: int | None
    licence: str
    purpose: str
    revision: str
    """Commit or branch of the source that the URLs name."""
    head: dict[str, Any] | None = None
    """The network of a head, read by curate.heads."""

    def __post_init__(self) -> None:
        schemes = {urllib.parse.urlsplit(url).scheme for url in self.urls}
        suffixes = {_suffix(url) for url in self.urls}
        sha256_ok = self.sha256 is None or re.fullmatch("[0-9a-f]{64}", self.sha256) is not None
        num_bytes_ok = self.num_bytes is None or self.num_bytes > 0
        self._require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}")
        self._require(len(self.urls) > 0, "urls", "at least one")
        self._require(schemes <= set(SCHEMES), "urls", f"{', '.join(SCHEMES)}")
        self._require(len(suffixes) == 1 and suffixes <= set(FORMATS), "urls", f"of one format, {', '.join(FORMATS)}")
        self._require(sha256_ok, "sha256", "64 lower-case hex digits, or null")
        self._require(num_bytes_ok, "num_bytes", "a positive number, or null")

    def _require(self, condition: bool, field: str, fix: str) -> None:
        if not condition:
            raise BadInput(f"weights {self.name!r}: {field} = {getattr(self, field)!r}: must be {fix}")

    @property
    def file_name(self) -> str:
        return self.name + _suffix(self.urls[0])


def registry(registry_file: Path | None = None) -> dict[str, Weight]:
    """Return every entry of the registry file by name; ValueError names a field that is wrong."""
    path = registry_file or REGISTRY_FILE
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["weights"]
    return {name: _entry(path, name, fields) for name, fields in entries.items()}


def registered(name: str, registry_file: Path | None = None) -> Weight:
    """Return one entry; UnknownWeights suggests names that are near."""
    return _find(registry(registry_file), name)


def default_weights_dir() -> Path:
    """Return $DARKROOM_WEIGHTS, or the folder in the user's cache where it is not set."""
    named = os.environ.get("DARKROOM_WEIGHTS")
    return Path(named) if named else Path.home() / ".cache" / "darkroom" / "weights"


def path_of(name: str, weights_dir: Path | None = None, registry_file: Path | None = None) -> Path:
    """Return the local file of an entry without hashing it; MissingWeights says how to get it."""
    weight = _find(registry(registry_file), name)
    path = (weights_dir or default_weights_dir()) / weight.file_name
    if path.is_file():
        return path
    command = _fetch_command(weight, weights_dir, registry_file)
    raise MissingWeights(f"weights {name!r} are not at {path}; get them with: {command}")


def checked_path_of(name: str, weights_dir: Path | None = None, registry_file: Path | None = None) -> Path:
    """Return the local file of an entry after hashing it; raises MissingWeights or WrongChecksum.

    An entry without a checksum, registered or pinned, is taken as it is.
    """
    path = path_of(name, weights_dir, registry_file)
    weight = _find(registry(registry_file), name)
    if problem_of(weight, path.parent) == WRONG_CHECKSUM:
        command = _fetch_command(weight, weights_dir, registry_file)
        raise WrongChecksum(f"weights {name!r}: {path} is not the registered file; get it with: {command}")
    return path


def known_sha256(weight: Weight, weights_dir: Path) -> str | None:
    """Return the registered checksum, else the one the user has pinned, else None."""
    return weight.sha256 or _pins(weights_dir).get(weight.name, {}).get("sha256")


def problem_of(weight: Weight, weights_dir: Path) -> str | None:
    """Hash the local file and return what is wrong with it; None means that it is the registered one."""
    path = weights_dir / weight.file_name
    if not path.is_file():
        return MISSING
    expected = known_sha256(weight, weights_dir)
    if expected is None:
        return UNPINNED
    return None if _sha256_of(path) == expected else WRONG_CHECKSUM


def fetch(weight: Weight, weights_dir: Path, *, pin: bool = False) -> Path:
    """Return the verified local file, downloaded where it is missing or wrong.

    `pin` accepts whatever arrives for an entry without a checksum (or the file that is already there) and
    records its sum. Raises UnpinnedWeights, WrongChecksum or FetchFailed, and then leaves nothing behind.
    """
    path = weights_dir / weight.file_name
    expected = known_sha256(weight, weights_dir)
    if expected is None and not pin:
        raise UnpinnedWeights(f"{weight.name}: {UNPINNED}; to accept and record what arrives, add --pin")
    found = _sha256_of(path) if path.is_file() else None
    if found is None or (expected is not None and found != expected):
        found = _download(weight, path, expected)
    if expected is None:
        _pin(weight, weights_dir, found)
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
        for chunk in _chunks(response):
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
            line = f"{self.name}: {_size(self.num_bytes)} of {_size(self.total_bytes)}"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        start = "\r\033[K" if sys.stderr.isatty() else ""
        seconds = time.monotonic() - self.started_s
        print(f"{start}{self.name}: {_size(self.num_bytes)} in {seconds:.1f} s", file=sys.stderr)


def _pins(weights_dir: Path) -> dict[str, dict[str, Any]]:
    path = weights_dir / PINS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _pin(weight: Weight, weights_dir: Path, sha256: str) -> None:
    """Record the user's acceptance of a checksum and print it, so that it can go into the registry."""
    num_bytes = (weights_dir / weight.file_name).stat().st_size
    pins = _pins(weights_dir) | {weight.name: {"sha256": sha256, "num_bytes": num_bytes, "revision": weight.revision}}
    temporary = weights_dir / f".{PINS_FILE}.{secrets.token_hex(4)}.part"
    temporary.write_text(json.dumps(pins, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, weights_dir / PINS_FILE)
    print(f"{weight.name}: pinned sha256 {sha256} ({num_bytes} bytes) in {weights_dir / PINS_FILE}")


def _entry(path: Path, name: str, fields: dict[str, Any]) -> Weight:
    """Return one entry; a missing or unknown key is a ValueError that names it."""
    expected = {field.name for field in dataclasses.fields(Weight)} - {"name"}
    wrong = set(fields) ^ expected - ({"head"} - set(fields))
    if wrong:
        raise BadInput(f"{path}: {name}: missing or unknown fields {sorted(wrong)}")
    return Weight(name=name, **(fields | {"urls": tuple(fields["urls"])}))


def _find(weights: dict[str, Weight], name: str) -> Weight:
    if name in weights:
        return weights[name]
    near = difflib.get_close_matches(name, weights, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "see: python -m curate.weights list"
    raise UnknownWeights(f"no weights named {name!r} are registered; {hint}")


def _fetch_command(weight: Weight, weights_dir: Path | None, registry_file: Path | None) -> str:
    words = ["python", "-m", "curate.weights", "fetch", weight.name]
    words += ["--pin"] if weight.sha256 is None else []
    words += ["--weights-dir", str(weights_dir)] if weights_dir else []
    words += ["--registry", str(registry_file)] if registry_file else []
    return shlex.join(words)


def _suffix(url: str) -> str:
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).suffix


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO) -> Iterable[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "?"
    unit_bytes, unit = next((unit for unit in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= unit[0]), (1e3, "kB"))
    return f"{num_bytes / unit_bytes:.2f} {unit}"


ABOUT = """List, fetch and verify model weights.

reads    infra/weights.yaml: address, checksum and licence of every model
writes   $DARKROOM_WEIGHTS, or the folder darkroom/weights in the user's cache
example  python -m curate.weights fetch clip_vit_l14_openai aesthetic_v2"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; what the user can mend is one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (BadInput, OSError) as error:
        if args.debug:
            raise
        print(f"curate.weights: {error}", file=sys.stderr)
        return BAD if isinstance(error, UnknownWeights) else FAILED
    except KeyboardInterrupt:
        print("curate.weights: stopped; whole files are kept: run the same command to go on", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument(
        "--weights-dir", type=Path, help="folder of the files (default: $DARKROOM_WEIGHTS, or the user's cache)"
    )
    places.add_argument("--debug", action="store_true", help="show the traceback of an error, not only its line")
    places.add_argument("--registry", type=Path, help="registry file (default: infra/weights.yaml)")
    parser = argparse.ArgumentParser(
        prog="python -m curate.weights",
        description=ABOUT,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", parents=[places], help="print every entry and whether it is here")
    listing.add_argument("--json", action="store_true", help="print a JSON list instead")
    listing.set_defaults(run=_list)
    fetching = commands.add_parser("fetch", parents=[places], help="download and verify entries")
    fetching.add_argument("names", nargs="+", metavar="NAME")
    fetching.add_argument("--pin", action="store_true", help="accept and record the sum of an entry that has none")
    fetching.set_defaults(run=_fetch)
    verifying = commands.add_parser("verify", parents=[places], help="hash the files that are here")
    verifying.add_argument("names", nargs="*", metavar="NAME", help="these must be here (default: whatever is here)")
    verifying.set_defaults(run=_verify)
    return parser


def _list(args: argparse.Namespace) -> int:
    weights_dir = args.weights_dir or default_weights_dir()
    found = registry(args.registry).values()
    if args.json:
        said = [dataclasses.asdict(one) | {"here": (weights_dir / one.file_name).is_file()} for one in found]
        print(json.dumps(said))
        return DONE
    for weight in found:
        here = "here" if (weights_dir / weight.file_name).is_file() else "-"
        checked = "sha256" if known_sha256(weight, weights_dir) else "unpinned"
        size = _size(weight.num_bytes)
        print(f"{weight.name:<26}{weight.kind:<11}{here:<6}{checked:<10}{size:<11}{weight.licence:<13}{weight.purpose}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    weights = registry(args.registry)
    chosen = [_find(weights, name) for name in args.names]
    for weight in chosen:
        print(f"{weight.name}: {fetch(weight, args.weights_dir or default_weights_dir(), pin=args.pin)}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Print one line for each entry; 1 where a file is wrong, unpinned, or named and missing."""
    weights_dir = args.weights_dir or default_weights_dir()
    weights = registry(args.registry)
    chosen = [_find(weights, name) for name in args.names] or list(weights.values())
    problems = {weight.name: problem_of(weight, weights_dir) for weight in chosen}
    for weight in chosen:
        print(f"{weight.name:<26}{problems[weight.name] or 'ok'}")
    tolerated = {None} if args.names else {None, MISSING}
    if all(problem == MISSING for problem in problems.values()):
        print(f"curate.weights: nothing to verify in {weights_dir}", file=sys.stderr)
        return 1
    return 0 if set(problems.values()) <= tolerated else 1


if __name__ == "__main__":
    sys.exit(main())
