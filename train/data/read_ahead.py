"""Remote shards: blocks are fetched some steps ahead of the workers, into a cache that should hold the windows."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from train.config import TrainConfig
from train.data.shards import ShardReader
from train.index.reader import Index, Member


class ReadAhead:
    """Fetches the blocks that the coming steps of a remote root need, some steps ahead of the workers.

    A local root has no reader here, and nothing is fetched.
    """

    def __init__(
        self,
        config: TrainConfig,
        reader: ShardReader | None,
        members_of: Callable[[int], list[Member]],
        first_step: int,
    ) -> None:
        self._config = config
        self._reader = reader
        self._members_of = members_of
        self._step = first_step
        self._moved = threading.Condition()
        self._stopped = False
        if self._reader is not None:
            threading.Thread(target=self._run, args=(first_step,), name="read-ahead", daemon=True).start()

    def reached(self, step: int) -> None:
        """Say which step the workers are asked for now."""
        with self._moved:
            self._step = step
            self._moved.notify()

    def stop(self) -> None:
        """End the thread after the blocks it is fetching."""
        with self._moved:
            self._stopped = True
            self._moved.notify()

    def _run(self, step: int) -> None:
        with ThreadPoolExecutor(self._config.loader.threads, thread_name_prefix="fetch") as pool:
            while step < self._config.steps and self._wait_for(step):
                list(pool.map(self._warm, _one_for_each_block(self._reader, self._members_of(step))))
                step += 1

    def _warm(self, member: Member) -> None:
        assert self._reader is not None
        try:
            self._reader.warm(member)
        except Exception as error:  # object stores have errors of their own; who needs the block asks again
            print(f"read ahead: {member.shard}: {error}", file=sys.stderr, flush=True)

    def _wait_for(self, step: int) -> bool:
        """Return True when the step is near enough, False when all is over."""
        with self._moved:
            self._moved.wait_for(lambda: self._stopped or step < self._step + self._config.loader.read_ahead_steps)
            return not self._stopped


def _one_for_each_block(reader: ShardReader | None, members: list[Member]) -> list[Member]:
    """Return members that together touch every block once."""
    assert reader is not None and reader.cache is not None
    first = {(member.shard, block): member for member in members for block in reader.cache.blocks(member)}
    return list(dict.fromkeys(first.values()))


def cache_advice(
    config: TrainConfig, index: Index, members_of: Callable[[int], list[Member]], share: float
) -> str | None:
    """Return a line where the cache cannot hold the windows that a node reads at a time; None where it can.

    `members_of` gives the stretches that may be read for a row, and `share` is the node's part of a global
    batch, 0..1. Every group has a window open; blocks of a window that do not fit are fetched again and again.
    """
    rows = [min(group.num_rows, config.order.piece_rows * config.order.window_pieces) for group in index.groups]
    lengths = [sum(member.num_bytes for member in members_of(group.first_row)) for group in index.groups]
    needed_gb = share * sum(map(int.__mul__, rows, lengths)) / 1e9
    if needed_gb <= config.loader.cache_gb:
        return None
    fits = max(1, int(config.order.window_pieces * config.loader.cache_gb / needed_gb))
    return (
        f"data: loader.cache_gb = {config.loader.cache_gb:g}, but the windows of this node hold {needed_gb:,.0f} GB:"
        f" blocks will be fetched more than once; give the cache that much, or set order.window_pieces to {fits}"
    )
