"""The index: where each sample lies and what the networks are told of it, on disk, read row by row.

A folder for each split: `rows.bin` (one ROW each, grouped by aspect bucket, source and weight, in the
order of the shards), `captions.bin` (UTF-8), `shards.txt` (names, padded to one length) and, written
last, `index.json`. A process holds the groups only, so its memory does not grow with the samples.

    python -m train.index --root ROOT [--weight SQL] [--resolution_px 1024]
"""

from __future__ import annotations

import bisect
import functools
import json
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from curate.bad_input import BadInput
from curate.command_line import DONE, told_in_one_line
from curate.config_help import About, PlainParser
from train.order import Group, repeats_of

VERSION = 2
PROG = "train.index"
ABOUT = About(
    command="python -m train.index",
    example="python -m train.index --root runs/mine --weight 'weight * 2'",
    reads="tables/shards and tables/latents under the root, or the tars themselves where there are none",
    writes="<root>/index/<split>/, or --index for a remote root",
)
ROW = np.dtype(
    [
        ("uid", "V16"),
        ("shard", "<u4"),
        ("num_bytes", "<u4"),
        ("offset", "<i8"),
        ("original_height_px", "<i4"),
        ("original_width_px", "<i4"),
        ("crop_top_px", "<i4"),
        ("crop_left_px", "<i4"),
        ("aesthetic", "<f4"),
        ("caption_bytes", "<u4"),
        ("caption_offset", "<i8"),
        ("latent_shard", "<u4"),
        ("latent_bytes", "<u4"),
        ("latent_offsets", "<i8", 2),
    ]
)
"""One sample; a latent offset of -1 says that the variant (as it is, mirrored) was not encoded."""
_FIELDS = struct.Struct("<16sIIqiiiifIqIIqq")
"""The same for one row at a time, which numpy is slow at."""
assert _FIELDS.size == ROW.itemsize


@dataclass(frozen=True, kw_only=True)
class Member:
    """A stretch of bytes in a shard."""

    shard: str
    """Tar, relative to the root."""
    offset: int
    """First byte."""
    num_bytes: int
    """Length in bytes."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample."""

    row: int
    """Row of the index."""
    uid: str
    """Identity, 32 hex characters."""
    caption: str
    """Caption."""
    picture: Member
    """The picture's bytes."""
    latents: tuple[Member | None, Member | None]
    """The moments as they are and mirrored; None where they were not encoded."""
    bucket_hw: tuple[int, int]
    """Height and width of the picture that the network sees, in px."""
    original_hw: tuple[int, int]
    """Height and width before resizing, in px."""
    crop_top_px: int
    """Rows cut off at the top."""
    crop_left_px: int
    """Columns cut off at the left."""
    aesthetic: float
    """Aesthetic score, 1..10; NaN where there is none."""


@dataclass(frozen=True, kw_only=True)
class IndexGroup:
    """Neighbouring rows of one aspect bucket, source and weight."""

    bucket_hw: tuple[int, int]
    """Height and width, in px."""
    source: str
    """Name of the source."""
    weight: float
    """Sampling weight: how often an epoch shows each row, beside the mixing of sources."""
    first_row: int
    """First row."""
    num_rows: int
    """Rows."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The rows of one split."""

    folder: str
    """Where its files lie."""
    digest: str
    """Identity of what it was made from."""
    groups: tuple[IndexGroup, ...]
    """All groups, in the order of their rows."""
    shard_name_bytes: int
    """Length of each line of shards.txt."""
    rows_found: int
    """Rows of the tables, those that the weight leaves out included."""
    missing_aesthetic: int
    """Rows without the score."""
    missing_latents: tuple[int, int]
    """Rows without moments as they are, and mirrored."""
    left_out: int
    """Rows of the tables that the weight leaves out."""
    resolution_px: int
    """Aspect buckets that pictures in tars were laid into where they named none."""

    def __len__(self) -> int:
        return sum(group.num_rows for group in self.groups)

    def sample(self, row: int) -> Sample:
        """Return one row, read from disk."""
        (
            uid,
            shard,
            num_bytes,
            offset,
            height_px,
            width_px,
            top_px,
            left_px,
            aesthetic,
            caption_bytes,
            caption_offset,
            latent_shard,
            latent_bytes,
            *latent_offsets,
        ) = _FIELDS.unpack(self._read("rows.bin", row * ROW.itemsize, ROW.itemsize))
        still, mirrored = (
            Member(shard=self.shard_name(latent_shard), offset=at, num_bytes=latent_bytes) if at >= 0 else None
            for at in latent_offsets
        )
        return Sample(
            row=row,
            uid=uid.hex(),
            caption=self._read("captions.bin", caption_offset, caption_bytes).decode(),
            picture=Member(shard=self.shard_name(shard), offset=offset, num_bytes=num_bytes),
            latents=(still, mirrored),
            bucket_hw=self.group_of(row).bucket_hw,
            original_hw=(height_px, width_px),
            crop_top_px=top_px,
            crop_left_px=left_px,
            aesthetic=aesthetic,
        )

    def shard_name(self, number: int) -> str:
        """Return a shard's path, relative to the root."""
        return _shard_name(f"{self.folder}/shards.txt", self.digest, self.shard_name_bytes, number)

    def group_of(self, row: int) -> IndexGroup:
        """Return the group that a row lies in."""
        return self.groups[bisect.bisect_right(self._first_rows, row) - 1]

    def alike(self, row: int) -> range:
        """Return the rows of the same bucket, source and weight."""
        group = self.group_of(row)
        return range(group.first_row, group.first_row + group.num_rows)

    def in_bucket(self, row: int) -> range:
        """Return all rows of the same bucket: the groups of a bucket are neighbours."""
        bucket_hw = self.group_of(row).bucket_hw
        mine = [group for group in self.groups if group.bucket_hw == bucket_hw]
        return range(mine[0].first_row, mine[-1].first_row + mine[-1].num_rows)

    @functools.cached_property
    def _first_rows(self) -> list[int]:
        return [group.first_row for group in self.groups]

    def _read(self, name: str, offset: int, num_bytes: int) -> bytes:
        return _pread(f"{self.folder}/{name}", self.digest, offset, num_bytes)

    def order_groups(self, mixing: dict[str, float] | None) -> tuple[Group, ...]:
        """Return the groups as the order wants them: weights and shares of the sources as exact repeats."""
        lengths: dict[str, Fraction] = {}
        for group in self.groups:
            shown = Fraction(str(group.weight)) * group.num_rows
            lengths[group.source] = lengths.get(group.source, Fraction(0)) + shown
        repeats = repeats_of(lengths, mixing)
        buckets = sorted({group.bucket_hw for group in self.groups})
        return tuple(
            Group(
                bucket=buckets.index(group.bucket_hw),
                first_row=group.first_row,
                num_rows=group.num_rows,
                repeats=repeats[group.source] * Fraction(str(group.weight)),
            )
            for group in self.groups
        )

    def require_aesthetic(self) -> None:
        """Raise ValueError where a row lacks the score that the refiner is conditioned on."""
        if self.missing_aesthetic:
            raise BadInput(
                f"{self.folder}: {self.missing_aesthetic} samples lack the aesthetic score; run the score step"
                " (python pipelines/score.py), export again, and build the index again"
            )


