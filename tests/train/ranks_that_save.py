"""Run by two ranks: checkpoints that are published together, and errors of one that end both."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from tests.train.saving import numbers, state_at
from train.checkpoint.newest import find
from train.checkpoint.store import Store
from train.checkpoint.writer import CheckpointFailed, Writer


def main(folder: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    first, ema = state_at(1, rank, size)
    writer = Writer(folder, first.world, keep=3)
    writer.save(first, ema, numbers(1))
    second, ema = state_at(2, rank, size)
    writer.save(second, ema, numbers(2))  # waits for the first
    assert find(folder, "auto") in (f"{folder}/step-00000001", f"{folder}/step-00000002")
    writer.finish()
    assert find(folder, "auto") == f"{folder}/step-00000002"
    dist.barrier()

    full = mock.patch.object(Store, "write", side_effect=OSError(28, "No space left on device"))
    with full if rank == 1 else mock.patch.object(torch, "nothing", create=True):
        writer.save(second, ema, numbers(3))
        try:
            writer.finish()
        except CheckpointFailed as error:
            Path(folder, f"told-{rank}").write_text(str(error))
    assert find(folder, "auto") == f"{folder}/step-00000002"

    alone = f"{folder}/of-rank-{rank}"  # as on nodes that do not share a disk
    os.mkdir(alone)
    with mock.patch("train.checkpoint.writer.SEEN_WITHIN_S", 0.3):
        try:
            Writer(alone, first.world, keep=1)
        except ValueError as error:
            Path(folder, f"blind-{rank}").write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
