"""Run by two ranks: rank 1 comes late to the barrier in which rank 0 waits."""

from __future__ import annotations

import time

import torch.distributed as dist

from train.engine import start_world
from train.watch import WatchConfig, Watchdog


def main() -> None:
    world = start_world()
    dist.barrier()
    Watchdog(WatchConfig(hang_s=1.0)).fed()
    if world.rank == 1:
        comes_late()
    dist.barrier()
    dist.destroy_process_group()


def comes_late() -> None:
    time.sleep(4)


if __name__ == "__main__":
    main()
