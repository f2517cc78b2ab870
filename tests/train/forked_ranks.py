"""Trains several times, each in ranks forked from this process: real processes, gloo and SIGKILL, one import.

    python -m tests.train.forked_ranks PLAN.json

The plan is a list of launches: `config` (a YAML file), `ranks`, `words` (flags), perhaps `copy` (a checkpoint and the
folder that it is first copied to), and perhaps `kill`: the `rank` that sends SIGKILL to all of them in its optimiser
step `in_step`, or halfway through writing its part of `in_checkpoint`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401 - what ranks would import, each for itself
import open_clip  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

from train.checkpoint.store import Store  # noqa: E402
from train.data.loader import Loader  # noqa: E402
from train.engine import Engine  # noqa: E402
from train.loop import train  # noqa: E402
from train.settings import read_train_settings  # noqa: E402


def main(plan: list[dict[str, Any]]) -> None:
    for launch in plan:
        if "copy" in launch:
            shutil.copytree(*launch["copy"])
        wanted = [-signal.SIGKILL if "kill" in launch else 0] * launch["ranks"]
        codes = run(launch)
        if codes != wanted:
            sys.exit(f"{launch}: the ranks ended with {codes}, expected {wanted}")


def run(launch: dict[str, Any]) -> list[int]:
    """Fork the ranks into a process group of their own, wait for them, and return their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks: list[int] = []
    for rank in range(launch["ranks"]):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, ranks[0] if ranks else 0)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(launch["ranks"])}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            be_a_rank(launch, rank)
        ranks.append(pid)
        os.setpgid(pid, ranks[0])
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]


def be_a_rank(launch: dict[str, Any], rank: int) -> None:
    """Train and end this process without what its parent has registered for its end."""
    code = 1
    try:
        words = ["--config", launch["config"], "--ranks", str(launch["ranks"]), *launch.get("words", [])]
        config = read_train_settings("base", words, prog="forked", description="")[0]
        config = dataclasses.replace(config, batch=config.batch.for_ranks(launch["ranks"]))
        note_order(Path(config.out_folder), rank)
        kill = launch.get("kill", {})
        if kill.get("rank") == rank:
            kill_in_step(kill["in_step"]) if "in_step" in kill else kill_in_checkpoint(kill["in_checkpoint"])
        train(config)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def note_order(out: Path, rank: int) -> None:
    """Let the loader write down which samples each step has, the last time that it is done."""
    plain = Loader.micro_batches

    def noted(self: Loader, first_step: int, left_out: frozenset[int]) -> Iterator[Any]:
        with (out / f"order-{rank}.jsonl").open("a", buffering=1) as file:
            for batch in plain(self, first_step, left_out):
                file.write(json.dumps({"step": batch.step, "uids": batch.uids}) + "\n")
                yield batch

    mock.patch.object(Loader, "micro_batches", noted).start()


def kill_in_step(step: int) -> None:
    plain, calls = Engine.step, count(1)

    def killing(self: Engine, lr: float) -> Any:
        if next(calls) == step:
            os.killpg(0, signal.SIGKILL)
        return plain(self, lr)

    mock.patch.object(Engine, "step", killing).start()


def kill_in_checkpoint(step: int) -> None:
    plain = Store.write

    def killing(self: Store, name: str, pieces: Iterator[memoryview]) -> Any:
        if name.startswith(f"step-{step:08d}/"):
            pieces = broken_off(pieces)
        return plain(self, name, pieces)

    mock.patch.object(Store, "write", killing).start()


def broken_off(pieces: Iterator[memoryview]) -> Iterator[memoryview]:
    yield next(pieces)
    half = next(pieces)
    yield half[: len(half) // 2]
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
