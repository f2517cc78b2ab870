"""Starts the ranks of one machine where no launcher did, and reads the launchers' ways to say who is who."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence

from curate.bad_input import BadInput
from curate.command_line import BAD, INTERRUPTED
from train.config import TrainConfig

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
NEEDED = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a rank is told beside its number."""
OTHERS_TELL_S = 2.0
"""How long the ranks beside one that failed may still say what they found wrong."""


def run_ranks(module: str, argv: Sequence[str], ranks: int) -> int:
    """Run `python -m module argv` once for each rank, pass SIGTERM on, and return a bad exit code or 0.

    After Ctrl-C the ranks save and it returns 130; a second Ctrl-C kills them.

    Unlike torchrun this gives the ranks all the time they need to save after SIGTERM, and imports no torch.
    """
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C must not end the ranks' loader processes
    children = [
        subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    asked: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        again = signal.SIGINT in asked and number == signal.SIGINT
        asked.append(number)
        if number == signal.SIGINT:
            told = "stopped at once" if again else "saving after this step; Ctrl-C again ends it without"
            print(f"{module}: {told}", file=sys.stderr, flush=True)
        _terminate(children, signal.SIGKILL if again else signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = _wait(children)
    return INTERRUPTED if signal.SIGINT in asked else code


def num_ranks(config: TrainConfig) -> int:
    """Return how many ranks to start on this machine."""
    if config.ranks != "auto":
        return int(config.ranks)
    import torch

    return torch.cuda.device_count() or config.cpu_ranks


def adopt_launcher(environ: MutableMapping[str, str]) -> bool:
    """Return whether a launcher started this process, after translating Slurm's names to torch's.

    Raises BadInput where the environment has a rank and not what belongs to it.
    """
    if "RANK" in environ:
        missing = [name for name in NEEDED if name not in environ]
        if missing:
            told = f"RANK is set, as a launcher does, but not {', '.join(missing)}"
            raise BadInput(f"{told}: set them, too, or unset RANK")
        _count_ranks_here(environ)
        return True
    if "SLURM_STEP_ID" not in environ or not all(name in environ for name in SLURM.values()):
        return False
    environ.update({name: environ[slurm_name] for name, slurm_name in SLURM.items()})
    environ.setdefault("MASTER_ADDR", _first_host(environ))
    environ.setdefault("MASTER_PORT", str(20_000 + int(environ.get("SLURM_JOB_ID", "0")) % 20_000))
    _count_ranks_here(environ)
    return True


def _count_ranks_here(environ: MutableMapping[str, str]) -> None:
    """Say how many ranks share this machine, as torchrun does: by DeepSpeed's word for it, or Slurm's `8(x31),4`."""
    by_node: list[str] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        ranks, _, repeated = part.partition("(x")
        by_node += [ranks] * int(repeated.rstrip(")") or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    ranks_here = environ.get("LOCAL_SIZE") or dict(enumerate(by_node)).get(node)
    if ranks_here:
        environ.setdefault("LOCAL_WORLD_SIZE", ranks_here)


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, end the others, which would wait for it in vain.

    Returns the code of the one that failed first, which the others may have lost their connection to, but that of bad
    input before any other; 128 and the signal's number where one was killed, as shells do.
    """
    while not (failed := [code for child in children if (code := child.poll())]):  # the first may wait for the others
        if all(child.returncode == 0 for child in children):
            return 0
        time.sleep(0.1)
    time.sleep(OTHERS_TELL_S)
    ended = [child.poll() for child in children]
    _terminate(children, signal.SIGKILL)
    for child in children:
        child.wait()
    code = BAD if BAD in (*failed, *ended) else min(failed)
    return code if code > 0 else 128 - code


def _terminate(children: list[subprocess.Popen[bytes]], number: int = signal.SIGTERM) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _first_host(environ: Mapping[str, str]) -> str:
    """Return the first node of the job; raises ValueError where scontrol cannot say it."""
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_NODELIST", ""))
    if "[" not in nodes:
        return nodes.split(",")[0]
    answer = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise BadInput(f"MASTER_ADDR is not set and scontrol cannot expand {nodes!r}; export MASTER_ADDR")
    return answer.stdout.split()[0]
