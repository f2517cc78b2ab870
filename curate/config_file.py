"""YAML files and one command line, read into frozen dataclasses through jsonargparse.

Every command of the project, curation and training alike, reads its settings here: first the
defaults, then the files (`--config FILE`, any number of them, or `darkroom.yaml` in the working
directory), then `--field.sub value` flags. Later files go over earlier ones, key by key; a list is
replaced as a whole. A misspelt key, a wrong type or an impossible value is one line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from curate.bad_input import BadInput
from curate.command_line import stop
from curate.config_help import About, Formatter, add_help, show_help
from curate.config_keys import refuse, unknown_flags, unknown_keys, wrong_value

DEFAULT_FILE = "darkroom.yaml"
HOW_TO_START = f"no {DEFAULT_FILE} here and no --config: make one with python pipelines/run.py --init"
PRINT = ("--print_config", "--print-config")

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
    about: About | None = None,
) -> tuple[T, Namespace]:
    """Return the settings of type `kind` and the namespace with the values of `add_flags`.

    `section` picks this command's part of the whole document (and raises BadInput for what it
    does not know); `default` is the complete settings that files and flags override; `about` is
    what --help says beside them. Bad input ends the process with code 2 and one line.
    """
    parser = _parser(kind, prog, description, default, add_flags)
    show_help(parser, kind, about or About(command=prog, example=f"{prog} --config FILE", reads="", writes=""), argv)
    words = [word for word in argv if word not in PRINT]
    try:
        refuse(unknown_flags(kind, words, parser._option_string_actions))
        cfg = parser.parse_args(words, namespace=_from_files(parser, argv, section, kind))
        settings = kind(**vars(parser.instantiate(_only(cfg, kind))))
    except ArgumentError as error:
        stop(prog, wrong_value(str(error)))
    except (BadInput, OSError) as error:
        stop(prog, str(error))
    if len(words) < len(argv):
        print(yaml.safe_dump(as_dict(settings), sort_keys=False), end="")
        sys.exit(0)
    return settings, cfg


def from_dict(kind: type[T], said: dict[str, Any]) -> T:
    """Return settings from plain values, such as a manifest holds; raises BadInput naming what is wrong."""
    parser = _parser(kind, kind.__name__, "", None, None)
    try:
        cfg = parser.parse_object(said, defaults=True)
    except ArgumentError as error:
        raise BadInput(wrong_value(str(error))) from error
    return kind(**vars(parser.instantiate(_only(cfg, kind))))


def as_dict(settings: Any) -> Any:
    """Return a dataclass, or values that are plain already, as JSON values: for YAML, run.json and digests."""
    is_settings = dataclasses.is_dataclass(settings) and not isinstance(settings, type)
    plain = dataclasses.asdict(settings) if is_settings else settings
    return json.loads(json.dumps(plain))


def _parser(kind: type, prog: str, description: str, default: Any, add_flags: Any) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        description=description.strip(),
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
        formatter_class=Formatter,
    )
    add_help(parser)
    parser.add_argument(
        "--config",
        type=str,
        action="append",
        metavar="FILE",
        help=f"YAML file with settings; given again, the later file goes over the earlier (default: {DEFAULT_FILE})",
    )
    parser.add_argument(*PRINT, action="store_true", help="print the complete settings as YAML and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, not only its line")
    if add_flags is not None:
        add_flags(parser)
    parser.add_class_arguments(kind)
    if default is not None:
        parser.set_defaults(as_dict(default))
    return parser


def _from_files(parser: ArgumentParser, argv: Sequence[str], section: Any, kind: type) -> Namespace | None:
    """Return the parsed files, or None where there is none and none was asked for."""
    paths = _config_paths(argv)
    roots = _values(argv, "--root")
    if not paths:
        if parser.get_default("root") is None and not roots:
            raise BadInput(HOW_TO_START)
        return None
    documents = [_read(path) for path in paths]
    for path, document in zip(paths, documents, strict=True):
        try:
            refuse(unknown_keys(kind, section(document)))
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
    merged = section(reduce(_over, documents)) | ({"root": roots[-1]} if roots else {})
    try:
        return parser.parse_object(merged, defaults=True)
    except ArgumentError as error:
        raise BadInput(f"{', '.join(map(str, paths))}: {wrong_value(str(error))}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise BadInput(f"{path}, line {line}: no valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: no valid YAML: {error}") from error
    except OSError as error:
        fix = "give a YAML file of settings; python pipelines/run.py --init writes one to start from"
        raise BadInput(f"--config {path}: {str(error.strerror).lower()}: {fix}") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: expected a mapping of settings, got {type(document).__name__}")
    return document


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the upper mapping over the lower one, key by key at any depth."""
    both = {
        key: _over(below[key], value) if isinstance(below.get(key), dict) and isinstance(value, dict) else value
        for key, value in above.items()
    }
    return below | both


def _config_paths(argv: Sequence[str]) -> list[Path]:
    named = _values(argv, "--config")
    if named:
        return [Path(name) for name in named]
    return [Path(DEFAULT_FILE)] if Path(DEFAULT_FILE).exists() else []


def _values(argv: Sequence[str], name: str) -> list[str]:
    """Return every value of a flag, in order."""
    found = [word.removeprefix(f"{name}=") for word in argv if word.startswith(f"{name}=")]
    return found + [argv[at + 1] for at, word in enumerate(argv[:-1]) if word == name]


def _only(cfg: Namespace, kind: type) -> Namespace:
    """Return the namespace of `kind`'s own fields, without the command's flags."""
    return Namespace(**{f.name: cfg[f.name] for f in dataclasses.fields(kind)})
