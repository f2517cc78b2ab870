"""The loader: the micro-batches of one rank from any step on, read and decoded by worker processes.

Shape legend: B batch, C channels, H and W height and width (of pictures in px, of moments in latent pixels),
T micro-conditioning numbers.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from curate.bad_input import BadInput
from train.config import TrainConfig
from train.data.read_ahead import ReadAhead
from train.data.samples import Bad, LatentSource, Part, Source, read_pick
from train.data.shards import ShardReader
from train.data.slots import Slots, view
from train.index.reader import Index, Member, Sample
from train.order import Order, Picks, rank_positions

HELD_BATCHES = 4
"""Micro-batches that the trainer may hold on to before workers take memory of their own."""
BAD_RATE_SAMPLES = 10_000
"""Samples over which `max_bad_rate` is counted at least."""


class TooManyBad(BadInput):
    """More samples are missing, truncated or corrupt than the settings allow."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank."""

    step: int
    """Global batch that it is a part of."""
    positions: tuple[int, ...]
    """Places in the global batch; they key noise and timesteps."""
    uids: tuple[str, ...]
    """Samples."""
    captions: tuple[str, ...]
    """Captions."""
    time_ids_BT: torch.Tensor
    """Micro-conditioning, fp32."""
    arrays_BCHW: torch.Tensor
    """Posterior moments (source latents), or pictures as uint8 (source images)."""
    bad: tuple[Bad, ...] = ()
    """Samples for which others stand in."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is asked for: places of a global batch. Which rows they hold it works out by itself."""

    step: int
    positions: tuple[int, ...]
    slot: int | None
    """Where the arrays go; None lets the worker take memory of its own."""


class Loader:
    """Yields the micro-batches of one rank from any step on; which ones is a function of (settings, step) alone."""

    def __init__(
        self,
        config: TrainConfig,
        index: Index,
        source: Source,
        *,
        rank: int,
        world_size: int,
        bad_log: Path | None = None,
    ) -> None:
        self.index = index
        self.order = order_of(config, index)
        self.bad: Counter[str] = Counter()
        self.samples_seen = 0
        self._config = config
        self._source = source
        self._bad_log = bad_log
        self._places = rank_positions(
            rank=rank,
            world_size=world_size,
            micro_batch=config.batch.samples_a_pass,
            grad_accumulation=config.batch.grad_accumulation,
        )

    def micro_batches(self, first_step: int, left_out: frozenset[int] = frozenset()) -> Generator[Batch, None, None]:
        """Yield the rank's micro-batches of `first_step`, of the next step, and so on up to the last step.

        The steps `left_out` have none.
        Raises TooManyBad where the rate of bad samples is above the configured one.
        """
        loader = self._config.loader
        ahead = ReadAhead(self._config, self.remote_reader, self._members_of_step, first_step)
        workers: dict[str, Any] = {"num_workers": loader.workers}
        if loader.workers:
            workers |= {
                "prefetch_factor": loader.prefetch,
                "multiprocessing_context": _forkserver(),
                "worker_init_fn": _one_thread,
            }
        slots = Slots(loader.workers * loader.prefetch + HELD_BATCHES, self._slot_bytes())
        reading = _Reading(self._config, self.index, self.order, self._source, slots.memory)
        tasks = self._tasks(first_step, left_out, ahead, slots)
        try:
            for read in DataLoader(reading, sampler=tasks, batch_size=None, collate_fn=_as_it_is, **workers):
                yield self._batch(read, slots)
        finally:
            ahead.stop()

    def _members_of_step(self, step: int) -> list[Member]:
        """Return the stretches of shards that this rank may read in a step."""
        samples = [self.index.sample(int(row)) for row in self.picks(step).rows]
        return [member for sample in samples for member in self.members(sample)]

    def picks(self, step: int) -> Picks:
        """Return this rank's samples of a step, in the order of its places."""
        picks = self.order.batch(step)
        mine = [place for places in self._places for place in places]
        return Picks(rows=picks.rows[mine], visits=picks.visits[mine])

    def members(self, sample: Sample) -> list[Member]:
        """Return the stretches of shards that may be read for a sample."""
        if isinstance(self._source, LatentSource):
            return [member for member in sample.latents if member is not None]
        return [sample.picture]

    @property
    def remote_reader(self) -> ShardReader | None:
        """The reader whose blocks can be fetched ahead; None for a local root."""
        reader = getattr(self._source, "reader", None)
        return reader if reader is not None and reader.cache is not None else None

    def _slot_bytes(self) -> int:
        """Return the length of the largest micro-batch."""
        sizes = [math.prod(self._source.shape(group.bucket_hw)) for group in self.index.groups]
        return max(sizes) * self._source.dtype.itemsize * self._config.batch.samples_a_pass

    def _batch(self, read: Read | BadInput, slots: Slots) -> Batch:
        if isinstance(read, BadInput):
            raise read
        arrays_BCHW, task = read.arrays_BCHW, read.task
        if task.slot is not None:
            arrays_BCHW = slots.lend(task.slot, read.shape, self._source.dtype)
        assert arrays_BCHW is not None
        batch = Batch(
            step=task.step,
            positions=task.positions,
            uids=read.uids,
            captions=read.captions,
            time_ids_BT=torch.from_numpy(read.time_ids_BT),
            arrays_BCHW=arrays_BCHW,
            bad=read.bad,
        )
        self._count(batch)
        return batch

    def _tasks(self, first_step: int, left_out: frozenset[int], ahead: ReadAhead, slots: Slots) -> Iterator[Task]:
        for step in (step for step in range(first_step, self._config.steps) if step not in left_out):
            ahead.reached(step)
            for positions in self._places:
                yield Task(step=step, positions=positions, slot=slots.take())

    def _count(self, batch: Batch) -> None:
        self.samples_seen += len(batch.positions)
        if not batch.bad:
            return
        self.bad.update(bad.reason for bad in batch.bad)
        if self._bad_log is not None:
            self._bad_log.parent.mkdir(parents=True, exist_ok=True)
            with self._bad_log.open("a") as file:
                file.writelines(json.dumps({"step": batch.step, **asdict(bad)}) + "\n" for bad in batch.bad)
        allowed = self._config.loader.max_bad_rate * max(self.samples_seen, BAD_RATE_SAMPLES)
        if self.bad.total() > allowed:
            raise TooManyBad(
                f"loader.max_bad_rate = {self._config.loader.max_bad_rate}: {self.bad.total()} of {self.samples_seen}"
                f" samples are bad ({dict(self.bad)}), the last one: {batch.bad[-1].message};"
                f" look with python -m train.data --root {self._config.root} --check"
            )


