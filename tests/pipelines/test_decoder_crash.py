"""Processes that die while they make a fragment: another makes it with care; a file that kills them costs its row."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from curate.config import CurationConfig, DumpSource, RayConfig
from pipelines.runner import Fragment, Made, Runner, Step
from pipelines.store import Root
from tests.conftest import encoded, picture
from tests.pipelines.small_run import run, settings

MARKED, MARKED_WIDTH_PX = 5, 333
COUNT = 9
HOSTILE = """
import os, signal
from PIL import ImageFile
load = ImageFile.ImageFile.load
def hostile(image):
    if image.width == {width_px}:
        {marked}
    {before}
    return load(image)
ImageFile.ImageFile.load = hostile
"""
"""The sitecustomize of every process: a Pillow with a bug that one file meets."""
RAISES = {"marked": "raise OSError('a bug')", "before": ""}
ABORTS = {"marked": "os.abort()", "before": ""}
KILLED_ONCE = RAISES | {
    "before": """try:
        open(os.environ["MARK"], "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass"""
}


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Path:
    """A dump with one marked file, ready to be embedded."""
    folder = tmp_path_factory.mktemp("ingested")
    (folder / "dump").mkdir()
    for n in range(COUNT):
        width_px = MARKED_WIDTH_PX if n == MARKED else 320
        (folder / "dump" / f"{n}.png").write_bytes(encoded(picture(n, width_px), "PNG"))
        (folder / "dump" / f"{n}.txt").write_text(f"A picture of some shapes, number {n}")
    for step in ("ingest", "captions"):
        run(f"pipelines/{step}.py", "--config", str(config_of(folder)))
    return folder


@pytest.fixture(scope="module")
def expected(ingested, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The rows where the marked file is merely refused."""
    rows, said = embedded(ingested, tmp_path_factory.mktemp("raises") / "run", **RAISES)
    assert "died" not in said
    statuses = [rows[f"{n}.png"]["status"] for n in range(COUNT)]
    assert statuses == ["decode_error" if n == MARKED else "ok" for n in range(COUNT)]
    return rows


def config_of(folder: Path) -> Path:
    dumps = [{"name": "dump", "folder": str(folder / "dump")}]
    return settings(folder, web=[], dumps=dumps, ingest={"rows_per_shard": 3})


def embedded(ingested: Path, folder: Path, **bug: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Embed where Pillow has a bug; return the rows by the picture's URL, and what was said."""
    shutil.copytree(ingested, folder)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(HOSTILE.format(width_px=MARKED_WIDTH_PX, **bug))
    done = run(
        "pipelines/embed.py",
        "--config",
        str(config_of(folder)),
        PYTHONPATH=str(folder / "site"),
        MARK=str(folder / "mark"),
    )
    urls = {row["uid"]: row["url"] for row in pq.read_table(folder / "out/tables/samples").to_pylist()}
    rows = pq.read_table(folder / "out/tables/features").to_pylist()
    return {urls[row["uid"]]: row for row in rows}, done.stderr


def test_a_file_that_crashes_the_decoder_costs_its_row(ingested, expected, tmp_path):
    rows, said = embedded(ingested, tmp_path / "run", **ABORTS)
    crashed = {"status": "decoder_crashed", "error": "decoding it ended a process of its own: Aborted"}
    assert rows == expected | {f"{MARKED}.png": expected[f"{MARKED}.png"] | crashed}
    assert said.count("features: a process died while it made") == 1
    counts = Root(str(tmp_path / "run/out")).read_json("tables/features/_run.json")["counts"]
    assert counts == {"ok": COUNT - 1, "decoder_crashed": 1}


def test_a_process_that_something_else_killed_loses_nothing(ingested, expected, tmp_path):
    rows, said = embedded(ingested, tmp_path / "run", **KILLED_ONCE)
    assert rows == expected
    assert said.count("features: a process died while it made") == 1


def build(config: CurationConfig) -> Any:
    """Return a function that tells how it was called and dies as often as its fragment says."""
    told = Path(config.root) / "told"
    with told.open("a") as file:
        file.write("built\n")
    if (Path(config.root) / "unbuildable").exists():
        raise ValueError("no such model")

    def make(name: str, deaths: int, careful: bool) -> Made:
        with told.open("a") as file:
            file.write(f"{name} {careful}\n")
        if told.read_text().count(name) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return Made(rows=pa.table({"name": [name]}))

    return make


def make_all(root: Path, deaths: dict[str, int]) -> list[str]:
    """Make a table of fragments whose processes die that often; return what they told."""
    dumps = (DumpSource(name="dump", folder="unused"),)
    config = CurationConfig(root=str(root), dumps=dumps, ray=RayConfig(num_cpus=1))
    wanted = [Fragment(name=name, made_from=name, arguments=(name, dies)) for name, dies in deaths.items()]
    try:
        with Runner(config) as runner:
            assert runner.run(Step(table="table", settings={}, build=build, actors=1), wanted).rows == len(deaths)
    finally:
        told = (root / "told").read_text().splitlines()
    return told


def test_only_the_fragment_at_which_a_process_died_is_made_with_care(tmp_path):
    told = make_all(tmp_path, {"one": 0, "two": 3, "three": 0})
    assert told == ["built", "one False", "two False", *["built", "two True"] * 3, "three False"]
    assert set(Root(str(tmp_path)).read_json("tables/table/_run.json")["fragments"]) == {"one", "two", "three"}


def test_the_fourth_death_is_the_last(tmp_path):
    with pytest.raises(ray.exceptions.ActorDiedError):
        make_all(tmp_path, {"one": 9})
    assert (tmp_path / "told").read_text().split("\n")[:-1] == ["built", "one False", *["built", "one True"] * 3]


def test_a_process_that_cannot_be_built_is_no_death(tmp_path):
    (tmp_path / "unbuildable").touch()
    with pytest.raises(ray.exceptions.ActorDiedError, match="no such model"):
        make_all(tmp_path, {"one": 0})
    assert (tmp_path / "told").read_text() == "built\n"
