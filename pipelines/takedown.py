#!/usr/bin/env python3
"""Takedown: samples are removed from tables, raw files, shards and latents, and stay away from then on.

python pipelines/takedown.py --uid UID ... --url URL ... --sha256 HASH ... [--with_duplicates]

The list of what was taken down is kept as hashes in takedowns.json under the root; ingest and selection ask it.
A command that was killed is run again. Do not run it beside another step or a training that reads the shards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.bad_input import BadInput
from curate.config import CurationConfig
from curate.takedown import TakenDown, among, asked_for
from curate.tar import TarShard, index_tar
from pipelines.command import one_line, read_curation
from pipelines.dedup_index import remove_from_entry
from pipelines.ingest_dumps import LISTINGS, gone_from_listing
from pipelines.store import (
    Receipt,
    Root,
    amend,
    finished_fragments,
    manifest,
    parquet_bytes,
    read_receipt,
    scratch_file,
    table_file,
)
from pipelines.taken_down import read_taken_down, write_taken_down

TABLES = (
    "latents",
    "shards",
    "plan",
    "selection",
    "scores",
    "duplicates",
    "features",
    "captions",
    "caption_counts",
    "texts",
    "recaptions",
    "fetches",
    "urls",
    "listings",
    "samples",
)
"""What speaks of samples, what is made last first; listings are compared with the samples, which come at the end."""
COUNTED = {"plan": ("shard", "tables/plan/parts"), "urls": ("chunk", "raw/urls"), "listings": ("chunk", "raw/listings")}
"""Tables of files with their numbers of rows: the column that names the file, and its folder."""
FOLDERS = ("tables", "raw", "shards", "latents")
"""Where samples lie; what a killed run left unfinished there may have any of them."""
OPEN = "takedown_open.json"
IMAGES = ("jpg", "webp", "png")


def take_down(config: CurationConfig, asked: TakenDown, with_duplicates: bool) -> Iterator[str]:
    """Remove what is asked for and what was asked for before; yield what was removed, in lines without names."""
    root = Root(config.root)
    known = read_taken_down(root) | asked
    write_taken_down(root, known)
    found = known.uids | _matching(root, known)
    duplicates = _duplicates(root, found) - found
    if with_duplicates:
        found, duplicates = found | duplicates, frozenset()
    write_taken_down(root, known | TakenDown(uids=found))
    yield from remove_from_entry(config, found)
    for table in TABLES:
        yield from _clean_table(root, table, found)
    _count_latents(root)
    for draft in (name for folder in FOLDERS for name in root.drafts(folder)):
        root.remove(draft)
        yield f"{draft}: left unfinished"
    if duplicates:
        yield f"{len(duplicates)} more samples are duplicates of these: --with_duplicates takes them down as well"


def _matching(root: Root, known: TakenDown) -> frozenset[str]:
    """Return the uids with a URL or bytes on the list: of samples, and of what a crawl lists and has fetched so far."""
    files = [table_file(table, name) for table in ("samples", "fetches") for name in finished_fragments(root, table)]
    found: set[str] = set()
    for file in [*files, *(file for file in _files_of(root, "urls") if file.startswith("raw/"))]:
        there = root.column_names(file)
        rows = root.read_table(file, [name for name in known.columns() if name in there])
        found |= set(rows["uid"].filter(pa.array(known.rows(rows))).to_pylist())
    return frozenset(found)


def _files_of(root: Root, table: str) -> list[str]:
    receipts = (read_receipt(root, table, name) for name in finished_fragments(root, table))
    return sorted(file for receipt in receipts if receipt is not None for file in receipt.files)


def _duplicates(root: Root, uids: frozenset[str]) -> frozenset[str]:
    """Return the samples that dedup put into a cluster with any of these."""
    if not uids or not root.exists("tables/duplicates/_run.json"):
        return frozenset()
    files = [file for said in manifest(root, "duplicates")["fragments"].values() for file in said["files"]]
    tables = [root.read_table(file, ["uid", "cluster_id"]) for file in files]
    whole = pa.concat_tables(tables)
    clusters = set(whole["cluster_id"].filter(among(whole["uid"], uids)).drop_null().to_pylist()) | uids
    return frozenset(whole["uid"].filter(among(whole["cluster_id"], frozenset(clusters))).to_pylist())


def _clean_table(root: Root, table: str, uids: frozenset[str]) -> Iterator[str]:
    half_done = root.read_json(OPEN) or {}
    for fragment in finished_fragments(root, table):
        receipt = read_receipt(root, table, fragment)
        assert receipt is not None, f"{table}/{fragment}: the table names it, and it has no receipt"
        rows = {file: _gone(root, file, uids) for file in sorted(receipt.files) if file.endswith(".parquet")}
        hit = {file: gone for file, gone in rows.items() if pc.any(gone).as_py()}
        if hit or half_done == {"table": table, "fragment": fragment}:
            root.write_json(OPEN, {"table": table, "fragment": fragment})
            yield from _clean_fragment(root, table, receipt, hit, uids)
            amend(root, table, receipt)
            root.remove(OPEN)


def _gone(root: Root, file: str, uids: frozenset[str]) -> pa.Array | pa.ChunkedArray:
    """Return which rows of a parquet file go; none of one without uids."""
    if file.startswith(LISTINGS):
        return gone_from_listing(root, file, uids)
    if "uid" not in root.column_names(file):
        return pa.array([], pa.bool_())
    return among(root.read_table(file, ["uid"])["uid"], uids)


def _clean_fragment(
    root: Root, table: str, receipt: Receipt, hit: Mapping[str, Any], uids: frozenset[str]
) -> Iterator[str]:
    """Rewrite the tars and then the tables of a fragment; what is done already is done again, to the same end.

    `hit` has by file which of its rows go.
    """
    for file, gone in hit.items():
        rows = root.read_table(file)
        shards = set(rows["shard"].filter(gone).drop_null().to_pylist()) if "shard" in rows.column_names else set()
        offsets: dict[str, int] = {}
        for shard in sorted(shards & receipt.files.keys()):
            removed, found = _rewrite_tar(root, shard, uids)
            offsets |= found
            yield f"{shard}: {removed} files"
        rows = rows.filter(pc.invert(gone))
        if table in ("shards", "latents") and offsets:
            rows = _placed(rows, offsets)
        root.write(file, parquet_bytes(rows))
        yield f"{file}: {pc.sum(gone).as_py()} rows"
    if table in COUNTED:
        _recount(root, table, receipt)


def _rewrite_tar(root: Root, relative: str, uids: frozenset[str]) -> tuple[int, dict[str, int]]:
    """Write a tar without those samples; return how many members went, and where the data of each other one begins.

    In raw tars zeros take their place, since other tables say where the rest lies.
    """
    path, removed, offsets = scratch_file(".tar"), 0, {}
    with root.fs.open(root.path(relative), "rb") as source, path.open("wb") as target:
        tar = TarShard(target)
        for member in index_tar(source, root.size(relative) or 0):
            assert member.status is None, f"{relative}: {member.error}"
            uid, _, ending = member.name.partition(".")
            gone = uid in uids
            if gone and not relative.startswith("raw/"):
                removed += 1
                continue
            data = bytes(member.num_bytes) if gone else root.read(relative, member.offset, member.num_bytes)
            removed += gone and ending != "removed"
            offset = tar.add(f"{uid}.removed" if gone else member.name, data)
            assert relative.startswith("shards/") or relative.startswith("latents/") or offset == member.offset
            offsets[member.name] = offset
        tar.close()
    root.write_file(relative, path)
    path.unlink()
    return removed, offsets


def _placed(rows: pa.Table, offsets: dict[str, int]) -> pa.Table:
    """Return the rows with the new offsets of their images or latents, where their tar was rewritten."""
    moved = [
        next((offsets[name] for name in _names(row) if name in offsets), row["offset"])
        for row in rows.select([n for n in ("uid", "offset", "variant") if n in rows.column_names]).to_pylist()
    ]
    at = rows.schema.get_field_index("offset")
    return rows.set_column(at, rows.schema.field(at), pa.array(moved, pa.int64()))


def _names(row: dict[str, Any]) -> list[str]:
    if "variant" in row:
        return [f"{row['uid']}.v{row['variant']}.npy"]
    return [f"{row['uid']}.{ending}" for ending in IMAGES]


def _recount(root: Root, table: str, receipt: Receipt) -> None:
    """Bring a table's numbers of rows in line with the files they speak of."""
    file, (column, folder) = table_file(table, receipt.fragment), COUNTED[table]
    rows = root.read_table(file)
    counts = [root.num_rows(f"{folder}/{name}.parquet") for name in rows[column].to_pylist()]
    at = rows.schema.get_field_index("rows")
    root.write(file, parquet_bytes(rows.set_column(at, rows.schema.field(at), pa.array(counts, pa.int64()))))


