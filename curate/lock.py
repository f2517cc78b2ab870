"""A lock on a file, held by one process at a time; it ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LOOK_AGAIN_S = 1.0


@contextmanager
def held(path: Path, taken: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file, which is made.

    As long as another process holds it, `taken` is called each second with that one's name, and may raise to give up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        while not _taken_over(file):
            taken(_holder(file))
            time.sleep(LOOK_AGAIN_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(file: TextIO) -> str:
    """Return the name in a file that another process has; one that has only just got it may not have written it yet."""
    for _ in range(20):
        file.seek(0)
        if name := file.read():
            return name
        time.sleep(LOOK_AGAIN_S / 20)
    return "another process"


def _taken_over(file: TextIO) -> bool:
    """Return whether the lock is here now; a file system without locks gives it to everyone, with a warning."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some cluster file systems are mounted without locks
        print(f"warning: {file.name}: {error}: start one run at a time", file=sys.stderr, flush=True)
    return True
