"""One run at a time makes a table of a local root; the lock ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curate.bad_input import BadInput
from pipelines.store import Root, is_local


@contextmanager
def table_lock(root: Root, table: str) -> Iterator[None]:
    """Keep other runs off a table; raises BadInput naming the one that makes it. Object stores have no locks."""
    if not is_local(root.fs):
        yield
        return
    path = Path(root.path(f".locks/{table}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BadInput(
                f"root = {root.url}: {file.read() or 'another run'} makes the table {table} there:"
                " wait until it is done, or stop it; this command goes on from there"
            ) from None
        except OSError as error:  # some cluster file systems are mounted without locks
            print(f"warning: root = {root.url}: {error}: start one run at a time", file=sys.stderr, flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
