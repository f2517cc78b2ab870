"""Any WebDataset as fragments of an index: `<key>.jpg` with `<key>.txt` and `<key>.json` in tars under shards/<split>/.

The JSON may hold what the curation's does (sizes, crop, score, source, uid). What it does not name comes
from the picture: its own size is the original one, the nearest aspect bucket is where it is fitted to.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

from curate.bad_input import BadInput
from curate.buckets import ladder, nearest
from curate.image import UnreadableImage, read_header
from curate.resize import enlargement
from curate.tar import TarMember, index_tar
from train.index.fragments import Fragments

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MAX_SCORE, MAX_SIDE_PX = 1e30, 2**31 - 1
"""What the index can hold."""
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uid", "source", "split", "shard", "caption")]
    + [(name, pa.int64()) for name in ("offset", "num_bytes")]
    + [(f"{what}_{side}_px", pa.int32()) for what in ("bucket", "original") for side in ("height", "width")]
    + [("crop_top_px", pa.int32()), ("crop_left_px", pa.int32()), ("aesthetic", pa.float32())]
)


def tar_fragments(root: str, split: str, resolution_px: int) -> Fragments:
    """Return each tar as a fragment; raises FileNotFoundError where there is no folder of the split."""
    fs, folder = fsspec.core.url_to_fs(root)
    tars = {path: fs.info(path) for path in sorted(fs.glob(f"{glob.escape(folder)}/shards/{split}/*.tar"))}
    if not tars and not fs.isdir(f"{folder}/shards/{split}"):
        raise FileNotFoundError(f"{root}/shards/{split}: neither tables/shards nor tars there; run the export step")
    names = [path.removeprefix(f"{folder}/") for path in tars]
    identity = [resolution_px, names, [_state(info) for info in tars.values()]]
    return Fragments(
        readers=tuple(functools.partial(read_tar, root, split, name, resolution_px) for name in names),
        digest=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )


def _state(info: dict[str, Any]) -> list[str]:
    """Return what changes when a file is written again, also one of the same size: tars are padded."""
    return [str(info["size"]), *(str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified") if name in info)]


def key_of(name: str) -> str:
    """Return what the members of one sample share: the path without its last ending."""
    return str(PurePosixPath(name).with_suffix(""))


def read_tar(root: str, split: str, name: str, resolution_px: int) -> pa.Table:
    """Return the rows of one tar; raises ValueError where it is damaged."""
    fs, folder = fsspec.core.url_to_fs(root)
    path = f"{folder}/{name}"
    with fs.open(path, "rb") as file:
        rows = _rows(cast(BinaryIO, file), fs.size(path), name, split, resolution_px)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rows(file: BinaryIO, num_bytes: int, shard: str, split: str, resolution_px: int) -> list[dict[str, Any]]:
    """Return a row for each picture; raises ValueError naming a tar that is damaged."""
    samples: dict[str, dict[str, TarMember]] = {}
    for member in index_tar(file, num_bytes):
        if member.status is not None:
            raise BadInput(f"{shard}: {member.name or 'the archive'}: {member.error}; mend or remove the shard")
        path = PurePosixPath(member.name)
        samples.setdefault(key_of(member.name), {})[path.suffix.lower()] = member
    rows = []
    for key, members in samples.items():
        picture = next((members[suffix] for suffix in PICTURES if suffix in members), None)
        if picture is not None:
            rows.append(_row(file, shard, split, key, picture, members, resolution_px))
    return rows


def _row(
    file: BinaryIO,
    shard: str,
    split: str,
    key: str,
    picture: TarMember,
    members: dict[str, TarMember],
    resolution_px: int,
) -> dict[str, Any]:
    said = _said(file, shard, members)
    caption = _bytes(file, members[".txt"]).decode("utf-8", "replace") if ".txt" in members else said.get("caption")
    row = {
        "uid": hashlib.sha256(f"{shard}\n{key}".encode()).hexdigest()[:32],
        "source": "shards",
        "aesthetic": None,
        **({} if "bucket_height_px" in said else _fitted(file, shard, picture, resolution_px)),
        **{name: said[name] for name in SCHEMA.names if name in said and (name != "uid" or _is_uid(said[name]))},
    }
    place = {"split": split, "shard": shard, "offset": picture.offset, "num_bytes": picture.num_bytes}
    return row | place | {"caption": caption}


def _said(file: BinaryIO, shard: str, members: dict[str, TarMember]) -> dict[str, Any]:
    """Return what the sample says of itself, null values left out; raises BadInput where that cannot be used."""
    if ".json" not in members:
        return {}
    try:
        said = json.loads(_bytes(file, members[".json"]))
    except ValueError as error:
        raise BadInput(
            f"{shard}: {members['.json'].name}: no valid JSON: {error}; mend or remove the sample"
        ) from error
    if not isinstance(said, dict):
        raise BadInput(f"{shard}: {members['.json'].name}: an object is expected; mend or remove the sample")
    told = {name: value for name, value in said.items() if value is not None}
    for name in told.keys() & set(SCHEMA.names):
        wanted = _wanted(name, told[name])
        if wanted is not None:
            place = f"{shard}: {members['.json'].name}: {name} = {told[name]!r}"
            raise BadInput(f"{place}: must be {wanted}; mend or remove the sample")
    return told


def _wanted(name: str, value: Any) -> str | None:
    """Return what a field of a sample's JSON must be where the value is something else."""
    if name in ("source", "caption"):
        return None if isinstance(value, str) else "a text"
    if name == "aesthetic":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and abs(value) <= MAX_SCORE or value != value else "a number, or null"
    if name.endswith("_px"):
        low = 0 if name.startswith("crop") else 1
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= MAX_SIDE_PX else f"a whole number of pixels, {low} or more"
    return None


def _is_uid(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


def _fitted(file: BinaryIO, shard: str, picture: TarMember, resolution_px: int) -> dict[str, int]:
    """Return the conditioning of a picture that says nothing of itself, cut as `train.data.samples.fit_pixels` will."""
    try:
        header = read_header(_bytes(file, picture))
    except UnreadableImage as error:
        raise BadInput(f"{shard}: {picture.name}: {error}; mend or remove the sample") from error
    bucket = nearest(header.height_px, header.width_px, ladder(resolution_px))
    factor = enlargement(header.height_px, header.width_px, bucket)
    return {
        "bucket_height_px": bucket[0],
        "bucket_width_px": bucket[1],
        "original_height_px": header.height_px,
        "original_width_px": header.width_px,
        "crop_top_px": (max(bucket[0], round(header.height_px * factor)) - bucket[0]) // 2,
        "crop_left_px": (max(bucket[1], round(header.width_px * factor)) - bucket[1]) // 2,
    }


def _bytes(file: BinaryIO, member: TarMember) -> bytes:
    """Return a member's bytes; index_tar finds its own way back."""
    position = file.tell()
    file.seek(member.offset)
    data = file.read(member.num_bytes)
    file.seek(position)
    return data
