"""The next micro-batch, made ready while the device computes this one."""

from __future__ import annotations

from collections.abc import Callable, Generator

from curate.bad_input import BadInput
from train.clock import Clock
from train.data.loader import Batch
from train.objective import Inputs


class LookAhead:
    """Micro-batches as inputs of the networks, one of them ahead where `prepare` is called in time.

    A GPU is given work faster than it does it: what the CPU does between the backward pass and the optimiser, which
    waits for the GPU, costs no time. At the start of a step the same work would leave the GPU idle.
    """

    def __init__(self, batches: Generator[Batch, None, None], inputs_of: Callable[[Batch], Inputs]) -> None:
        self._batches = batches
        self._inputs_of = inputs_of
        self._next: Inputs | None = None
        self._error: BadInput | None = None

    def prepare(self, clock: Clock) -> None:
        """Read and send the next micro-batch, if there is one and it is not ready yet.

        What is wrong with it is told when it is taken: the step before it is to be finished.
        """
        if self._next is not None:
            return
        try:
            with clock.waits_for_data():
                batch = next(self._batches, None)
        except BadInput as error:
            self._error = error
            return
        self._next = None if batch is None else self._inputs_of(batch)

    def take(self, clock: Clock) -> Inputs:
        """Return the next micro-batch; raises BadInput where too many samples were bad."""
        self.prepare(clock)
        if self._error is not None:
            raise self._error
        taken, self._next = self._next, None
        assert taken is not None, "asked for a step after the last one"
        return taken

    def close(self) -> None:
        """Let go of the loader's workers and of what was prepared."""
        self._next = None
        self._batches.close()
