"""Places of roots and sources: of a kind that is known, and for a root one that every process sees and outlives."""

from __future__ import annotations

import os
from collections.abc import Mapping

import fsspec

from curate.bad_input import BadInput
from curate.config import CurationConfig

OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a submitted job, which runs in a copy of the folder that goes away."""


def check_places(config: CurationConfig) -> None:
    """Raise BadInput for a root of no use, and for a URL whose protocol nothing here reads."""
    check_root(config.root)
    sources = {f"web.{source.name}.url_list": source.url_list for source in config.web}
    sources |= {f"dumps.{source.name}.folder": source.folder for source in config.dumps}
    for field, url in sources.items():
        check_protocol(field, url)


def check_protocol(field: str, url: str) -> None:
    """Raise BadInput where fsspec knows no such protocol, or lacks the package for it."""
    try:
        fsspec.get_filesystem_class(fsspec.core.split_protocol(url)[0] or "file")
    except (ValueError, ImportError) as error:
        raise BadInput(f"{field} = {url}: {error}; use a path, or a URL such as s3://bucket/folder") from error


def check_root(url: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise BadInput for a root that ends with the process, or that a submitted job sees in its own copy only."""
    check_protocol("root", url)
    protocol, path = fsspec.core.split_protocol(url)
    if protocol == "memory":
        raise BadInput(f"root = {url}: memory ends with each process: give a folder, or a URL such as s3://bucket/run")
    if protocol not in (None, "file", "local"):
        return
    if OF_A_JOB in environ and not os.path.isabs(path):
        raise BadInput(
            f"root = {url}: a Ray job runs in a copy of the folder that is removed with it:"
            f" give an absolute path that every node sees, or a URL such as s3://bucket/run"
        )
