"""Two runs on one root: the second one is refused while a table is made, and never by a run that is gone."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.bad_input import BadInput
from curate.config import CurationConfig, RayConfig
from pipelines.runner import Fragment, Made, Runner, Step
from pipelines.store import Root
from pipelines.table_lock import table_lock
from tests.pipelines.small_run import PROJECT

HOLDER = """
import sys, time
from pipelines.store import Root
from pipelines.table_lock import table_lock
with table_lock(Root(sys.argv[1]), "scores"):
    print("holds", flush=True)
    time.sleep(60)
"""


def _build(config: CurationConfig) -> Callable[[], Made]:
    return lambda: Made(rows=pa.table({"uid": ["a"]}))


def test_a_table_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, root.url], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        told = f"process {holder.pid} on {socket.gethostname()} makes the table scores there"
        with pytest.raises(BadInput, match=told), table_lock(root, "scores"):
            pass
        with table_lock(root, "captions"):
            pass
        holder.kill()
    with table_lock(root, "scores"):
        pass


def test_a_run_is_refused_only_while_it_has_something_to_make(tmp_path: Path) -> None:
    config: Any = CurationConfig(root=str(tmp_path), ray=RayConfig(num_cpus=1))
    step = Step(table="scores", settings=[], build=_build)
    wanted = [Fragment(name="all", made_from=[])]
    with Runner(config) as runner:
        with table_lock(runner.root, "scores"), pytest.raises(BadInput, match="makes the table scores there"):
            runner.run(step, wanted)
        assert not (tmp_path / "tables").exists()
        assert runner.run(step, wanted).made == 1
        with table_lock(runner.root, "scores"):
            assert runner.run(step, wanted).made == 0


def test_a_process_that_has_only_just_got_the_lock_is_named(tmp_path: Path) -> None:
    root, place = Root(str(tmp_path)), tmp_path / ".locks/scores"
    place.parent.mkdir()
    with place.open("wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.2, file.write, [b"process 7 on a_node"]).start()
        with pytest.raises(BadInput, match="process 7 on a_node.* makes the table scores"), table_lock(root, "scores"):
            pass
