"""One run at a time makes a table of a local root."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from curate.bad_input import BadInput
from curate.lock import held
from pipelines.store import Root, is_local


def table_lock(root: Root, table: str) -> AbstractContextManager[None]:
    """Keep other runs off a table; raises BadInput naming the one that makes it. Object stores have no locks."""

    def taken(holder: str) -> None:
        fix = "wait until it is done, or stop it; this command goes on from there"
        raise BadInput(f"root = {root.url}: {holder} makes the table {table} there: {fix}")

    return held(Path(root.path(f".locks/{table}")), taken) if is_local(root.fs) else nullcontext()
