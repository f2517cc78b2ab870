"""Run by two ranks: rank 1 comes late to the barrier in which rank 0 waits. Each has a file for its stacks.

python -m tests.train.rank_that_hangs FOLDER
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from train.engine import start_world
from train.watch import WatchConfig, Watchdog


def main(folder: Path) -> None:
    world = start_world()
    stacks = os.open(folder / f"rank-{world.rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(stacks, sys.stderr.fileno())  # stacks of two ranks in one file may mingle
    dist.barrier()
    Watchdog(WatchConfig(hang_s=1.0)).fed()
    if world.rank == 1:
        comes_late()
    dist.barrier()
    dist.destroy_process_group()


def comes_late() -> None:
    time.sleep(4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
