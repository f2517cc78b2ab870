"""The real argument parsers of the project's commands, asked without running what follows them."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import jsonargparse

PROJECT = Path(__file__).resolve().parents[1]
MODULES = (
    "curate.weights",
    "train.run",
    "train.export",
    "train.sample",
    "train.index",
    "train.data",
    "train.checkpoint",
    "train.plan",
    "train.evaluate",
)
"""Commands that are started by `python -m`; those in pipelines and infra/bench are files."""
WITHOUT_FLAGS = ("pipelines/demo.py",)
READ_BY_HAND = {"--stage", "--init"}
"""Flags that their command takes out of the line before any parser sees it."""


class Parsed(BaseException):
    """The command line was understood; nothing catches this but `parser_of`."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(words: list[str]) -> argparse.ArgumentParser | None:
    """Return the parser that took `-m MODULE ...` or `FILE ...`; None where `--init` needed none.

    Raises SystemExit where the command refuses its words.
    """
    with _stopped_behind_the_parser(words):
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(PROJECT / words[0]), run_name="__main__")
        except Parsed as parsed:
            return parsed.parser
    assert "--init" in words, f"{words}: no parser was asked"
    return None


@contextmanager
def _stopped_behind_the_parser(words: list[str]) -> Iterator[None]:
    argv = words[1:] if words[0] == "-m" else [str(PROJECT / words[0]), *words[1:]]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(mock.patch.object(sys, "path", [str(PROJECT), *sys.path]))
        for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            stack.enter_context(mock.patch.object(kind, "parse_args", _stopping(kind.parse_args)))
        yield


def _stopping(parse_args):  # noqa: ANN001, ANN202 - argparse's method
    def parse(self, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        parse_args(self, *args, **kwargs)
        raise Parsed(self)

    return parse


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return every flag of a parser and of its subcommands."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for inner in action.choices.values() for flag in flags_of(inner)}
    return found


def scripts() -> list[str]:
    """Return every command of `pipelines/`."""
    files = sorted((PROJECT / "pipelines").glob("*.py"))
    named = [
        f"pipelines/{file.name}" for file in files if 'if __name__ == "__main__":\n    sys.path' in file.read_text()
    ]
    return [name for name in named if name not in WITHOUT_FLAGS]
