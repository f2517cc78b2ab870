"""The check behind python -m train.data --check: every shard and every entry of the index is read."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
from PIL import Image

from curate.command_line import DONE, FAILED, told_in_one_line
from curate.config import require
from curate.config_help import About, PlainParser
from curate.image import DECODER_ERRORS
from curate.tar import BLOCK, index_tar
from train.data.samples import all_finite, array_of
from train.data.shards import BadSample, ShardReader
from train.index.reader import Index, Member, Sample, open_index
from train.index.tars import PICTURES, key_of

PROG = "train.data"
ABOUT = About(
    command="python -m train.data",
    example="python -m train.data --root runs/mine --check",
    reads="the index, shards/ and latents/ under the root",
    writes="nothing",
)
ROWS = 2000
"""Rows that a worker reads at a time."""
SHOWN = 50
"""Faults that are printed for each split; the counts are of all."""
Fault = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Print each fault as a JSON line and a summary; exit code 1 where there is any, 2 where nothing could be read."""
    parser = PlainParser(PROG, "Read every shard and index entry, and report what is wrong as JSON lines.", ABOUT)
    parser.add_argument("--root", required=True, help="folder (fsspec URL) with shards/")
    parser.add_argument("--check", action="store_true", required=True, help="what to do; there is nothing else")
    parser.add_argument("--index", help="local folder with the index (default: <root>/index)")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args(argv)
    from train.index.build import index_folder, splits_of

    with told_in_one_line(PROG, "nothing was changed: run it again"):
        require(args.workers > 0, "workers", args.workers, "must be at least 1")
        splits = splits_of(args.root)
        return _check(args, {split: open_index(index_folder(args.root, args.index, split)) for split in splits})


def _check(args: Any, indexes: dict[str, Index]) -> int:
    total = 0
    for split, index in indexes.items():
        counts: Counter[str] = Counter()
        for fault in faults(args.root, split, index, args.workers):
            counts[fault["reason"]] += 1
            if counts.total() <= SHOWN:
                print(json.dumps({"split": split, **fault}))
        print(json.dumps({"split": split, "rows": len(index), "faults": counts.total(), "by_reason": dict(counts)}))
        total += counts.total()
    return FAILED if total else DONE


def faults(root: str, split: str, index: Index, workers: int) -> Iterator[Fault]:
    """Yield what is wrong with the entries of an index, then with the shards of the split."""
    named = _has_tables(root)
    with _processes(workers) as pool:
        starts = range(0, len(index), ROWS)
        entries = pool.map(_check_rows, [root] * len(starts), [index] * len(starts), starts, [named] * len(starts))
        indexed: dict[str, int] = {}
        for found, shards in entries:
            yield from found
            for shard, count in shards.items():
                indexed[shard] = indexed.get(shard, 0) + count
        known = sorted(set(indexed) | set(_tars(root, split)))
        told = [None if index.left_out else indexed.get(shard, 0) for shard in known]
        for found in pool.map(_check_shard, [root] * len(known), known, told):
            yield from found


