#!/usr/bin/env python3
"""Dashboard: what came in, what was dropped and why, what other cut-offs would change, as a web page."""

from __future__ import annotations

import secrets
import socket
import sys
import threading
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.bad_input import BadInput
from curate.config_file import read_settings
from curate.config_help import About
from pipelines.command import one_line
from pipelines.dashboard_server import exported, open_elsewhere
from pipelines.dashboard_server.answers import name_of, shown
from pipelines.dashboard_server.app import application
from pipelines.dashboard_server.index import Index
from pipelines.dashboard_server.settings import DashboardConfig
from pipelines.places import check_protocol
from pipelines.store import MissingTable, Root

ABOUT = About(
    command="python pipelines/dashboard.py",
    example="python pipelines/dashboard.py --root runs/demo --port 8765",
    reads="tables/, raw/ and train/ under the root, of an unfinished run too",
    writes="nothing; labels/ under the root where you label; what --export and --parquet name",
)


def main() -> None:
    settings, _ = read_settings(
        DashboardConfig, sys.argv[1:], prog="pipelines/dashboard.py", description=__doc__, section=_root_of, about=ABOUT
    )
    with one_line("dashboard", "run it again"):
        for field, url in settings.places():
            check_protocol(field, url)
        index = open_index(settings, settings.root, settings.index)
        beside = {}
        for number, root in enumerate(settings.beside, start=1):
            other = open_index(settings, root, f"{settings.index}.{number}" if settings.index else None)
            name = name_of(other)
            beside[name if name not in beside else f"{name} ({number})"] = other
        everything = [index, *beside.values()]
        try:
            if settings.export or settings.parquet:
                write(settings, index, beside)
            else:
                serve(settings, index, beside)
        finally:
            for one in everything:
                one.close()


def write(settings: DashboardConfig, index: Index, beside: dict[str, Index]) -> None:
    """Write what was asked for instead of serving."""
    for one in (index, *beside.values()):
        one.refresh()
    if settings.export:
        made = exported.page(shown(index, beside), settings.max_megapixels)
        root, name = place_of(settings.export)
        root.write(name, made)
        print(f"page     {settings.export}, {len(made) / 1e6:.1f} MB")
    if settings.parquet:
        root, name = place_of(settings.parquet)
        with root.draft_of(name) as draft:
            rows = open_elsewhere.write(index, draft, settings.max_megapixels)
        print(f"parquet  {settings.parquet}, {rows:,} rows")


def place_of(file: str) -> tuple[Root, str]:
    """Return the folder of a file, local or on an object store, and the file's name."""
    folder, _, name = file.rpartition("/")
    return Root(folder or ("/" if file.startswith("/") else ".")), name


def open_index(settings: DashboardConfig, root: str, file: str | None) -> Index:
    """Return the index of a root, empty as yet; raises MissingTable where there is nothing to look at."""
    index = Index(Root(root), file=file, memory_mb=settings.memory_mb, unchecked=settings.show_unchecked)
    index.look()
    if not index.tables["samples"].fragments:
        index.close()
        raise MissingTable(f"nothing to look at under {root}: {index.tables['samples'].told}")
    return index


def serve(settings: DashboardConfig, index: Index, beside: dict[str, Index]) -> None:
    """Serve the page until Ctrl-C, while the tables are still being read."""
    import uvicorn

    token = None if settings.is_local else secrets.token_urlsafe(32)
    names = (settings.host, *settings.names)
    app = application(shown(index, beside), names=names, token=token, max_megapixels=settings.max_megapixels)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.getaddrinfo(settings.host, settings.port, family)
    except (OSError, UnicodeError) as error:
        raise BadInput(f"host = {settings.host}: {error}; 127.0.0.1 is this machine alone") from error
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        raise BadInput(f"port = {settings.port}: {error.strerror}; --port 0 takes a free one") from error
    listening.listen(128)
    port = listening.getsockname()[1]
    for one in (index, *beside.values()):
        threading.Thread(target=one.refresh_in_background, daemon=True).start()
    name = settings.names[0] if settings.names else settings.host
    shown_host = f"[{name}]" if ":" in name else name
    print(f"dashboard  http://{shown_host}:{port}/{f'?token={token}' if token else ''}", flush=True)
    print("Ctrl-C ends it", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def _root_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the root; the rest of the file is for the commands that make what is shown."""
    return {"root": document["root"]} if "root" in document else {}


if __name__ == "__main__":
    main()