def order_of(config: TrainConfig, index: Index) -> Order:
    """Return the order of a split under these settings."""
    return Order(
        groups=index.order_groups(config.order.mixing),
        global_batch=config.batch.global_batch,
        seed=config.seed,
        piece_rows=config.order.piece_rows,
        window_pieces=config.order.window_pieces,
    )


def dropped(order: Order, index: Index) -> int:
    """Return how many rows of the tables, but for those of weight 0, no stream of the order reaches."""
    return index.rows_found - index.left_out - sum(group.num_rows for group in order.groups)


def collate(step: int, positions: tuple[int, ...], parts: list[Part], bad: tuple[Bad, ...] = ()) -> Batch:
    """Stack samples into a micro-batch."""
    return Batch(
        step=step,
        positions=positions,
        uids=tuple(part.sample.uid for part in parts),
        captions=tuple(part.sample.caption for part in parts),
        time_ids_BT=torch.tensor([part.time_ids for part in parts], dtype=torch.float32),
        arrays_BCHW=torch.from_numpy(np.stack([part.array_CHW for part in parts])),
        bad=bad,
    )


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a worker sends back: a micro-batch without its arrays, unless there was no slot for them."""

    task: Task
    uids: tuple[str, ...]
    captions: tuple[str, ...]
    time_ids_BT: np.ndarray
    shape: tuple[int, ...]
    arrays_BCHW: torch.Tensor | None
    bad: tuple[Bad, ...]


class _Reading(Dataset):
    """What runs in a worker: a task in, a micro-batch out, its arrays laid into the task's slot."""

    def __init__(self, config: TrainConfig, index: Index, order: Order, source: Source, memory: torch.Tensor) -> None:
        self._config, self._index, self._order, self._source = config, index, order, source
        self._memory = memory

    def __getitem__(self, task: Task) -> Read | BadInput:
        """Return the micro-batch, or what the user must mend: an error that a worker raises loses its type."""
        try:
            return self._read(task)
        except BadInput as error:
            return error

    def _read(self, task: Task) -> Read:
        source, chosen = self._source, list(task.positions)
        picks = self._order.batch(task.step)
        rows, visits = picks.rows[chosen].tolist(), picks.visits[chosen].tolist()
        shape = (len(rows), *source.shape(self._index.group_of(rows[0]).bucket_hw))
        own = torch.empty(math.prod(shape) * source.dtype.itemsize, dtype=torch.uint8) if task.slot is None else None
        arrays_BCHW = view(self._memory[task.slot] if own is None else own, shape, source.dtype)
        read = [
            read_pick(self._config, self._index, source, row, visit, array_CHW)
            for row, visit, array_CHW in zip(rows, visits, arrays_BCHW, strict=True)
        ]
        return Read(
            task=task,
            uids=tuple(part.sample.uid for part, _ in read),
            captions=tuple(part.sample.caption for part, _ in read),
            time_ids_BT=np.array([part.time_ids for part, _ in read], dtype=np.float32),
            shape=shape,
            arrays_BCHW=None if own is None else torch.from_numpy(arrays_BCHW),
            bad=tuple(one for _, found in read for one in found),
        )


def _forkserver() -> Any:
    """Workers come from a process without CUDA, threads and open connections, which has imported this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _one_thread(_worker: int) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to workers, too: the trainer ends them
    cv2.setNumThreads(1)


def _as_it_is(read: Read | BadInput) -> Read | BadInput:
    return read
