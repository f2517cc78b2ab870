"""The documentation: a strict build that asks for nothing from outside, links that lead somewhere, code that runs."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from curate import sample
from curate.config import CurationConfig
from curate.config.ingest import CONSENT_SIGNALS
from curate.config_file import read_settings
from curate.crawl.fetcher import SIGNALS
from curate.weights import registry
from pipelines.command import curation_section
from schemas.tables import TABLES
from tests.command_parsers import MODULES, READ_BY_HAND, WITHOUT_FLAGS, flags_of, parser_of, scripts
from tests.doc_blocks import PAGES, PROJECT, Block, all_blocks, anchors, blocks, commands, flags_named, links
from train.recipes import RECIPES
from train.settings import read_train_settings

OTHER_PROGRAMS = {
    "bash",
    "cd",
    "cp",
    "export",
    "git",
    "kubectl",
    "mkdir",
    "mv",
    "openssl",
    "sbatch",
    "scancel",
    "sed",
    "source",
}
OTHER_FLAGS = {"--working-dir", "--no_local_rank", "--exclude", "--head"}
"""Flags of Ray, DeepSpeed and Slurm that pages name outside code blocks."""
PYTHONS = ("python", "python3", "python3.11", ".venv/bin/python")
KINDS = {
    "shell",
    "yaml",
    "python",
    "text",
    "sql",
    "{toctree}",
    "{include}",
    "{eval-rst}",
    "{note}",
    "{warning}",
    "{tip}",
}


class Page(HTMLParser):
    """The links, loads and anchors of a page of the site."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.ids |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.hrefs.append(said["href"])
        elif tag == "link" and said.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loads.append(said.get("href", ""))
        self.loads += [said[name] for name in ("src", "srcset", "data", "poster") if name in said]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Page]:
    """The pages of the site by their path, built with every warning being an error."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-d", folder / "trees"]
    built = subprocess.run(
        [*command, "-b", "html", PROJECT / "docs", folder / "site"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return {str(file.relative_to(folder)): Page(file.read_text()) for file in (folder / "site").rglob("*.html")} | {
        f"css:{file.name}": file.read_text() for file in (folder / "site").rglob("*.css")
    }


def html(site: dict) -> Iterator[tuple[str, Page]]:
    return ((name, page) for name, page in site.items() if isinstance(page, Page))


def test_every_page_is_in_the_site_and_generated_ones_are_whole(site):
    for page in PAGES[1:]:
        assert f"site/{page.stem}.html" in site
    assert {name.replace("_", "-") for name in [*TABLES, "texts", "caption_counts"]} <= site["site/tables.html"].ids
    assert {"score-heads", "train-model-optimizer", "pipelines-dashboard-py"} <= site["site/configuration.html"].ids
    assert "curate.dedup.near_duplicates" in site["site/api.html"].ids


def test_the_site_loads_nothing_from_elsewhere(site):
    for name, page in html(site):
        assert [load for load in page.loads if urlsplit(load).scheme not in ("", "data")] == [], name
        assert [load for load in page.loads if load.startswith("//")] == [], name
    for name, text in site.items():
        if name.startswith("css:"):
            assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^"')]+""", text) == [], name


def test_links_and_anchors_of_the_site_resolve(site):
    for name, page in html(site):
        for href in page.hrefs:
            parts = urlsplit(href)
            if parts.scheme or parts.netloc:
                continue
            place = (Path(name).parent / unquote(parts.path)) if parts.path else Path(name)
            target = site.get(str(place))
            if parts.path.endswith(".html"):
                assert target is not None, f"{name}: {href}"
            if target is not None and parts.fragment:
                assert unquote(parts.fragment) in target.ids, f"{name}: {href}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    known = {
        name for file in (PROJECT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve_where_pages_are_read_as_files(page):
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = page.parent / unquote(parts.path) if parts.path else page
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


def test_links_that_lead_outside_are_whole_and_listed(capsys):
    outside = {link: page.name for page in PAGES for link in links(page) if urlsplit(link).scheme}
    for link, page in sorted(outside.items()):
        print(f"{page}: {link}")
        assert urlsplit(link).scheme == "https" and "." in urlsplit(link).netloc, f"{page}: {link}"
    assert len(capsys.readouterr().out.splitlines()) == len(outside)


def test_every_block_says_what_it_is():
    odd = [f"{block}: {block.kind}" for page in PAGES for block in blocks(page) if block.kind not in KINDS]
    assert odd == [], f"give these fences one of {sorted(KINDS)}"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder as one has after `--init`, with the tables of a run that found nothing."""
    for name in ("pipelines", "infra"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "darkroom.yaml").write_text((PROJECT / "pipelines/web.yaml").read_text())
    for root in ("demo", "mine"):
        for name, schema in TABLES.items():
            folder = tmp_path / "runs" / root / "tables" / name
            folder.mkdir(parents=True)
            pq.write_table(schema.empty_table(), folder / "part.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("block", all_blocks("shell"), ids=str)
def test_commands_are_taken_by_their_parsers(block, here, capsys):
    for words in commands(block):
        try:
            check(words, here)
        except SystemExit as refused:
            pytest.fail(f"{block}: {' '.join(words)}: {refused.code}: {capsys.readouterr().err}")


def check(words: list[str], here: Path) -> None:
    """Ask the parser of one of the project's commands; of another program, whether it is one that the pages may use."""
    program, *rest = words
    if program in PYTHONS:
        check_python(rest, here)
    elif program == "make":
        assert set(rest) <= set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M)), words
    elif program in ("ray", "torchrun", "deepspeed", "srun"):
        inner = rest.index("-m") if "-m" in rest else next((at for at, word in enumerate(rest) if ".py" in word), None)
        if inner is not None:
            check_python(rest[inner:], here)
    elif program.endswith(("/pip", "/uv")) or program in ("pip", "uv"):
        assert rest[0] in ("install", "pip"), words
    else:
        assert program in OTHER_PROGRAMS, (
            f"{words}: is this a command? other things have a fence that says what they are"
        )


