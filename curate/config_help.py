"""What --help shows: what a command does, reads and writes, an example, and the settings that matter to it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import NoReturn, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from curate.command_line import EXIT_CODES, stop
from curate.config_keys import all_keys, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a newcomer must know of a command."""

    command: str
    """As it is typed, such as python pipelines/dedup.py."""
    example: str
    """One line to copy."""
    reads: str
    writes: str
    sections: tuple[str, ...] = ()
    """Sections of the settings that --help lists in full; the others get one line each."""
    hidden: tuple[str, ...] = ()
    """Sections and settings that are not this command's at all; --help does not name them."""


class Formatter(DefaultHelpFormatter):
    """jsonargparse's formatter with the text around the options as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return (
            action.help or "" if action.nargs == 0 else super()._get_help_string(action)
        )  # switches are off by default

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


class PlainParser(argparse.ArgumentParser):
    """argparse for a command without settings: the same help, and one line for what is wrong."""

    def __init__(self, prog: str, description: str, about: About) -> None:
        super().__init__(
            prog=prog,
            usage=f"{about.command} [--FLAG VALUE]...",
            description="\n".join([description, "", *_places(about)]),
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error, not only its line")

    def error(self, message: str) -> NoReturn:
        """End the process with one line; for a flag that is not known it names the nearest one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            name = unknown.split(" ")[0].split("=")[0]
            stop(self.prog, f"unknown argument {name}{did_you_mean(name, known)}")
        stop(self.prog, message)


def add_help(parser: ArgumentParser) -> None:
    """Give a parser --help, which is short, and --help-all."""
    parser.add_argument("-h", "--help", action="store_true", help="show this text and exit")
    parser.add_argument("--help-all", action="store_true", help="the same with every setting")


def show_help(parser: ArgumentParser, kind: type, about: About, argv: Sequence[str]) -> None:
    """Print the help that was asked for and end the process; return where none was."""
    if not {"-h", "--help", "--help-all"} & set(argv):
        return
    everything = "--help-all" in argv
    nested = {name for name, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}
    parser.usage = f"{about.command} [--config FILE]... [--SETTING VALUE]..."
    parser.description = "\n".join([parser.description or "", "", *_places(about)])
    parser.epilog = EXIT_CODES if everything else "\n".join([*_sections(kind, nested, about), EXIT_CODES])
    for action in [] if everything else parser._actions:
        section = action.dest.split(".")[0]
        elsewhere = section in nested and (section not in about.sections or action.dest == section)
        if elsewhere or section in about.hidden:
            action.help = argparse.SUPPRESS
    parser.print_help()
    sys.exit(0)


def _places(about: About) -> list[str]:
    return [f"reads    {about.reads}", f"writes   {about.writes}", f"example  {about.example}"]


def _sections(kind: type, nested: set[str], about: About) -> list[str]:
    """Return a line for each section that is not listed in full."""
    rest = [name for name in get_type_hints(kind) if name in nested - {*about.sections, *about.hidden}]
    if not rest:
        return []
    docs = {name: (get_type_hints(kind)[name].__doc__ or "").splitlines()[0] for name in rest}
    lines = [f"  --{name + '.*':<20} {_count(kind, name):>3}  {docs[name]}" for name in rest]
    return ["further settings, as flags or in the file; --help-all says what each one means:", *lines, ""]


def _count(kind: type, section: str) -> int:
    return sum(name.startswith(f"{section}.") for name in all_keys(kind))