def open_index(folder: str | Path) -> Index:
    """Return the index of a split; raises FileNotFoundError or ValueError where it is not whole."""
    path = Path(folder) / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no index there; build it with python -m {PROG} --root ROOT")
    said = json.loads(path.read_text())
    if said["version"] != VERSION:
        raise BadInput(f"{path}: version = {said['version']}: this code reads {VERSION}; build the index again")
    said["missing_latents"] = tuple(said["missing_latents"])
    groups = tuple(IndexGroup(**(group | {"bucket_hw": tuple(group["bucket_hw"])})) for group in said["groups"])
    index = Index(
        folder=str(folder), groups=groups, **{name: said[name] for name in said if name not in ("version", "groups")}
    )
    expected, found = len(index) * ROW.itemsize, (Path(folder) / "rows.bin").stat().st_size
    if found != expected:
        raise BadInput(f"{folder}/rows.bin: {found} bytes, {expected} expected; build the index again")
    return index


@functools.lru_cache(maxsize=4096)
def _shard_name(path: str, digest: str, length: int, number: int) -> str:
    return _pread(path, digest, number * length, length).decode().rstrip()


def _pread(path: str, digest: str, offset: int, num_bytes: int) -> bytes:
    data = os.pread(_descriptor(path, digest), num_bytes, offset)
    if len(data) != num_bytes:
        raise BadInput(f"{path}: {len(data)} bytes at {offset}, {num_bytes} expected; build the index again")
    return data


@functools.lru_cache(maxsize=64)
def _descriptor(path: str, digest: str) -> int:
    """Return a descriptor that stays open; raises BadInput where another index lies there by now."""
    descriptor = os.open(path, os.O_RDONLY)
    found = json.loads((Path(path).parent / "index.json").read_text())["digest"]
    if found != digest:
        os.close(descriptor)
        raise BadInput(
            f"{path}: built again by another run, with other data or another weight;"
            " give each run an index folder of its own (index)"
        )
    return descriptor


def main(argv: Sequence[str]) -> int:
    """Build the index of every split."""
    from train.index_build import DEFAULT_WEIGHT, IndexOf, alone, build_index, index_folder, splits_of

    parser = PlainParser(PROG, "Index the shards of a root for training; train.run does it by itself.", ABOUT)
    parser.add_argument(
        "--root", required=True, help="folder (fsspec URL) with shards/ and, from the curation, tables/"
    )
    parser.add_argument("--index", help="local folder for the index (default: <root>/index)")
    parser.add_argument("--weight", default=DEFAULT_WEIGHT, help="sampling weight as SQL on the shards table's columns")
    parser.add_argument("--resolution_px", type=int, default=1024, help="aspect buckets of pictures that name none")
    parser.add_argument("--json", action="store_true", help="print one JSON object a split")
    args = parser.parse_args(argv)
    with told_in_one_line(PROG, "nothing is half done: run it again"):
        for split in splits_of(args.root):
            folder = index_folder(args.root, args.index, split)
            what = IndexOf(root=args.root, split=split, weight=args.weight, resolution_px=args.resolution_px)
            with alone(folder, lambda line: print(line, file=sys.stderr)):
                build_index(what, folder)
            index = open_index(folder)
            said = {"folder": str(folder), "rows": len(index), "groups": len(index.groups), "left_out": index.left_out}
            told = "{folder}: {rows} rows in {groups} groups, {left_out} of weight 0 left out".format(**said)
            print(json.dumps(said) if args.json else told)
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
