"""Builds the index of a split from the tables of the curation, or from the tars where there are none.

Fragments are read twice, by processes side by side: first counted by group, then laid into the groups' stretches.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec

from curate.bad_input import BadInput
from curate.lock import held
from train.index.fragments import Fragments
from train.index.reader import ROW, VERSION, open_index
from train.index.rows import Plan, lay_fragment, plan_index, survey_fragment
from train.index.tables import table_fragments
from train.index.tars import tar_fragments

DEFAULT_WEIGHT = "1"
FRAGMENTS_A_PROCESS = 8
"""Fragments that a process must find at least, to be worth its start."""


@dataclass(frozen=True, kw_only=True)
class IndexOf:
    """What an index is made of."""

    root: str
    """Folder by fsspec URL."""
    split: str
    """train, val or another folder under shards/."""
    weight: str = DEFAULT_WEIGHT
    """Sampling weight as SQL on the columns of the shards table."""
    resolution_px: int = 1024
    """Aspect buckets of pictures in tars that name none."""


def index_folder(root: str, index: str | None, split: str) -> Path:
    """Return where the index of a split lies; raises ValueError where the root is remote and no folder is named."""
    if index is None and "://" in root:
        raise BadInput(f"index = None: the root {root} is remote; name a local folder for the index")
    return Path(index or f"{root}/index") / split


def splits_of(root: str) -> list[str]:
    """Return the splits: the folders under shards/."""
    fs, folder = fsspec.core.url_to_fs(root)
    try:
        entries = fs.ls(f"{folder}/shards", detail=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{root}/shards: no such folder; run curation up to the export step") from None
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


def is_current(what: IndexOf, folder: Path) -> bool:
    """Return whether the index is there and was made from what the root holds now."""
    try:
        index = open_index(folder)
    except (FileNotFoundError, ValueError):
        return False
    return index.digest == _digest(_fragments(what), what.weight)


def build_index(
    what: IndexOf, folder: Path, processes: int | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the index of a split; raises ValueError and FileNotFoundError where the data does not allow it.

    `progress` is told how many of how many readings of a fragment are done.
    """
    fragments = _fragments(what)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    draft.mkdir(parents=True)
    try:
        _write(fragments, what, draft, processes, progress or (lambda _done, _total: None))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other builders off an index, as base and refiner share one; remove what a killed one left."""
    told = set[str]()

    def taken(holder: str) -> None:
        if holder not in told:
            say(f"index: waiting for {holder}, which builds {folder}")
            told.add(holder)

    with held(folder.with_name(f".{folder.name}.lock"), taken):
        for draft in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
            shutil.rmtree(draft, ignore_errors=True)
        yield


def _write(
    fragments: Fragments, what: IndexOf, draft: Path, processes: int | None, progress: Callable[[int, int], None]
) -> None:
    readers, weights = fragments.readers, [what.weight] * len(fragments.readers)
    total = 2 * len(readers)
    with _mapping(len(readers) // FRAGMENTS_A_PROCESS if processes is None else processes) as map_:
        surveys = []
        for done, survey in enumerate(map_(survey_fragment, readers, weights), start=1):
            surveys.append(survey)
            progress(done, total)
        plan = plan_index(surveys, what.weight)
        for name, num_bytes in (("rows.bin", plan.num_rows * ROW.itemsize), ("captions.bin", plan.caption_bytes)):
            with (draft / name).open("wb") as file:
                file.truncate(num_bytes)
        laid = map_(lay_fragment, readers, weights, [str(draft)] * len(readers), plan.places)
        for done, _ in enumerate(laid, start=len(readers) + 1):
            progress(done, total)
    for name in ("rows.bin", "captions.bin"):
        with (draft / name).open("rb") as file:
            os.fsync(file.fileno())
    _write_json(draft, plan, digest=_digest(fragments, what.weight), resolution_px=what.resolution_px)


@contextlib.contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a `map` that works in several processes, at most one for each core, or in this one."""
    processes = min(processes, os.cpu_count() or 1)
    if processes < 2:
        yield map
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _write_json(folder: Path, plan: Plan, *, digest: str, resolution_px: int) -> None:
    """Write the names of the shards and, last, index.json."""
    names = [name.encode() for name in plan.shards]
    width = max((len(name) for name in names), default=0)
    (folder / "shards.txt").write_bytes(b"".join(name.ljust(width) for name in names))
    firsts = plan.first_rows
    groups = [
        {"bucket_hw": list(key[:2]), "source": key[2], "weight": key[3], "first_row": firsts[key], "num_rows": count}
        for key, count in plan.counts.items()
    ]
    said = {"version": VERSION, "digest": digest, "shard_name_bytes": width, "resolution_px": resolution_px}
    said |= {"rows_found": plan.rows_found, "left_out": plan.left_out, "missing_aesthetic": plan.missing_aesthetic}
    said |= {"missing_latents": plan.missing_latents, "groups": groups}
    (folder / "index.json").write_text(json.dumps(said, indent=1))


def _digest(fragments: Fragments, weight: str) -> str:
    return hashlib.sha256(json.dumps([VERSION, fragments.digest, weight]).encode()).hexdigest()[:32]


def _fragments(what: IndexOf) -> Fragments:
    """Return what there is to index: the tables' fragments by their manifests, or else the tars."""
    return table_fragments(what.root, what.split) or tar_fragments(what.root, what.split, what.resolution_px)
