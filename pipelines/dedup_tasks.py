"""The tasks of dedup: tables to records in order of rank, and verdicts back to the table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import ranking
from curate.config import CurationConfig
from curate.dedup import records as rec
from curate.dedup import same_bytes
from curate.dedup.text_columns import hex_of_words, words_of_hex
from pipelines.dedup_blocks import SCRATCH, Blocks, write_block
from pipelines.dedup_index import read_index, write_index
from pipelines.shuffle import Parts, gather, read_part, write_parts
from pipelines.store import Root, Written, parquet_bytes, table_file
from schemas.column import conform
from schemas.duplicates import SCHEMA

EXACT, PERCEPTUAL, SEMANTIC, EVAL_SET, ERROR_IMAGE = KINDS = (
    "exact",
    "perceptual",
    "semantic",
    "eval_set",
    "error_image",
)
COUNTED = ("survivors", *KINDS, *rec.LEFT_OUT)
KEYS_A_BLOCK = 1000
ROWS_A_PART = 1_250_000
VERDICT = np.dtype(
    [("row", "i4"), ("kind", "i1"), ("won_by", "i1"), ("distance", "f4"), ("survivor", "u8", 2)], align=True
)
COPY = np.dtype([("of", "i8"), ("key", "u8"), ("fragment", "i4"), ("row", "i4")])
PLACE = np.dtype([("row", "i8"), ("place", "i8")])


@dataclass(frozen=True, kw_only=True)
class Source:
    """One fragment of the root's tables, or one file of the index."""

    fragment: str
    in_index: bool = False


@dataclass(frozen=True, kw_only=True)
class Described:
    """A source's records by their bytes."""

    by_bytes: Parts
    ahead: int
    """Records before every other one."""


@dataclass(frozen=True, kw_only=True)
class Sifted:
    """A part of all records without error images and copies, by place in the ranking."""

    by_rank: Parts
    copies: Parts
    """By the place of what stands for them."""
    errors: Parts
    """Verdicts, by fragment."""


@dataclass(frozen=True, kw_only=True)
class WrittenFragment:
    path: str
    file: Written
    rows: int
    counts: dict[str, int]


def evaluation_sources(config: CurationConfig) -> list[str]:
    """Return the sources that training must not see."""
    web = [source.name for source in config.web if source.evaluation]
    return sorted(web + [source.name for source in config.dumps if source.evaluation])


def read_rows(
    config: CurationConfig, source: Source, columns: Sequence[str], more: Sequence[str] = rec.SAMPLE_COLUMNS
) -> pa.Table:
    """Return what dedup compares of a source's samples: `columns` of its features, `more` of samples."""
    if source.in_index:
        return read_index(source.fragment, columns)
    root = Root(config.root)
    samples = root.read_table(table_file("samples", source.fragment), ["uid", *more])
    captions = root.read_table(table_file("captions", source.fragment), ["caption_reason"])
    rows = root.read_table(table_file("features", source.fragment), columns)
    same = samples["uid"] == rows["uid"] and len(samples) == len(captions)
    assert same, f"{source.fragment}: the tables differ"
    rows = rows.append_column("caption_fine", captions["caption_reason"].is_null())
    for name in more:
        rows = rows.append_column(name, samples[name])
    return rows.replace_schema_metadata(None)


def sample_keys(config: CurationConfig, source: Source, step: int) -> np.ndarray:
    """Return the key and uid of each `step`-th of a source's samples, bytes (K,)."""
    rows = read_rows(config, source, rec.RANK_COLUMNS, ["source"])
    rows = rows.take(pa.array(rec.decoded(rows)[::step]))
    keys, _ = rec.rank_keys(rows, source.in_index, tuple(evaluation_sources(config)))
    return _sortable(keys, words_of_hex(rows["uid"], 32))


