"""Writes checkpoints beside the training: a step waits for a copy in host memory, a thread does the rest.

The thread of each rank writes its part, hashing on the way, and then a receipt. Rank 0's thread waits for all
receipts in the folder itself, then writes the manifest. No thread calls a collective: those belong to the steps.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from curate.bad_input import BadInput
from train.checkpoint.files import (
    MANIFEST,
    MOMENTS,
    POINTER,
    State,
    folder_of,
    part_name,
    write_manifest,
    write_part,
)
from train.checkpoint.store import open_store

if TYPE_CHECKING:
    from train.ema import Ema
    from train.engine import Engine, World

RECEIPT, PART = "receipt.json", "safetensors"
OF_A_RANK = "part-"
"""How the names of parts and receipts begin."""
POLL_S = 0.1
"""Time between two looks for receipts of the others."""
SEEN_WITHIN_S = 60.0
"""Network file systems may show a new file that late."""
AFTER_MAIN_S = 60.0
"""How long rank 0 waits for parts of the others once its own training has ended with an error."""


class CheckpointFailed(BadInput):
    """A checkpoint could not be written; raised on all ranks alike, with the ranks and their errors."""

    exit_code = 1
    """No bad input: a store that was away may be back at the next start."""


class Writer:
    """One checkpoint at a time, written while the steps go on. All methods are called by all ranks alike."""

    def __init__(self, folder: str | os.PathLike[str], world: World, keep: int) -> None:
        """Agree on a name for this start of the run; raises BadInput where the ranks do not share the folder."""
        self._folder, self._world, self._keep = os.fspath(folder), world, keep
        self._store = open_store(folder)
        self._attempt = uuid.uuid4().hex[:8]
        self._host: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._given_up = threading.Event()
        self._check_shared()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write; `finish` then raises on all ranks."""
        return self._error is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is writing."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, engine: Engine, ema: Ema, state: State) -> str:
        """Copy the vectors, begin to write them, and return where the checkpoint will be.

        Waits for the one before, and raises CheckpointFailed where that one failed.
        """
        self.finish()
        self._copy(engine, ema)
        self._thread = threading.Thread(target=self._write, args=(state,), name="checkpoint")
        self._thread.start()
        return f"{self._folder}/{folder_of(state.step)}"

    def finish(self) -> None:
        """Wait until what was saved is published; raises CheckpointFailed on all ranks where one failed."""
        if self._thread is None:
            return
        while True:
            busy, failed = self._on_any_rank(self.busy, self.failed)
            if failed:
                self._fail()
            if not busy:
                break
            self._thread.join(POLL_S)
        self._thread = None

    def _copy(self, engine: Engine, ema: Ema) -> None:
        """Fill the host's copy: pinned on CUDA, and allocated once."""
        moments = engine.moments
        zeros = None if moments else torch.zeros_like(engine.master)
        vectors = {"master": engine.master} | {name: moments.get(name, zeros) for name in MOMENTS} | {"ema": ema.part}
        on_gpu = engine.master.is_cuda
        for name, tensor in vectors.items():
            if name not in self._host:
                self._host[name] = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=on_gpu)
            self._host[name].copy_(tensor.detach(), non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.current_stream().synchronize()

    def _write(self, state: State) -> None:
        """Run in the thread: write this rank's part and receipt; on rank 0 publish, too."""
        folder = folder_of(state.step)
        name = part_name(self._world.rank, self._world.size, self._attempt)
        try:
            entry = write_part(self._store, f"{folder}/{name}.{PART}", self._host)
            self._store.put(f"{folder}/{name}.{RECEIPT}", json.dumps(entry).encode())
            if self._world.rank == 0:
                self._publish(folder, state)
        except Exception as error:  # whatever it is, it must reach the steps of all ranks
            self._error = f"rank {self._world.rank}: {type(error).__name__}: {error}"
            if not threading.main_thread().is_alive():
                print(f"{self._folder}/{folder} was not written: {self._error}", file=sys.stderr, flush=True)

    def _publish(self, folder: str, state: State) -> None:
        names = [part_name(rank, self._world.size, self._attempt) for rank in range(self._world.size)]
        self._wait_for(folder, {f"{name}.{RECEIPT}" for name in names})
        if self._given_up.is_set():
            return
        files = {f"{name}.{PART}": json.loads(self._store.get(f"{folder}/{name}.{RECEIPT}")) for name in names}
        write_manifest(self._store, folder, state, files)
        self._store.put(POINTER, folder.encode())
        self._sweep(folder, {MANIFEST, *files})

    def _wait_for(self, folder: str, receipts: set[str]) -> None:
        """Look for the receipts of all ranks until they are there, or nobody will write them any more."""
        alone_since: float | None = None
        while not self._given_up.is_set() and (missing := receipts - set(self._store.names(folder))):
            if not threading.main_thread().is_alive():
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > AFTER_MAIN_S:
                    raise TimeoutError(f"no {', '.join(sorted(missing))}")
            time.sleep(POLL_S)

    def _sweep(self, newest: str, wanted: set[str]) -> None:
        """Remove what other starts left in the newest, all but the last `keep`, and what was never finished.

        Checkpoints of later steps stay: they were passed over as broken, and are overwritten in their turn.
        """
        for name in set(self._store.names(newest)) - wanted:
            self._store.remove(f"{newest}/{name}")
        steps = [name for name in self._store.names() if name.startswith("step-") and name <= newest]
        whole = [name for name in steps if MANIFEST in self._store.names(name)]
        for name in set(steps) - set(whole[-self._keep :]):
            self._store.remove(f"{name}/{MANIFEST}")  # first: without it nobody takes the rest for a checkpoint
            self._store.remove(name)

    def _fail(self) -> None:
        self._given_up.set()
        errors: list[Any] = [None] * self._world.size
        dist.all_gather_object(errors, self._error)
        told = "; ".join(error for error in errors if error)
        raise CheckpointFailed(f"{self._folder}: a checkpoint could not be written: {told}")

    def _on_any_rank(self, *flags: bool) -> list[bool]:
        """Return for each flag whether a rank has it."""
        numbers = torch.tensor([float(flag) for flag in flags], device=self._world.device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return [bool(number) for number in numbers.tolist()]

    def _check_shared(self) -> None:
        """Let rank 0 write a name for this start that all ranks must see."""
        name, error = f".start-{self._attempt}", None
        if self._world.rank == 0:
            try:
                self._make_room()
                self._store.put(name, b"all ranks must see this")
            except Exception as failure:  # object stores have errors of their own
                error = f"cannot write there: {type(failure).__name__}: {failure}"
        said: list[Any] = [(name, error)]
        dist.broadcast_object_list(said, src=0)
        name, error = said[0]
        self._attempt = name.removeprefix(".start-")
        if error:
            raise BadInput(f"checkpoints = {self._folder}: {error}")
        (blind,) = self._on_any_rank(not self._sees(name))
        if self._world.rank == 0:
            self._store.remove(name)
        if blind:
            raise BadInput(
                f"checkpoints = {self._folder}: a rank does not see what rank 0 writes there;"
                " name a folder that all nodes share, or a URL such as s3://bucket/run"
            )

    def _make_room(self) -> None:
        """Remove the parts of checkpoints that earlier starts never finished: a disk full of them takes no other."""
        for folder in (name for name in self._store.names() if name.startswith("step-")):
            found = self._store.names(folder)
            parts = [name for name in found if name.startswith(OF_A_RANK) and MANIFEST not in found]
            for name in parts:
                self._store.remove(f"{folder}/{name}")
            if parts:
                print(f"removed the parts of a checkpoint that was never finished: {self._folder}/{folder}", flush=True)
            if found and not self._store.names(folder):
                self._store.remove(folder)

    def _sees(self, name: str) -> bool:
        limit = time.monotonic() + SEEN_WITHIN_S
        while name not in self._store.names():
            if time.monotonic() > limit:
                return False
            time.sleep(POLL_S)
        return True
