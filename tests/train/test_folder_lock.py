"""Two runs on one folder: the second one waits for the first, names it, and gives up in the end."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.synthetic_root import Tiny
from train.config import TrainConfig
from train.folder_lock import LOCK, FolderInUse, folder_lock
from train.settings import read_train_settings

REPOSITORY = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from curate.lock import held
with held(Path(sys.argv[1]), lambda holder: None):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tiny: Tiny, tmp_path: Path) -> Path:
    return tiny.variant(tmp_path, steps=1)


@pytest.fixture
def config(file: Path) -> TrainConfig:
    return read_train_settings("base", ["--config", str(file)], prog="test", description="")[0]


@pytest.fixture
def holder(config: TrainConfig) -> Iterator[subprocess.Popen[str]]:
    """A process that trains into the folder, as far as its lock goes."""
    lock = str(Path(config.out_folder) / LOCK)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_a_run_waits_for_the_one_before_and_names_it(
    config: TrainConfig, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = f"process {holder.pid} on {socket.gethostname()} trains into"
    told = f"out = .*: {named} it: stop it, or set train.base.out"
    with pytest.raises(FolderInUse, match=told), folder_lock(config, wait_s=1.5):
        pass
    assert capsys.readouterr().out == f"waiting up to 2 s: {named} {config.out_folder}\n"
    holder.kill()
    with folder_lock(config, wait_s=60.0):
        pass


def test_a_run_goes_on_once_the_one_before_is_gone(file: Path, holder: subprocess.Popen[str]) -> None:
    command = [sys.executable, "-m", "train.run", "base", "--config", str(file)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        said = next(line for line in run.stdout if line.startswith("waiting"))
        assert f"process {holder.pid}" in said
        assert not (file.parent / "out/metrics.jsonl").exists()
        holder.kill()
        assert "validation loss" in run.stdout.read()
    assert run.returncode == 0
