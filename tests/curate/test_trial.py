"""Trials of hostile files: what ends a child is told, and nothing else is lost."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from curate.image import UnreadableImage
from curate.trial import Trial, tried_first


def decode(data: bytes) -> int:
    """Stand for a decoder: do to its process what the file says."""
    word, _, rest = data.decode().partition(" ")
    if word == "once" and not Path(rest).exists():
        Path(rest).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    ends = {
        "abort": os.abort,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segfault": lambda: ctypes.string_at(0),
        "hang": lambda: time.sleep(60),
        "slow": lambda: time.sleep(0.1),
        "exit": lambda: os._exit(3),
        "torch": lambda: os.abort() if {"torch", "ray"} & set(sys.modules) else None,
    }
    ends.get(word, int)()
    if word == "bad":
        raise RuntimeError("a decoder's own error")
    return len(data)


ENDS = {
    b"abort": "Aborted",
    b"kill": "Killed",
    b"segfault": "Segmentation fault",
    b"hang": "Alarm clock",
    b"exit": "exit code 3",
    b"good": None,
    b"bad": None,
    b"slow": None,
    b"good " + bytes(2**20): None,
}


def test_each_crash_is_told_and_the_next_file_is_tried():
    with Trial(decode, seconds_each=2) as trial:
        assert {data: trial(data) for data in ENDS} == ENDS


def test_many_threads_get_their_own_answers():
    files = [b"slow", b"abort", b"slow", b"slow", b"exit", b"bad", b"slow"] * 2
    with Trial(decode) as trial, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(trial, files)) == [ENDS[data] for data in files]


def test_a_child_that_somebody_else_ends_condemns_no_file(tmp_path):
    with Trial(decode) as trial:
        assert trial(f"once {tmp_path}/mark".encode()) is None
    assert (tmp_path / "mark").exists()


def test_one_child_serves_many_files_without_torch_or_ray():
    with Trial(decode) as trial:
        assert trial(b"torch") is None
        first = trial._child
        assert trial(b"bad") is None
        assert trial._child is first
    assert first._process.returncode == 0


def test_a_child_that_cannot_begin_is_an_error_and_no_verdict(monkeypatch):
    def elsewhere(data: bytes) -> None: ...

    module = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    elsewhere.__module__, elsewhere.__qualname__, module.elsewhere = "only_here", "elsewhere", elsewhere
    with Trial(elsewhere) as trial, pytest.raises(EOFError):
        trial(b"good")


def test_with_care_a_crash_is_an_unreadable_image():
    with tried_first(decode, careful=True) as tried:
        assert tried(b"good") == 4
        with pytest.raises(RuntimeError, match="a decoder's own error"):
            tried(b"bad")
        with pytest.raises(UnreadableImage, match="ended a process of its own: Aborted") as raised:
            tried(b"abort")
    assert raised.value.status == "decoder_crashed"


def test_without_care_nothing_is_put_before_the_decoder():
    with tried_first(decode, careful=False) as tried:
        assert tried is decode
