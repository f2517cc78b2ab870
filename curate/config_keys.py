"""What the keys of the settings are called: misspelt ones with what was meant, wrong values in one line."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args, get_type_hints

from curate.bad_input import BadInput

WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
FEW = 12
"""Names that are listed where none is near; more of them would hide the message."""


def unknown_keys(kind: type, document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line for each key of a document that the dataclass does not have, at any depth."""
    hints = get_type_hints(kind)
    for key, value in document.items():
        if key not in hints:
            yield f"unknown key {prefix}{key}{_meant(f'{prefix}{key}', kind, prefix)}"
            continue
        for part, name in _parts(value, f"{prefix}{key}"):
            for nested in _dataclasses_in(hints[key]):
                yield from unknown_keys(nested, part, f"{name}.")


def unknown_flags(kind: type, words: Sequence[str], flags: Iterable[str]) -> Iterator[str]:
    """Yield a line for each `--flag` that is neither a command's own nor the dotted name of a setting."""
    known = set(flags)
    for word in words:
        name = word.split("=")[0]
        if not name.startswith("--") or name == "--" or name in known:
            continue
        path = name[2:].removesuffix("+")
        if not _resolves(kind, path.split(".")):
            meant = difflib.get_close_matches(name, sorted(flag for flag in known if "." not in flag), n=1, cutoff=0.75)
            yield f"unknown flag {name}{f': did you mean {meant[0]}?' if meant else _meant(path, kind, '', '--')}"


def refuse(lines: Iterable[str]) -> None:
    """Raise BadInput with the lines, where there are any."""
    found = list(lines)
    if found:
        raise BadInput("; ".join(found))


def did_you_mean(path: str, known: Iterable[str], dashes: str = "") -> str:
    """Return the end of a line about a name that is not known: the nearest one, or all where they are few."""
    names = sorted(known)
    parent, _, tail = path.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    near = difflib.get_close_matches(tail, beside, n=1, cutoff=0.6)
    near = [beside[tail] for tail in near] if beside else difflib.get_close_matches(path, names, n=1, cutoff=0.85)
    if near:
        return f": did you mean {dashes}{near[0]}?"
    return f"; known here: {', '.join(names)}" if len(names) <= FEW else "; --help-all lists every setting"


def wrong_value(message: str) -> str:
    """Return what jsonargparse says of a value in one line: `field = value: must be ...`."""
    own = re.search(r"^[\s-]*([\w.]+ = .*)$", message, re.MULTILINE)
    if own:
        return own[1]
    field = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if unknown := re.search(r"Option '(.+?)' is not accepted", message):
        return f"{field}: unknown key {unknown[1]}"
    if lacking := re.search(r"the following arguments are required: (.*)", message):
        return f"{field or 'settings'}: {lacking[1]} is missing"
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    expected = re.findall(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])", message)
    if not (field and value and expected):
        return re.sub(r"Problem with given class_path '[\w.]+':\s*", "", message)
    words = [f"one of {literal}" if literal else WORDS.get(kind, kind) for kind, literal in expected]
    return f"{field} = {value[1]}: must be {' or '.join(dict.fromkeys(words))}"


def all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting, those inside lists left out."""
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}"
        if not str(hint).startswith("tuple"):
            for nested in _dataclasses_in(hint):
                yield from all_keys(nested, f"{prefix}{name}.")


def _meant(path: str, kind: type, prefix: str, dashes: str = "") -> str:
    """Look beside the key first, then for the same last name anywhere, then for a name like the whole."""
    names = list(all_keys(kind))
    parent = path.rpartition(".")[0]
    beside = [name for name in names if name.rpartition(".")[0] == parent] if parent in names else names
    beside = [f"{prefix}{name}" for name in get_type_hints(kind)] if prefix else beside
    same = [name for name in names if name.split(".")[-1] == path.split(".")[-1]]
    if "." not in path and not same:  # the last name alone, as one is tempted to type it
        tails = {name.rpartition(".")[2]: name for name in reversed(names)}
        same = [tails[tail] for tail in difflib.get_close_matches(path, tails, n=1, cutoff=0.6)]
    return f": did you mean {dashes}{same[0]}?" if len(same) == 1 else did_you_mean(path, beside, dashes)


def _parts(value: Any, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the mappings in a value, each with what to call it."""
    if isinstance(value, dict):
        yield value, name
    if isinstance(value, list):
        for number, one in enumerate(value):
            if isinstance(one, dict):
                yield one, f"{name}[{one.get('name', number)}]"


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint]  # type: ignore[list-item]
    return [found for argument in get_args(hint) for found in _dataclasses_in(argument)]


def _resolves(kind: type, names: list[str]) -> bool:
    hints = get_type_hints(kind)
    if names[0] not in hints:
        return False
    nested = _dataclasses_in(hints[names[0]])
    return len(names) == 1 or any(_resolves(one, names[1:]) for one in nested)
