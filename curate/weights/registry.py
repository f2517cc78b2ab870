"""The registry of model weights: what may be loaded, where it comes from, and whether a file is the one that was meant.

`infra/weights.yaml` is the registry. Files lie flat in one folder (`--weights-dir`, else $DARKROOM_WEIGHTS, else
`~/.cache/darkroom/weights`), named after their entry, so a folder filled on one machine serves a cluster without
internet. Nothing here imports torch, and no file format that has to be unpickled freely is accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import secrets
import shlex
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from curate.bad_input import BadInput

REGISTRY_FILE = Path(__file__).resolve().parents[2] / "infra" / "weights.yaml"
PINS_FILE = "pins.json"
FORMATS = (".safetensors", ".npz", ".npy", ".pth", ".zip", ".onnx")
"""None is unpickled freely: .pth by torch.load(weights_only=True), .npz and .npy without pickles, .zip is a SavedModel
of which the checkpoint's variables are read, .onnx is for OpenCV."""
KINDS = ("open_clip", "diffusers", "head", "inception", "face_detector")
SCHEMES = ("https", "http", "file")
CHUNK_BYTES = 1 << 20

MISSING = "missing"
UNPINNED = "no checksum is recorded"
WRONG_CHECKSUM = "wrong checksum"


class MissingWeights(FileNotFoundError):
    """The files of registered entries, `names`, are not in the weights folder."""

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class UnknownWeights(BadInput):
    """The registry has no entry of that name."""


class UnpinnedWeights(BadInput):
    """The entry has no checksum, and the user has not accepted one."""


class WrongChecksum(BadInput):
    """The bytes that arrived are not the bytes that were registered."""


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
    return find(registry(registry_file), name)


def default_weights_dir() -> Path:
    """Return $DARKROOM_WEIGHTS, or the folder in the user's cache where it is not set."""
    named = os.environ.get("DARKROOM_WEIGHTS")
    return Path(named) if named else Path.home() / ".cache" / "darkroom" / "weights"


def path_of(name: str, weights_dir: Path | None = None, registry_file: Path | None = None) -> Path:
    """Return the local file of an entry without hashing it; MissingWeights says how to get it."""
    weight = find(registry(registry_file), name)
    path = (weights_dir or default_weights_dir()) / weight.file_name
    if path.is_file():
        return path
    command = _fetch_command(weight, weights_dir, registry_file)
    raise MissingWeights(f"weights {name!r} are not at {path}; get them with: {command}", (name,))


def checked_path_of(name: str, weights_dir: Path | None = None, registry_file: Path | None = None) -> Path:
    """Return the local file of an entry after hashing it; raises MissingWeights or WrongChecksum.

    An entry without a checksum, registered or pinned, is taken as it is.
    """
    path = path_of(name, weights_dir, registry_file)
    weight = find(registry(registry_file), name)
    if problem_of(weight, path.parent) == WRONG_CHECKSUM:
        command = _fetch_command(weight, weights_dir, registry_file)
        raise WrongChecksum(f"weights {name!r}: {path} is not the registered file; get it with: {command}")
    return path


def known_sha256(weight: Weight, weights_dir: Path) -> str | None:
    """Return the registered checksum, else the one the user has pinned, else None."""
    return weight.sha256 or pins_of(weights_dir).get(weight.name, {}).get("sha256")


def problem_of(weight: Weight, weights_dir: Path) -> str | None:
    """Hash the local file and return what is wrong with it; None means that it is the registered one."""
    path = weights_dir / weight.file_name
    if not path.is_file():
        return MISSING
    expected = known_sha256(weight, weights_dir)
    if expected is None:
        return UNPINNED
    return None if sha256_of(path) == expected else WRONG_CHECKSUM


def pins_of(weights_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the checksums that the user has accepted, by entry."""
    path = weights_dir / PINS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def record(weight: Weight, weights_dir: Path, sha256: str) -> None:
    """Record the user's acceptance of a checksum and print it, so that it can go into the registry."""
    num_bytes = (weights_dir / weight.file_name).stat().st_size
    pins = pins_of(weights_dir) | {weight.name: {"sha256": sha256, "num_bytes": num_bytes, "revision": weight.revision}}
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


def find(weights: dict[str, Weight], name: str) -> Weight:
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


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in chunks_of(file):
            digest.update(chunk)
    return digest.hexdigest()


def chunks_of(file: BinaryIO) -> Iterable[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
