"""The scripts as typed: bad input in one line, killed runs, empty sources, Ray jobs, real photographs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from tests.conftest import encoded, picture
from tests.pipelines.small_run import PROJECT, run, settings
from tests.pipelines.test_curation import hashes

STEPS = ("ingest", "captions", "embed", "dedup", "score", "selection", "export", "encode")


def write_dump(folder: Path, count: int) -> None:
    (folder / "dump").mkdir(parents=True)
    for n in range(count):
        (folder / "dump" / f"{n}.jpg").write_bytes(encoded(picture(n), quality=90))
        (folder / "dump" / f"{n}.txt").write_text(f"A picture of some shapes, number {n}")


def dump_only(folder: Path, **changes: object) -> Path:
    dumps = [{"name": "dump", "folder": str(folder / "dump")}]
    return settings(folder, **{"web": [], "dumps": dumps, "ingest": {"rows_per_shard": 4}} | changes)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dedup.radius_bits", "99"), "dedup.radius_bits = 99"),
        (("--dedup.radius", "3"), "dedup.radius"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--dumps", '[{"name": "d", "folder": "nowhere"}]'), "dumps.d.folder = nowhere: no such folder"),
        (("--web", '[{"name": "w", "url_list": "nowhere.csv"}]'), "web.w.url_list = nowhere.csv: no such file"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, words, told):
    done = run("pipelines/ingest.py", "--root", str(tmp_path / "out"), *words, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert told in done.stderr
    assert not (tmp_path / "out" / "tables").exists()


def test_a_step_names_the_one_before_it(tmp_path):
    done = run("pipelines/dedup.py", "--root", str(tmp_path / "out"), check=False)
    assert done.returncode == 2
    assert (
        "run python pipelines/ingest.py first" in done.stderr or "run python pipelines/captions.py first" in done.stderr
    )


def test_missing_weights_tell_how_to_fetch_them(tmp_path):
    write_dump(tmp_path, 2)
    config = dump_only(tmp_path, embed={"clip": {"weights": "clip_vit_l14_openai"}})
    done = run("pipelines/run.py", "--config", str(config), check=False, DARKROOM_WEIGHTS=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "python -m curate.weights fetch clip_vit_l14_openai" in done.stderr.splitlines()[-1]


def test_an_empty_dump_is_no_error(tmp_path):
    (tmp_path / "dump").mkdir()
    done = run("pipelines/run.py", "--config", str(dump_only(tmp_path)))
    assert "has no images" in done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["funnel"]["rows_in"] == 0


def test_a_dump_without_one_good_picture_is_no_error(tmp_path):
    """Broken pictures, odd file names and a caption that is not valid Unicode: rows with a status, nothing kept."""
    folder = tmp_path / "dump"
    folder.mkdir()
    for name in ("a.b.jpg", "\u00fc \u4e2d\u6587.png", "empty.gif", os.fsdecode(b"bad-\xff.jpg")):
        (folder / name).write_bytes(b"" if name == "empty.gif" else b"no picture")
    (folder / "c.jsonl").write_text('{"file_name": "a.b.jpg", "caption": "half a pair \\ud800 in here"}\n')
    dumps = [{"name": "dump", "folder": str(folder), "captions": "c.jsonl"}]
    done = run("pipelines/run.py", "--config", str(dump_only(tmp_path, dumps=dumps)))
    assert "rows kept                                  0" in done.stdout
    rows = pd.read_parquet(tmp_path / "out" / "tables" / "samples")
    assert sorted(rows.status) == ["empty", "not_an_image", "not_an_image", "not_an_image"]
    assert "half a pair ? in here" in set(rows.caption)


def test_init_writes_a_configuration_that_reads(tmp_path):
    script = str(PROJECT / "pipelines" / "run.py")
    done = subprocess.run([sys.executable, script, "--init"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "darkroom.yaml" in done.stdout
    shown = subprocess.run(
        [sys.executable, script, "--print_config"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(shown.stdout)["embed"]["clip"]["weights"] == "clip_vit_l14_openai"
    again = subprocess.run(
        [sys.executable, script, "--init"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 2


def test_sigterm_ends_a_run_with_143_and_one_line(tmp_path):
    write_dump(tmp_path, 12)
    process = subprocess.Popen(
        [sys.executable, "pipelines/run.py", "--config", str(dump_only(tmp_path))],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/tables/captions/_receipts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert said.endswith("pipelines/run.py: stopped; what is finished is kept: run the same command to go on\n")
    assert "SIGTERM received" not in said and "Traceback" not in said


def test_a_killed_run_goes_on_to_the_same_tables(tmp_path):
    for name in ("whole", "killed"):
        write_dump(tmp_path / name, 12)
    run("pipelines/run.py", "--config", str(dump_only(tmp_path / "whole")))
    config = str(dump_only(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, "pipelines/run.py", "--config", config],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    receipts = tmp_path / "killed" / "out" / "tables"
    deadline = time.monotonic() + 120
    while not list(receipts.glob("captions/_receipts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "out" / "run.json").exists()
    run("pipelines/run.py", "--config", config)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


@dataclass(frozen=True)
class Cluster:
    """A Ray head, the checkout that its users stand in, and their environment."""

    checkout: Path
    environment: dict[str, str]


@pytest.fixture
def cluster(tmp_path):
    """A Ray head with its job server and token authentication, started from a checkout of its own."""
    checkout = tmp_path / "checkout"
    for package in ("curate", "pipelines", "schemas", "train", "infra"):
        shutil.copytree(PROJECT / package, checkout / package)
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    port, dashboard = free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # socket paths have at most 107 characters
    options = f"--port {port} --dashboard-port {dashboard} --temp-dir {folder}"
    head = subprocess.Popen(
        [ray_command(), *f"start --head --block --num-cpus 2 {options}".split()],
        env=environment,
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(dashboard)
        yield Cluster(checkout, environment)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def ray_command() -> str:
    return str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the Ray dashboard did not come up")


def submit(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Submit a job; a head that has only just started has no agent for it yet, and says so."""
    for _ in range(20):
        done = subprocess.run(
            [ray_command(), "job", "submit", *words],
            cwd=cluster.checkout,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(3)
    return done


def test_ray_job_submit(tmp_path, cluster):
    """Both forms as the README has them; the short one takes darkroom.yaml from where the cluster was started."""
    write_dump(tmp_path, 6)
    shutil.copy(dump_only(tmp_path), cluster.checkout / "darkroom.yaml")
    run("pipelines/run.py", "--config", str(cluster.checkout / "darkroom.yaml"))
    before = hashes(tmp_path)
    long = ("--working-dir", ".", "--", "python", "pipelines/dedup.py", "--config", "darkroom.yaml")
    for words in (long, ("pipelines/dedup.py",)):
        for path in (tmp_path / "out" / "tables" / "duplicates").glob("*.parquet"):
            path.unlink()
        done = submit(cluster, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert hashes(tmp_path) == before
    relative = submit(cluster, *long, "--root", "runs/mine")
    assert relative.returncode != 0
    assert "root = runs/mine: a Ray job runs in a copy of the folder" in relative.stdout + relative.stderr


def test_sources_and_root_may_lie_in_s3(tmp_path, s3):
    write_dump(tmp_path, 6)
    s3.put(str(tmp_path / "dump"), "bucket/dump", recursive=True)
    config = dump_only(tmp_path, dumps=[{"name": "dump", "folder": "s3://bucket/dump"}], root="s3://bucket/out")
    run("pipelines/run.py", "--config", str(config))
    written = set(s3.find("bucket/out"))
    assert sum(path.startswith("bucket/out/shards/") for path in written) == 2
    assert json.loads(s3.cat_file("bucket/out/run.json"))["funnel"]["rows_kept"] == 6
    again = run("pipelines/run.py", "--config", str(config))
    assert "0 already there" not in again.stderr
    assert set(s3.find("bucket/out")) == written


@pytest.mark.shared
def test_real_photographs_and_captions_go_through(tmp_path, shared):
    dumps = [
        {"name": "coco", "folder": str(shared / "photos_coco"), "file_column": "file", "caption_column": "captions"},
        {"name": "hires", "folder": str(shared / "photos_hires"), "file_column": "file"},
    ]
    dumps = [dump | {"captions": "metadata.jsonl"} for dump in dumps]
    run("pipelines/run.py", "--config", str(settings(tmp_path, web=[], dumps=dumps, ingest={"rows_per_shard": 40})))
    tables = tmp_path / "out" / "tables"
    rows = pd.read_parquet(tables / "samples").merge(
        pd.read_parquet(tables / "selection"), on="uid", validate="one_to_one"
    )
    assert (rows.status == "ok").sum() == len(rows) >= 140
    assert rows.keep.mean() > 0.8
    assert set(pd.read_parquet(tables / "shards").source) == {"coco", "hires"}


def test_every_step_is_an_executable_script():
    for step in (*STEPS, "run"):
        path = PROJECT / "pipelines" / f"{step}.py"
        assert os.access(path, os.X_OK)
        assert path.read_text().startswith("#!/usr/bin/env python3\n")
