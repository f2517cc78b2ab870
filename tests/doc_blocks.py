"""What the pages of the documentation hold: code blocks by kind, the commands in them, links and anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

PROJECT = Path(__file__).resolve().parents[1]
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))
SHELL = ("", "bash", "sh", "shell")
"""Blocks without a fence are commands, too; other kinds have a fence that says what they are."""
NAME = re.compile(r"--[a-z][a-z0-9_.-]*[a-z0-9]")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block of a page."""

    page: Path
    line: int
    kind: str
    """shell, yaml, python, text, or the name of a directive in braces."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield each code block; a fence without a kind is output."""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type in ("fence", "code_block") and token.map:
            said = token.info.split()[0] if token.info else ("text" if token.type == "fence" else "")
            kind = "shell" if said in SHELL else said
            yield Block(page=page, line=token.map[0] + 1, kind=kind, text=token.content)


def all_blocks(kind: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.kind == kind]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command: what a placeholder or an optional part stands for is left in."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if found := _plain(words):
                    yield found
                words = []
            else:
                words.append(word)


def _plain(words: list[str]) -> list[str]:
    """Return the words without settings of the environment, redirections and the marks of optional parts."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    kept, optional = [], False
    for word in words:
        if word == "...":
            continue
        if word.startswith(">"):
            break
        if word.startswith("[--"):
            word, optional = word[1:], True
        if optional and word.endswith("]"):
            word, optional = word[:-1], False
        kept.append(word)
    return kept


def flags_named(page: Path) -> set[str]:
    """Return every `--flag` of a page's text and code spans; its code blocks are parsed elsewhere."""
    found: set[str] = set()
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        for child in token.children or ():
            if child.type in ("text", "code_inline"):
                found |= set(NAME.findall(child.content))
    return found


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    found = []
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                found.append(str(target))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give a page's headings."""
    tokens = MarkdownIt().parse(page.read_text())
    titles = [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
