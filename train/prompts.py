"""Prompts of a file, a line each."""

from __future__ import annotations

from pathlib import Path

from curate.bad_input import BadInput


def prompts_of_file(path: str, field: str) -> list[str]:
    """Return the lines of a file; raises BadInput where it is missing, no text, or has none."""
    try:
        text = Path(path).read_text("utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError as error:
        raise BadInput(f"{field} = {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{field} = {path}: is no UTF-8 text: {error}; save it as UTF-8") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"{field} = {path}: no prompts in it")
    return lines