def _count_latents(root: Root) -> None:
    said = root.read_json("latents/run.json")
    if said is not None and root.exists("tables/latents/_run.json"):
        root.write_json("latents/run.json", said | {"rows": manifest(root, "latents")["rows"]})


def main() -> None:
    config, flags = read_curation("takedown", __doc__, sys.argv[1:], _flags)
    with one_line("takedown", "the takedown is half done: run the same command again to end it"):
        if not (flags.uid or flags.url or flags.sha256):
            raise BadInput("nothing to take down: give --uid, --url or --sha256")
        root, lines = Root(config.root), 0
        if not finished_fragments(root, "urls"):
            manifest(root, "samples")
        asked = asked_for(flags.uid, flags.url, flags.sha256)
        if flags.dry_run:
            _tell(root, asked, flags.json)
            return
        for line in take_down(config, asked, flags.with_duplicates):
            print(line)
            lines += 1
        print(
            "done; they stay away from later runs" if lines else "nothing of it was here; it stays away from later runs"
        )


def _tell(root: Root, asked: TakenDown, as_json: bool) -> None:
    """Print what would be removed, and remove nothing."""
    found = _matching(root, read_taken_down(root) | asked)
    duplicates = _duplicates(root, found) - found
    if as_json:
        print(json.dumps({"uids": sorted(found), "duplicates": sorted(duplicates)}))
    else:
        told = f"would remove {len(found):,} samples; {len(duplicates):,} more duplicate them"
        print("\n".join([*sorted(found), told]))


def _flags(parser) -> None:  # noqa: ANN001 - jsonargparse's parser
    parser.add_argument("--uid", type=str, nargs="+", default=[], help="uids of samples, 32 hex digits each")
    parser.add_argument("--url", type=str, nargs="+", default=[], help="URLs, or paths in a dump, as samples has them")
    parser.add_argument(
        "--sha256", type=str, nargs="+", default=[], help="SHA-256 of original files, 64 hex digits each"
    )
    parser.add_argument(
        "--with-duplicates", "--with_duplicates", action="store_true", help="and the duplicates of these samples"
    )
    parser.add_argument("--dry-run", action="store_true", help="say which samples would go, and remove nothing")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print the uids as JSON")


if __name__ == "__main__":
    main()