@contextlib.contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that leave Ctrl-C to this one, which then waits for what they are reading and no more."""
    leave_ctrl_c = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(count, get_context("forkserver"), initializer=signal.signal, initargs=leave_ctrl_c)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _has_tables(root: str) -> bool:
    """Return whether the curation wrote the shards: then members are named by uid, and pictures fill their bucket."""
    fs, folder = fsspec.core.url_to_fs(root)
    return fs.exists(f"{folder}/tables/shards/_run.json")


def _check_rows(root: str, index: Index, start: int, named: bool) -> tuple[list[Fault], dict[str, int]]:
    """Return the faults of some rows, and how many entries they have in each shard."""
    reader = ShardReader(root=root)
    found: list[Fault] = []
    shards: Counter[str] = Counter()
    for row in range(start, min(start + ROWS, len(index))):
        try:
            sample = index.sample(row)
        except (ValueError, UnicodeDecodeError) as error:
            found.append({"row": row, "reason": "index", "message": str(error)})
            continue
        shards[sample.picture.shard] += 1
        shards.update({member.shard: 1 for member in sample.latents if member is not None})
        found += [{"row": row, "uid": sample.uid, **fault} for fault in _check_sample(reader, sample, named)]
    return found, dict(shards)


def _check_sample(reader: ShardReader, sample: Sample, named: bool) -> Iterator[Fault]:
    try:
        data = _read_named(reader, sample.picture, sample.uid if named else None)
        _check_picture(data, sample, named)
    except BadSample as error:
        yield {"reason": error.reason, "message": str(error)}
    for variant, member in enumerate(sample.latents):
        try:
            if member is not None:
                _check_moments(_read_named(reader, member, f"{sample.uid}.v{variant}"), sample)
        except BadSample as error:
            yield {"reason": error.reason, "message": str(error)}


def _read_named(reader: ShardReader, member: Member, key: str | None) -> bytes:
    """Return a member's bytes; raises BadSample where the tar has another member at that place, or none."""
    place = f"{member.shard} at {member.offset}"
    if member.offset < BLOCK:
        raise BadSample("misplaced", f"{place}: no member of a tar begins there; build the index again")
    whole = Member(shard=member.shard, offset=member.offset - BLOCK, num_bytes=member.num_bytes + BLOCK)
    data = reader.read(whole)
    try:
        header = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        told = f"{place}: no member of a tar begins there ({error}); build the index again"
        raise BadSample("misplaced", told) from error
    if header.size != member.num_bytes or key not in (None, key_of(header.name)):
        told = f"{header.name} of {header.size} bytes, {key or 'a member'} of {member.num_bytes} expected"
        raise BadSample("misplaced", f"{place}: {told}; build the index again")
    return data[BLOCK:]


def _check_picture(data: bytes, sample: Sample, fills: bool) -> None:
    """Raise BadSample where the picture does not decode to its last row, or does not fill its bucket and should."""
    place = f"{sample.picture.shard} at {sample.picture.offset}"
    try:
        with Image.open(io.BytesIO(data)) as image:
            found_hw = image.convert("RGB").size[::-1]
    except DECODER_ERRORS as error:
        raise BadSample("corrupt", f"{place}: {error}") from error
    if fills and found_hw != sample.bucket_hw:
        raise BadSample("size", f"{place}: a picture of {found_hw} px in the bucket {sample.bucket_hw}")


def _check_moments(data: bytes, sample: Sample) -> None:
    """Raise BadSample where the moments are no finite array in the aspect of the bucket."""
    try:
        moments_CHW = array_of(data)
    except ValueError as error:
        raise BadSample("corrupt", f"moments of {sample.uid}: {error}") from error
    height, width = sample.bucket_hw
    fits = moments_CHW.ndim == 3 and moments_CHW.shape[1] * width == moments_CHW.shape[2] * height
    if not fits or not all_finite(moments_CHW):
        raise BadSample("corrupt", f"moments of {sample.uid}: shape {moments_CHW.shape} for a picture {height}x{width}")


def _check_shard(root: str, shard: str, entries: int | None) -> list[Fault]:
    """Return what is wrong with a tar as an archive, and with the number of its samples in the index, where known."""
    fs, folder = fsspec.core.url_to_fs(root)
    path = f"{folder}/{shard}"
    try:
        with fs.open(path, "rb") as file:
            members = list(index_tar(cast(BinaryIO, file), fs.size(path)))
    except FileNotFoundError:
        return [{"shard": shard, "reason": "missing", "message": f"missing: {path}"}]
    found = [
        {"shard": shard, "reason": "archive", "message": f"{shard}: {member.name or 'the archive'}: {member.error}"}
        for member in members
        if member.status is not None
    ]
    keys = {_sample_key(member.name) for member in members if member.status is None and member.offset >= BLOCK} - {None}
    if entries is not None and len(keys) != entries and not found:
        told = f"{shard}: {len(keys)} samples in the tar, {entries} in the index; build the index again"
        found.append({"shard": shard, "reason": "not_indexed", "message": told})
    return found


def _sample_key(name: str) -> str | None:
    """Return the key of the sample that a picture or its moments (`<key>.v0.npy`) belong to; None for all else."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".npy":
        return key_of(key_of(name))
    return key_of(name) if suffix in PICTURES else None


def _tars(root: str, split: str) -> list[str]:
    fs, folder = fsspec.core.url_to_fs(root)
    paths = [path for kind in ("shards", "latents") for path in fs.glob(f"{glob.escape(folder)}/{kind}/{split}/*.tar")]
    return [path.removeprefix(f"{folder}/") for path in paths]
