"""Profanity and explicit terms by list: whole words only, in scripts without spaces, too."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import fsspec
import regex

from curate.bad_input import BadInput
from curate.config import CaptionsConfig

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[\w-]+)?")
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)*")
_NO_SPACES = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}ー]")
_RUN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{M}ー]+")


class Terms:
    """The terms of one language's list."""

    def __init__(self, lines: Iterable[str], language: str, allowed: Iterable[str] = ()) -> None:
        terms = {fold(line).strip() for line in lines} - {""} - {fold(term).strip() for term in allowed}
        self._language = language
        self._unspaced = sorted(term for term in terms if _NO_SPACES.search(term))
        self._phrases: dict[str, list[list[str]]] = {}
        self._odd = []
        for term in terms.difference(self._unspaced):
            words = words_of(term)
            if words and " ".join(words) == term:
                self._phrases.setdefault(words[0], []).append(words)
            else:
                self._odd.append(term)

    def found(self, folded: str, words: list[str], distinct: frozenset[str]) -> bool:
        """Return whether a folded caption, given as text and as words, has one of the terms."""
        return (
            self._has_phrase(words, distinct)
            or any(term in folded and _stands_alone(term, folded) for term in self._odd)
            or any(term in folded and self._is_words(term, folded) for term in self._unspaced)
        )

    def _has_phrase(self, words: list[str], distinct: frozenset[str]) -> bool:
        if self._phrases.keys().isdisjoint(distinct):
            return False
        return any(
            words[at : at + len(phrase)] == phrase
            for at, word in enumerate(words)
            for phrase in self._phrases.get(word, ())
        )

    def _is_words(self, term: str, folded: str) -> bool:
        """Return whether the term begins and ends where words do, as a segmenter cuts them."""
        edges = _edges(folded, self._language)
        first = folded.find(term)
        while first >= 0:
            last = first + len(term)
            if (
                edges[first]
                and edges[last]
                and (len(term) >= _LEAST.get(self._language, 1) or _alone(folded, first, last))
            ):
                return True
            first = folded.find(term, first + 1)
        return False


_LEAST = {"th": 4}
"""Shorter terms are syllables of other words, too, which the segmenter may cut out: they must stand alone."""


def _edges(folded: str, language: str) -> list[bool]:
    """Return for each place before, between and behind the characters whether words meet there."""
    inside = [False, *(_joined(one, other) for one, other in zip(folded, folded[1:], strict=False)), False]
    for run in _RUN.finditer(folded):
        at = run.start()
        for part in _segmenter(language).parse(run[0]):
            inside[at + 1 : at + len(part)] = [True] * (len(part) - 1)
            at += len(part)
            inside[at] = False
    return [not held for held in inside]


def _alone(folded: str, first: int, last: int) -> bool:
    """Return whether no letter of a script without spaces stands beside a part of the text."""
    return not _RUN.match(folded[first - 1 : first]) and not _RUN.match(folded[last : last + 1])


def _joined(one: str, other: str) -> bool:
    """Return whether two characters of scripts with spaces stand in the same word."""
    return all(_WORD.match(c) is not None and not _RUN.match(c) for c in (one, other))


class Profanity:
    """Lists of several languages."""

    def __init__(self, lists: Mapping[str, Iterable[str]], everywhere: Iterable[str], allowed: Iterable[str]) -> None:
        allowed = tuple(allowed)
        self._lists = {_code(name): Terms(lines, _code(name), allowed) for name, lines in lists.items()}
        self._everywhere = [_code(name) for name in everywhere if _code(name) in self._lists]

    def found(self, folded: str, words: list[str], distinct: frozenset[str], language: str | None) -> bool:
        """Return whether a caption has a term of its language's list, or of one that holds everywhere.

        The caption is given folded, as its words and as the set of them.
        """
        if not self._lists:
            return False
        names = dict.fromkeys([*self._everywhere, _code(language or "")])
        return any(self._lists[name].found(folded, words, distinct) for name in names if name in self._lists)


def lists_of(config: CaptionsConfig) -> dict[str, bytes]:
    """Return the configured lists by language; raises ValueError where the folder has none, or not those wanted."""
    if config.profanity_lists is None:
        return {}
    fs, folder = fsspec.core.url_to_fs(config.profanity_lists)
    paths = fs.ls(folder, detail=False) if fs.isdir(folder) else []
    named = {name: path for path in paths if _LANGUAGE.fullmatch(name := posixpath.basename(path))}
    lists = {name: fs.cat_file(path) for name, path in named.items() if fs.isfile(path)}
    missing = sorted(set(config.profanity_everywhere) - set(lists))
    if not lists or missing:
        raise BadInput(
            f"captions.profanity_lists = {config.profanity_lists!r}: has no list named "
            f"{' or '.join(missing) or 'by a language code'}: name a folder with en, de, ... one term a line"
        )
    return lists


def fold(text: str) -> str:
    """Return the text without differences of case and of compatible characters."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def words_of(folded: str) -> list[str]:
    """Return the words of a folded text: letters, marks and digits, with what follows an apostrophe."""
    return _ASCII_WORD.findall(folded) if folded.isascii() else _WORD.findall(folded)


def _code(language: str) -> str:
    """Return a list's language: fil is tl, and regions are left out, to an identifier."""
    return {"fil": "tl", "nb": "no", "nn": "no"}.get(language, language.split("-")[0].lower())


def _stands_alone(term: str, folded: str) -> bool:
    """Return whether a term with other characters than letters occurs with no letter beside it."""
    first = folded.find(term)
    while first >= 0:
        before, behind = folded[first - 1 : first], folded[first + len(term) : first + len(term) + 1]
        joined = (before and _WORD.match(before) and _WORD.match(term)) or (
            behind and _WORD.match(behind) and _WORD.match(term[-1])
        )
        apostrophe = before in ("'", "’")
        if not joined and not apostrophe:
            return True
        first = folded.find(term, first + 1)
    return False


@lru_cache(maxsize=4)
def _segmenter(language: str) -> Any:
    """Return BudouX's segmenter; its models are in its package."""
    import json
    from importlib.resources import files

    from budoux.parser import Parser

    name = {"ja": "ja_word", "th": "th"}.get(language, "zh-hans")
    return Parser(json.loads(files("budoux").joinpath(f"models/{name}.json").read_text(encoding="utf-8")))
