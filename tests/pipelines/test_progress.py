"""What a step says of its progress: plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import time

import pytest

from pipelines import encode, progress
from pipelines.progress import Progress, time_left


def test_time_left_is_at_the_speed_so_far():
    assert time_left(seconds=30.0, done=3, left=600) == "1:40:00"


def test_a_log_has_plain_lines_with_rate_and_time_left(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    with Progress("features", total=5, done=1) as shown:
        shown.advance(100)
        shown.advance(100)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "features       2/5 fragments, 5 rows/s, 0:01:00 left",
        "features       3/5 fragments, 2 made, 1 already there, 200 rows in 40.0 s, 5 rows/s",
    ]


def test_a_step_that_is_stopped_says_so(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    with pytest.raises(KeyboardInterrupt), Progress("features", total=5, done=0):
        raise KeyboardInterrupt
    assert capsys.readouterr().err.endswith("0/5 fragments, 0 made, 0 already there, stopped\n")


def test_a_log_hears_of_a_long_fragment_before_it_ends(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    monkeypatch.setattr(progress, "LOG_SILENCE_S", 0.05)
    with Progress("features", total=2, done=0):
        time.sleep(0.4)
    said = capsys.readouterr().err.splitlines()
    assert len(said) > 2
    assert set(said[:-1]) == {"features       0/2 fragments, at work for 0:00:00"}


def test_a_long_fit_tells_its_steps(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 15.0, 20.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    after_step = encode.fit_progress(300)
    for step in (10, 30, 40, 60):
        after_step(step)
    assert capsys.readouterr().err.splitlines() == [
        "encode: fitting the autoencoder, 30/300 steps, 0:02:15 left",
        "encode: fitting the autoencoder, 60/300 steps, 0:02:00 left",
    ]