def cuts(keys: np.ndarray, blocks: int) -> np.ndarray:
    """Return the keys between blocks of about equal size, bytes (blocks - 1,); none without keys."""
    ordered = np.sort(keys)
    if len(ordered) == 0:
        return ordered
    return ordered[[at * len(ordered) // blocks for at in range(1, blocks)]]


def _sortable(keys: np.ndarray, uid_N2: np.ndarray) -> np.ndarray:
    words = np.concatenate([keys[:, None], uid_N2], axis=1)
    return np.frombuffer(np.ascontiguousarray(words).astype(">u8").tobytes(), "S24")


def describe(config: CurationConfig, number: int, source: Source, parts: int) -> Described:
    """Write a source's records by their bytes."""
    rows = read_rows(config, source, rec.feature_columns(config.dedup))
    made = rec.records(rows, number, source.in_index, tuple(evaluation_sources(config)), config.dedup)
    part = (made["sha"][:, 0] % np.uint64(parts)).astype(np.int64)
    written = write_parts(Root(config.root), f"{SCRATCH}/bytes/{number}.bin", made, part, parts)
    return Described(by_bytes=written, ahead=int(ranking.is_ahead(made["key"]).sum()))


def sift(config: CurationConfig, by_bytes: list[Parts], part: int, cut_keys: np.ndarray, fragments: int) -> Sifted:
    """Set the error images and the copies of one part aside, and write the rest for whoever orders it."""
    root, blocks = Root(config.root), len(cut_keys) + 1
    came = read_part(root, by_bytes, part)
    same = same_bytes.sift(came, config.dedup)
    came["has_copies"][same.copy_of] = True
    block = np.zeros(len(came), np.int64)
    if blocks > 1:
        block = np.searchsorted(cut_keys, _sortable(came["key"], came["uid"]), side="right")
    is_kept = np.ones(len(came), bool)
    is_kept[same.error] = is_kept[same.copy] = False
    kept = np.flatnonzero(is_kept)
    records, copies = rec.take(came, kept, config.dedup), np.zeros(len(same.copy), COPY)
    copies["of"] = rec.origin(came)[same.copy_of]
    for name in ("key", "fragment", "row"):
        copies[name] = came[name][same.copy]
    errors = np.zeros(len(same.error), VERDICT)
    errors["row"], errors["survivor"] = came["row"][same.error], came["uid"][same.error_of]
    errors["kind"], errors["won_by"], errors["distance"] = KINDS.index(ERROR_IMAGE), -1, np.nan
    return Sifted(
        by_rank=write_parts(root, f"{SCRATCH}/rank/{part}.bin", records, block[kept], blocks),
        copies=write_parts(root, f"{SCRATCH}/copies/{part}.bin", copies, block[same.copy_of], blocks),
        errors=write_parts(root, f"{SCRATCH}/errors/{part}.bin", errors, came["fragment"][same.error], fragments),
    )


def make_block(config: CurationConfig, sifted: list[Sifted], block: int, threads: int) -> int:
    """Order one block's records by rank, and its copies by what stands for them; return the number of records."""
    root = Root(config.root)
    made = read_part(root, [part.by_rank for part in sifted], block)
    made = gather(made, ranking.order(np.ascontiguousarray(made["key"]), made["uid"]), threads)
    write_block(config, block, made)
    copies = read_part(root, [part.copies for part in sifted], block)
    standing = np.flatnonzero(made["has_copies"])
    by_origin = standing[np.argsort(rec.origin(made[standing]))]
    copies["of"] = by_origin[np.searchsorted(rec.origin(made[by_origin]), copies["of"])]
    root.write(copies_file(block), gather(copies, np.argsort(copies["of"])).tobytes(), durable=False)
    return len(made)


def copies_file(block: int) -> str:
    return f"{SCRATCH}/blocks/{block:05d}-copies.bin"


def places_by_fragment(blocks: Blocks, block: int, fragments: int) -> Parts:
    """Write where each fragment's rows of a block are in the ranking."""
    first, last = blocks.starts[block : block + 2]
    places = np.arange(first, last)
    made = np.zeros(len(places), PLACE)
    made["row"], made["place"] = blocks.load("row", [(block, places)]), places
    fragment = blocks.load("fragment", [(block, places)])
    return write_parts(Root(blocks.root), f"{SCRATCH}/places/{block}.bin", made, fragment, fragments)


def explain(
    blocks: Blocks,
    block: int,
    rows: np.ndarray,
    kept: np.ndarray,
    by: np.ndarray,
    one_minus_cosine: np.ndarray,
    fragments: int,
) -> Parts:
    """Write the verdicts on a block's dropped rows and on its copies: survivor, by what it is near, and worse."""
    own, (unique, inverse) = [(block, rows)], np.unique(kept, return_inverse=True)
    keepers = list(blocks.of(unique))
    made = np.zeros(len(rows), VERDICT)
    made["row"], made["survivor"] = blocks.load("row", own), blocks.load("uid", keepers)[inverse]
    is_evaluation, key = (blocks.load(name, keepers)[inverse] for name in ("evaluation", "key"))
    made["kind"] = np.where(is_evaluation, KINDS.index(EVAL_SET), KINDS.index(PERCEPTUAL) + by)
    made["won_by"] = ranking.won_by(key, blocks.load("key", own))
    bits = blocks.near_by([*own, *keepers]).distance(np.arange(len(rows)), len(rows) + inverse)
    made["distance"] = np.where(by == 0, bits, one_minus_cosine)
    copies, fragment = _explain_copies(blocks, block, rows, made, key)
    made, fragment = np.concatenate([made, copies]), np.concatenate([blocks.load("fragment", own), fragment])
    return write_parts(Root(blocks.root), f"{SCRATCH}/verdicts/{block}.bin", made, fragment, fragments)


def _explain_copies(
    blocks: Blocks, block: int, rows: np.ndarray, verdicts: np.ndarray, key: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the verdicts on a block's copies and their fragments; `key` is that of each dropped row's survivor."""
    copies = np.frombuffer(Root(blocks.root).read(copies_file(block)), COPY)
    of, inverse = np.unique(blocks.starts[block] + copies["of"], return_inverse=True)
    standing = [(block, of)] if len(of) else []
    told = np.zeros(len(of), VERDICT)
    told["survivor"], winner = blocks.load("uid", standing), blocks.load("key", standing).copy()
    told["kind"] = np.where(blocks.load("evaluation", standing), KINDS.index(EVAL_SET), KINDS.index(EXACT))
    at = np.searchsorted(rows, of)
    is_lost = np.append(rows, -1)[at] == of
    at = at[is_lost]
    told[is_lost], winner[is_lost] = verdicts[at], key[at]
    made, winner = told[inverse], winner[inverse]
    made["row"], made["won_by"] = copies["row"], ranking.won_by(winner, copies["key"])
    return made, copies["fragment"]


def write_fragment(
    config: CurationConfig, number: int, source: Source, said: list[Parts], cluster_path: str
) -> WrittenFragment:
    """Write one fragment of the duplicates table, and its survivors to the index where there is one."""
    root = Root(config.root)
    columns = ["uid", "status", *rec.left_out_columns(config.dedup)]
    rows = root.read_table(table_file("features", source.fragment), columns)
    compared = rec.decoded(rows)
    verdicts = read_part(root, said, number) if said else np.empty(0, VERDICT)
    cluster = np.load(root.open(cluster_path)) if cluster_path else np.full(len(rows), -1, np.int32)
    codes = _kinds_of_evaluation(config, source, len(rows))[compared]
    rows = rows if len(compared) == len(rows) else rows.take(pa.array(compared))
    verdicts["row"] = np.searchsorted(compared, verdicts["row"])
    table = _table(rows, codes, verdicts)
    clusters = pa.array(cluster[compared], pa.int32(), mask=cluster[compared] < 0)
    left_out = _words(rec.left_out(rows, config.dedup), rec.LEFT_OUT)
    table = conform(table.append_column("left_out", left_out).append_column("semantic_cluster", clusters), SCHEMA)
    data = parquet_bytes(table)
    path = table_file("duplicates", source.fragment)
    root.write(path, data)
    if config.dedup.index is not None:
        write_index(config, source.fragment, table.filter(table["is_survivor"])["uid"])
    written = Written(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return WrittenFragment(path=path, file=written, rows=len(table), counts=_counts(table))


def _kinds_of_evaluation(config: CurationConfig, source: Source, count: int) -> np.ndarray:
    """Return the kind of each row before anything was compared, int8 (count,): its place in KINDS, or -1."""
    codes, names = np.full(count, -1, np.int8), evaluation_sources(config)
    if names:
        of = Root(config.root).read_table(table_file("samples", source.fragment), ["source"])["source"]
        codes[pc.is_in(of, pa.array(names)).to_numpy(zero_copy_only=False)] = KINDS.index(EVAL_SET)
    return codes


def _table(rows: pa.Table, codes: np.ndarray, verdicts: np.ndarray) -> pa.Table:
    """Return what the verdicts say of each row; their `row` counts from the table's first."""
    uid, count, said = rows["uid"].combine_chunks(), len(rows), verdicts["row"]
    codes[said] = verdicts["kind"]
    won_by, distance = np.full(count, -1, np.int8), np.full(count, np.nan, np.float32)
    won_by[said], distance[said] = verdicts["won_by"], verdicts["distance"]
    is_said = np.zeros(count, bool)
    is_said[said] = True
    named = hex_of_words(verdicts["survivor"][np.argsort(said)])
    cluster_id = pc.replace_with_mask(uid, pa.array(is_said), pa.array(named, pa.string()))
    is_error = pa.array(codes == KINDS.index(ERROR_IMAGE))
    return pa.table(
        {
            "uid": uid,
            "cluster_id": cluster_id,
            "survivor_uid": pc.if_else(is_error, pa.scalar(None, pa.string()), cluster_id),
            "kind": _words(codes, KINDS),
            "distance": pa.array(distance, from_pandas=True),
            "is_survivor": pa.array(codes < 0),
            "won_by": _words(won_by, ranking.TERMS),
        }
    )


def _words(codes: np.ndarray, words: Sequence[str]) -> pa.Array:
    """Return the word for each code, null below 0."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(words)).cast(pa.string())


def _counts(table: pa.Table) -> dict[str, int]:
    said = pc.value_counts(table["kind"].fill_null("survivors")).to_pylist()
    said += [entry for entry in pc.value_counts(table["left_out"]).to_pylist() if entry["values"] is not None]
    return {entry["values"]: entry["counts"] for entry in said}
