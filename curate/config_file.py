"""One YAML file and one command line, read into frozen dataclasses through jsonargparse.

Every command of the project, curation and training alike, reads its settings here: first the
defaults, then the file (`--config FILE`, or `darkroom.yaml` in the working directory), then
`--field.sub value` flags. A misspelt key, a wrong type or an impossible value is one line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

DEFAULT_FILE = "darkroom.yaml"
HOW_TO_START = f"no {DEFAULT_FILE} here and no --config: make one with python pipelines/run.py --init"

T = TypeVar("T")


def read_settings(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    section: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    default: T | None = None,
    add_flags: Callable[[ArgumentParser], None] | None = None,
) -> tuple[T, Namespace]:
    """Return the settings of type `kind` and the namespace with the values of `add_flags`.

    `section` picks this command's part of the whole document (and raises ValueError for what it
    does not know); `default` is the complete settings that file and flags override. Bad input
    ends the process with code 2 and one line that names the field.
    """
    parser = _parser(kind, prog, description, default, add_flags)
    try:
        words = [word for word in argv if word != "--print_config"]
        cfg = parser.parse_args(words, namespace=_from_file(parser, argv, section))
        settings = kind(**vars(parser.instantiate(_only(cfg, kind))))
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        stop(prog, str(error))
    if len(words) < len(argv):
        print(yaml.safe_dump(as_dict(settings), sort_keys=False), end="")
        sys.exit(0)
    return settings, cfg


def from_dict(kind: type[T], said: dict[str, Any]) -> T:
    """Return settings from plain values, such as a manifest holds; raises ValueError naming what is wrong."""
    parser = _parser(kind, kind.__name__, "", None, None)
    try:
        cfg = parser.parse_object(said, defaults=True)
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    return kind(**vars(parser.instantiate(_only(cfg, kind))))


def stop(prog: str, message: str) -> NoReturn:
    """Print one line on stderr and end the process with code 2."""
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"{prog}: {line}", file=sys.stderr)
    sys.exit(2)


def as_dict(settings: Any) -> Any:
    """Return a dataclass, or values that are plain already, as JSON values: for YAML, run.json and digests."""
    is_settings = dataclasses.is_dataclass(settings) and not isinstance(settings, type)
    plain = dataclasses.asdict(settings) if is_settings else settings
    return json.loads(json.dumps(plain))


def _parser(kind: type, prog: str, description: str, default: Any, add_flags: Any) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config", type=str, default=None, help=f"YAML file with the settings (default: {DEFAULT_FILE})"
    )
    parser.add_argument("--print_config", action="store_true", help="print the complete settings as YAML and exit")
    if add_flags is not None:
        add_flags(parser)
    parser.add_class_arguments(kind)
    if default is not None:
        parser.set_defaults(as_dict(default))
    return parser


def _from_file(parser: ArgumentParser, argv: Sequence[str], section: Any) -> Namespace | None:
    """Return the parsed file, or None where there is none and none was asked for."""
    path = _config_path(argv)
    if path is None:
        if (
            not any(a in ("-h", "--help") for a in argv)
            and parser.get_default("root") is None
            and _flag(argv, "--root") is None
        ):
            raise ValueError(HOW_TO_START)
        return None
    document = yaml.safe_load(path.read_text()) or {}
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(document).__name__}")
    root = _flag(argv, "--root")
    try:
        return parser.parse_object(section(document) | ({"root": root} if root else {}), defaults=True)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _config_path(argv: Sequence[str]) -> Path | None:
    named = _flag(argv, "--config")
    if named is not None:
        return Path(named)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else None


def _flag(argv: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(argv):
        if word == name and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith(name + "="):
            return word.removeprefix(name + "=")
    return None


def _only(cfg: Namespace, kind: type) -> Namespace:
    """Return the namespace of `kind`'s own fields, without the command's flags."""
    return Namespace(**{f.name: cfg[f.name] for f in dataclasses.fields(kind)})
