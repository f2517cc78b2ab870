"""The README's tree names every file, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = ("curate", "pipelines", "schemas", "train", "infra")


def in_tree() -> set[str]:
    """Return the paths of the README's tree."""
    text = (PROJECT / "README.md").read_text()
    block = text.split("## Where everything is")[1].split("```")[1]
    return {match.group(1) for line in block.splitlines() if (match := re.match(r"(\S+/\S+)\s{2,}\S", line))}


def test_the_tree_has_one_line_for_each_file():
    files = {
        str(path.relative_to(PROJECT))
        for folder in FOLDERS
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and path.name != "__init__.py" and "__pycache__" not in path.parts
    }
    assert in_tree() == files


def test_the_links_lead_somewhere():
    for page in [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
