"""Trials: a function meets one file after the other in a child process, which dies alone where a decoder crashes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from curate import sample
from curate.image import UnreadableImage

SECONDS_EACH = 300.0
"""A file that takes longer hangs."""


T = TypeVar("T")


@contextmanager
def tried_first(decode: Callable[[bytes], T], careful: bool) -> Iterator[Callable[[bytes], T]]:
    """Yield `decode`; with `careful`, one that raises UnreadableImage, `decoder_crashed`, where a child dies of it."""
    if not careful:
        yield decode
        return
    with Trial(decode) as trial:

        def tried(data: bytes) -> T:
            if (end := trial(data)) is not None:
                raise UnreadableImage(sample.DECODER_CRASHED, f"decoding it ended a process of its own: {end}")
            return decode(data)

        yield tried


class Trial:
    """Says of files whether a function survives them: of one at a time, whichever thread asks.

    The child gets the function by its name, as pickle has it, so the function's module is all that it imports.
    """

    def __init__(self, function: Callable[[bytes], Any], seconds_each: float = SECONDS_EACH) -> None:
        self._function, self._seconds_each = function, seconds_each
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.end()

    def __call__(self, data: bytes) -> str | None:
        """Return what ends a child that runs the function on these bytes, or None; an exception ends none.

        It must end two of them, the second a new one: earlier files, or somebody outside, may have ended the first.
        """
        with self._lock:
            return self._ended_by(data) and self._ended_by(data)

    def _ended_by(self, data: bytes) -> str | None:
        if self._child is None:
            self._child = _Child(self._function, self._seconds_each)
        if self._child.survives(data):
            return None
        child, self._child = self._child, None
        return child.end()


class _Child:
    def __init__(self, function: Callable[[bytes], Any], seconds_each: float) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "curate.trial", str(theirs.fileno()), str(seconds_each)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection.send(function)
        self._connection.recv_bytes()  # it has the function: what ends it from here on is a file

    def survives(self, data: bytes) -> bool:
        try:
            self._connection.send_bytes(data)
            self._connection.recv_bytes()
        except (EOFError, OSError):  # OSError: it ended before it had read all
            return False
        return True

    def end(self) -> str:
        """Let the child end, and return what ended it."""
        self._connection.close()
        code = self._process.wait()
        return f"exit code {code}" if code >= 0 else str(signal.strsignal(-code))


def _serve(connection: Connection, seconds_each: float) -> None:
    """Run the function on each file that comes; the kernel's timer ends the process, inside of a decoder, too."""
    function = connection.recv()
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError):
        while True:
            data = connection.recv_bytes()
            signal.setitimer(signal.ITIMER_REAL, seconds_each)
            with contextlib.suppress(Exception):  # the one who asks will meet it, too, and know what to make of it
                function(data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(b"survived")


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