def check_python(rest: list[str], here: Path) -> None:
    if rest[0] == "-c":
        compile(rest[1], "-c", "exec")
    elif rest[0] == "-m" and rest[1] not in MODULES:
        assert importlib.util.find_spec(rest[1]), rest
    elif rest[0] != "-m" and "<" in rest[0]:
        assert list(PROJECT.glob(re.sub("<.*>", "*", rest[0]))), rest
    elif rest[0] in WITHOUT_FLAGS:
        assert len(rest) == 1 and (PROJECT / rest[0]).exists(), rest
    else:
        if "--init" in rest:
            (here / "darkroom.yaml").unlink()
        with contextlib.redirect_stdout(io.StringIO()):
            parser_of(rest)
    if rest[:2] == ["-m", "curate.weights"]:
        assert {word for word in rest[3:] if word[0] != "-" and word.islower()} <= set(registry()), rest


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_flag_that_a_page_names_exists(here):
    known = set(OTHER_FLAGS) | READ_BY_HAND
    for words in [[name] for name in scripts()] + [["-m", name] for name in MODULES]:
        known |= flags_of(parser_of([*words, *ENOUGH.get(words[-1], ["--root", "r"])]))
    known |= flags_of(parser_of(["pipelines/score.py", "calibrate", "--root", "r"]))
    for bench in (PROJECT / "infra/bench").glob("*.py"):
        known |= set(re.findall(r'add_argument\("(--[a-z_-]+)"', bench.read_text()))
    unknown = {page.name: sorted(flags_named(page) - known) for page in PAGES if flags_named(page) - known}
    assert unknown == {}


ENOUGH = {
    "curate.weights": ["list"],
    "train.run": ["base", "--root", "r"],
    "train.plan": ["base"],
    "train.evaluate": ["base", "--root", "r"],
    "train.data": ["--root", "r", "--check"],
    "train.checkpoint": ["folder"],
}
"""Words that a command cannot do without."""


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_settings_are_taken_as_they_stand(block, here, capsys):
    document = yaml.safe_load(block.text)
    try:
        load(document, here)
    except (SystemExit, ValueError) as refused:
        pytest.fail(f"{block}: {refused} {capsys.readouterr().err}")


def load(document: dict, here: Path) -> None:
    """Read settings as every command does, or entries of the registry of weights."""
    file = here / "block.yaml"
    file.write_text(yaml.safe_dump(document))
    if "weights" in document:
        registry(file)
        return
    flags = ["--config", str(file), "--root", document.get("root", "r")]
    read_settings(CurationConfig, flags, prog="block", description="", section=curation_section)
    for model in RECIPES:
        read_train_settings(model, flags, prog="block", description="")


@pytest.mark.parametrize("page", sorted({block.page for block in all_blocks("python")}), ids=lambda page: page.name)
def test_python_runs(page, here, capsys):
    names: dict = {}
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(block.text, str(block), "exec"), names)


def test_examples_of_the_api_are_true():
    """Doctests of everything that the page on the API names."""
    text = (PROJECT / "docs/api.md").read_text()
    examples = 0
    for module, name in re.findall(r":: (\S+)\.(\w+)$", text, re.M):
        found = getattr(importlib.import_module(module), name)
        for test in doctest.DocTestFinder(recurse=False).find(found, name, globs={"np": np, name: found}):
            examples += len(test.examples)
            assert doctest.DocTestRunner().run(test).failed == 0, name
    assert examples > 0


def test_the_blocks_of_a_page_are_read_as_they_are_meant():
    block = Block(
        page=PAGES[0], line=1, kind="shell", text="A=1 make demo  # all\npython x.py --a [--b c] ... && ls > f\n"
    )
    assert list(commands(block)) == [["make", "demo"], ["python", "x.py", "--a", "--b", "c"], ["ls"]]
    with pytest.raises(SystemExit):
        parser_of(["pipelines/strips.py", "--root", "r", "--lagest", "20"])


def test_the_tutorials_settings_are_taken_with_the_demos(here):
    """The file that comes of the walk: the demo's with its root moved, the reader's sources, the tighter cut-off."""
    page = PROJECT / "docs/tutorial.md"
    parts = [block for block in blocks(page) if block.kind in ("shell", "yaml")]
    (sed,) = [block for block in parts if block.text.startswith("sed ")]
    subprocess.run(["bash", "-c", sed.text], cwd=here, check=True)
    document = yaml.safe_load((here / "darkroom.yaml").read_text())
    assert document["root"] == "runs/mine" and "runs/demo/vae" not in str(document)
    for block in parts:
        if block.kind == "yaml":
            document |= yaml.safe_load(block.text)
    load(document, here)
    assert document["selection"].keys() == yaml.safe_load((PROJECT / "pipelines/demo.yaml").read_text())[
        "selection"
    ].keys() | {"min_side_px"}


def test_every_status_and_consent_signal_is_explained():
    page = (PROJECT / "docs" / "curation.md").read_text()
    statuses = {value for name, value in vars(sample).items() if name.isupper() and value != sample.OK}
    assert len(statuses) == 41
    assert [status for status in sorted(statuses) if f"`{status}`" not in page] == []
    table = [line.split("|")[2:4] for line in page.splitlines() if "| `opt_out_" in line]
    assert {column.strip(" `") for column, _ in table} == set(SIGNALS)
    assert {reason.strip(" `").removeprefix("opt_out_") for _, reason in table} == set(CONSENT_SIGNALS)
