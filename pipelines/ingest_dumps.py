"""Ingest of dumps: what lies in folders, archives and tables is listed, cut into chunks, and read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import CurationConfig, DumpSource
from curate.dump import entries
from curate.dump.kinds import Part, dump_parts, list_part, num_samples, read_listing
from curate.sample import sample_uid
from curate.takedown import among
from pipelines.runner import Fragment, Made, Step, say
from pipelines.store import Root, made_as, manifest, parquet_bytes, scratch_file, table_file


def parts_of(config: CurationConfig) -> list[Part]:
    """Return what there is to list of every dump; raises ValueError for one that is not there or not known."""
    found = []
    for source in config.dumps:
        parts = dump_parts(source)
        if not parts:
            say(f"samples: dump {source.name} has no images in {source.folder}")
        found += parts
    return found


def listing_step(config: CurationConfig) -> Step:
    return Step(table="listings", settings=[config.ingest.rows_per_shard], build=_build_listings)


def listing_fragment(part: Part) -> Fragment:
    return Fragment(name=part.name, made_from=[_shaping(part.source), part.version], arguments=(part,))


def _shaping(source: DumpSource) -> dict[str, Any]:
    return {name: value for name, value in asdict(source).items() if name != "evaluation"}


def _build_listings(config: CurationConfig) -> Any:
    def split(part: Part) -> Made:
        chunks = []
        lists: dict[str, bytes | Path] = {}
        for number, listing in enumerate(list_part(part, config.ingest.rows_per_shard)):
            chunk = f"{part.name}-{number:05d}"
            path = scratch_file(".parquet")
            path.write_bytes(parquet_bytes(listing.rows))
            lists |= {_listing_file(chunk): path, f"{LISTINGS}{chunk}{VERSIONS}": listing.versions.encode()}
            chunks.append({"source": part.source.name, "chunk": chunk, "rows": num_samples(listing.rows)})
        schema = pa.schema([("source", pa.string()), ("chunk", pa.string()), ("rows", pa.int64())])
        return Made(rows=pa.Table.from_pylist(chunks, schema=schema), files=lists)

    return split


def dump_fragments(root: Root, parts: list[Part]) -> Iterator[Fragment]:
    """Yield a fragment for each chunk, made from the rows of its listing and the versions of its files."""
    listed = manifest(root, "listings")["fragments"]
    for part in parts:
        files = listed[part.name]["files"]
        for file in sorted(name for name in files if name.endswith(VERSIONS)):
            chunk = file.removeprefix(LISTINGS).removesuffix(VERSIONS)
            made_from = [_shaping(part.source), made_as(files[_listing_file(chunk)]), made_as(files[file])]
            yield Fragment(name=chunk, made_from=made_from, arguments=("dump", part.source, chunk))


def dumped(root: Root, source: DumpSource, chunk: str) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Yield every listed row with its bytes, or with the status of what went wrong."""
    for found in read_listing(source, root.read_table(_listing_file(chunk))):
        row: dict[str, Any] = {"uid": sample_uid(source.name, found.key, found.caption), "source": source.name}
        row |= {"url": entries.shown(found.key), "caption": found.caption, "license": found.license}
        if found.status:
            yield row | {"status": found.status, "error": found.error}, None
        else:
            yield row, found.data


def gone_from_listing(root: Root, file: str, uids: frozenset[str]) -> pa.Array:
    """Return which rows of a listing are these samples; captions that lie beside the images are those of samples."""
    if root.column_names(file) != entries.SCHEMA.names:
        return pa.array([], pa.bool_())
    chunk, listing = file.removeprefix(LISTINGS).removesuffix(".parquet"), root.read_table(file, IDENTITY)
    part = root.read_table(table_file("listings", chunk.rpartition("-")[0]), ["source"])
    source = part["source"][0].as_py()
    has_beside = pc.or_(pc.is_valid(listing["text"]), pc.is_valid(listing["record"])).to_pylist()
    beside = _captions_of(root, chunk, uids) if any(has_beside) else set()

    def goes(key: bytes, captions: Iterable[str | None]) -> bool:
        name = key.decode("utf-8", "surrogatepass")
        return any(sample_uid(source, name, caption) in uids for caption in captions)

    said = zip(listing["key"].to_pylist(), listing["caption"].to_pylist(), has_beside, strict=True)
    return pa.array([goes(key, beside if aside else (caption,)) for key, caption, aside in said], pa.bool_())


def _captions_of(root: Root, chunk: str, uids: frozenset[str]) -> set[str | None]:
    """Return the captions of these samples of a chunk, as far as they are there."""
    if not root.exists(table_file("samples", chunk)):
        return set()
    samples = root.read_table(table_file("samples", chunk), ["uid", "caption"])
    return set(samples["caption"].filter(among(samples["uid"], uids)).to_pylist())


IDENTITY = ("key", "caption", "text", "record")
"""Columns of a listing that tell which samples its rows are."""
LISTINGS, VERSIONS = "raw/listings/", ".versions"


def _listing_file(chunk: str) -> str:
    return f"{LISTINGS}{chunk}.parquet"
