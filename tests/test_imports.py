"""The architecture's import rules, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("curate", "pipelines", "schemas", "train")


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the first names of what a module imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def modules(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


def names_importing(library: str) -> set[str]:
    return {
        str(path.relative_to(PROJECT)) for package in PACKAGES for path in modules(package) if library in imported(path)
    }


def test_schemas_import_only_pyarrow():
    standard = {"__future__"}
    for path in modules("schemas"):
        assert imported(path) <= {"pyarrow", "schemas"} | standard, path


def test_one_module_calls_ray():
    assert names_importing("ray") == {"pipelines/runner.py"}


def test_one_module_calls_deepspeed():
    assert names_importing("deepspeed") == {"train/engine.py"}


def test_one_module_calls_img2dataset():
    assert names_importing("img2dataset") == {"curate/crawl/download.py"}


@pytest.mark.parametrize("package", ["curate", "schemas"])
def test_curate_and_schemas_know_nothing_of_control_or_training(package):
    for path in modules(package):
        assert not imported(path) & {"pipelines", "train", "ray", "deepspeed", "diffusers"}, path


def test_training_knows_nothing_of_pipelines():
    for path in modules("train"):
        assert not imported(path) & {"pipelines", "ray", "img2dataset"}, path


@pytest.mark.parametrize(
    "module",
    [
        *[f"curate/config/{path.name}" for path in (PROJECT / "curate/config").glob("*.py")],
        "curate/config_file.py",
        "curate/caption_rules.py",
        "curate/sample.py",
        "curate/buckets.py",
        *[f"curate/weights/{path.name}" for path in (PROJECT / "curate/weights").glob("*.py")],
        "train/config.py",
        "train/recipes.py",
    ],
)
def test_pure_modules_import_neither_ray_nor_torch(module):
    assert not imported(PROJECT / module, top_level_only=True) & {"ray", "torch", "deepspeed", "open_clip", "diffusers"}
