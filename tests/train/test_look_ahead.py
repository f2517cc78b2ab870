"""Micro-batches come in order, each once, and one ahead only where that was asked for."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from curate.bad_input import BadInput
from train.clock import Clock
from train.look_ahead import LookAhead
from train.recipes import base


@pytest.fixture
def clock() -> Clock:
    return Clock(0, base())


def test_one_micro_batch_is_read_ahead_and_none_is_lost_or_repeated(clock: Clock) -> None:
    read: list[int] = []

    def batches() -> Generator[Any, None, None]:
        for number in range(3):
            read.append(number)
            yield number

    ahead = LookAhead(batches(), lambda number: f"inputs {number}")  # type: ignore[arg-type, return-value]
    assert ahead.take(clock) == "inputs 0" and read == [0]
    ahead.prepare(clock)
    ahead.prepare(clock)
    assert read == [0, 1]
    assert [ahead.take(clock), ahead.take(clock)] == ["inputs 1", "inputs 2"]
    ahead.prepare(clock)  # after the last one there is nothing to prepare
    with pytest.raises(AssertionError, match="after the last one"):
        ahead.take(clock)


def test_closing_lets_go_of_the_loader_and_of_what_was_ready(clock: Clock) -> None:
    closed: list[bool] = []

    def batches() -> Generator[Any, None, None]:
        try:
            yield from range(3)
        finally:
            closed.append(True)

    ahead = LookAhead(batches(), lambda number: number)  # type: ignore[arg-type, return-value]
    ahead.prepare(clock)
    ahead.close()
    assert closed == [True]
    with pytest.raises(AssertionError, match="after the last one"):
        ahead.take(clock)


def test_what_is_wrong_with_the_next_micro_batch_waits_until_it_is_taken(clock: Clock) -> None:
    def batches() -> Generator[Any, None, None]:
        yield 0
        raise BadInput("loader.max_bad_rate = 0: 1 of 2 samples are bad")

    ahead = LookAhead(batches(), lambda number: number)  # type: ignore[arg-type, return-value]
    ahead.take(clock)
    ahead.prepare(clock)
    with pytest.raises(BadInput, match="1 of 2 samples are bad"):
        ahead.take(clock)
