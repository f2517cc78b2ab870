"""The index before the first step: one rank builds what is missing, the others hear of it until it is there.

A build may take longer than the process group waits for a silent rank, so the builder speaks all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from curate.bad_input import BadInput
from train.config import TrainConfig
from train.index.build import IndexOf, alone, build_index, is_current, splits_of
from train.index.reader import Index, open_index

HEARTBEAT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class News:
    """What the builder tells the other ranks."""

    done: bool
    """Whether nothing more will come."""
    error: str | None = None
    """Why there is no index."""


def index_of_split(config: TrainConfig, split: str, *, factor: int, rank: int, say: Callable[[str], None]) -> Index:
    """Return the index of a split; `factor` is the pixels of a picture for each latent pixel, along a side."""
    side_px = config.unet.sample_size * factor
    what = IndexOf(root=config.data_root, split=split, weight=config.order.weight, resolution_px=side_px)
    index = ready_index(what, Path(config.index_parent) / split, rank=rank, say=say)
    if config.model == "refiner":
        index.require_aesthetic()
    return index


def validation_index(config: TrainConfig, train: Index, *, factor: int, rank: int, say: Callable[[str], None]) -> Index:
    """Return the index of the split val; that of train where val is empty, and say so."""
    if "val" in splits_of(config.data_root):
        index = index_of_split(config, "val", factor=factor, rank=rank, say=say)
        if len(index):
            return index
    say("validation: the split val is empty, so samples of train take its place")
    return train


def ready_index(
    what: IndexOf, folder: Path, *, rank: int, say: Callable[[str], None], heartbeat_s: float = HEARTBEAT_S
) -> Index:
    """Return the index, after rank 0 has built it where it is missing or its data has changed.

    Raises on every rank the ValueError that stops the build.
    """
    news = _build(what, folder, say, heartbeat_s) if rank == 0 else _listen()
    if news.error is not None:
        raise BadInput(news.error)
    return open_index(folder)


def _build(what: IndexOf, folder: Path, say: Callable[[str], None], heartbeat_s: float) -> News:
    """Build in a thread, telling the other ranks all the time that it goes on."""
    readings: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="index") as thread:
        work = thread.submit(_make, what, folder, say, readings)
        while not wait([work], timeout=heartbeat_s).done:
            if readings:
                say(f"index: {readings[-1][0]} of {readings[-1][1]} readings of fragments")
            _tell(News(done=False))
        return _tell(News(done=True, error=_error(work)))


def _make(what: IndexOf, folder: Path, say: Callable[[str], None], readings: list[tuple[int, int]]) -> None:
    if is_current(what, folder):
        return
    with alone(folder, say):
        if is_current(what, folder):
            return  # by another run meanwhile
        say(f"index: building {folder}")
        build_index(what, folder, None, lambda done, total: readings.append((done, total)))


def _error(work: Future[None]) -> str | None:
    """Return what is wrong with the data; raise anything else."""
    error = work.exception()
    if error is None or isinstance(error, ValueError | FileNotFoundError):
        return None if error is None else str(error)
    raise error


def _listen() -> News:
    while True:
        news = _tell(None)
        if news.done:
            return news


def _tell(news: News | None) -> News:
    """Send rank 0's news to all; the others call this with None. Every rank returns it."""
    box: list[News | None] = [news]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]
