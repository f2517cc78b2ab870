"""The tasks of dedup: tables to records in order of rank, and verdicts back to the table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import ranking, sample
from curate.config import CurationConfig
from curate.dedup import records as rec
from pipelines.dedup_blocks import BY_BYTES, BY_HASH, SCRATCH, Blocks, write_block
from pipelines.dedup_index import read_index, write_index
from pipelines.shuffle import Parts, read_part, write_parts
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
COUNTED = ("survivors", *KINDS, "flat")
KEYS_A_BLOCK = 1000
VERDICT = np.dtype([("row", "i4"), ("survivor", "u8", 2), ("kind", "i1"), ("distance", "f4"), ("won_by", "i1")])
PLACE = np.dtype([("row", "i4"), ("place", "i8")])


@dataclass(frozen=True, kw_only=True)
class Source:
    """One fragment of the root's tables, or one file of the index."""

    fragment: str
    in_index: bool = False


@dataclass(frozen=True, kw_only=True)
class Described:
    """A source's records, written by place in the ranking and by bytes."""

    by_rank: Parts
    by_bytes: Parts
    ahead: int
    """Records before every other one."""


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


def read_rows(config: CurationConfig, source: Source, columns: Sequence[str]) -> pa.Table:
    """Return what dedup compares of a source's samples, `columns` of its features among it."""
    if source.in_index:
        return read_index(source.fragment, columns)
    root = Root(config.root)
    samples = root.read_table(table_file("samples", source.fragment), rec.SAMPLE_COLUMNS)
    captions = root.read_table(table_file("captions", source.fragment), ["caption_reason"])
    try:
        features = root.read_table(table_file("features", source.fragment), list(columns))
    except pa.ArrowInvalid as error:
        file = table_file("features", source.fragment)
        raise ValueError(f"{file}: {str(error).splitlines()[0]}: remove the file and embed again") from error
    same = samples["uid"] == features["uid"] and len(samples) == len(captions)
    assert same, f"{source.fragment}: the tables differ"
    rows = features.append_column("caption_fine", captions["caption_reason"].is_null())
    for name in ("source", "url", "sha256", "caption"):
        rows = rows.append_column(name, samples[name])
    return rows.replace_schema_metadata(None)


def _records(config: CurationConfig, number: int, source: Source) -> tuple[np.ndarray, np.ndarray]:
    rows = read_rows(config, source, rec.feature_columns(config.dedup))
    return rec.records(rows, number, source.in_index, tuple(evaluation_sources(config)), config.dedup)


def sample_keys(config: CurationConfig, source: Source, step: int) -> np.ndarray:
    """Return the keys of rank of each `step`-th of a source's samples, bytes (K,)."""
    made, _ = _records(config, 0, source)
    return _keys(made[::step])


def cuts(keys: np.ndarray, blocks: int) -> np.ndarray:
    """Return the keys between blocks of about equal size, bytes (blocks - 1,); none without keys."""
    ordered = np.sort(keys)
    if len(ordered) == 0:
        return ordered
    return ordered[[at * len(ordered) // blocks for at in range(1, blocks)]]


def _keys(made: np.ndarray) -> np.ndarray:
    words = np.concatenate([made["key"], made["uid"]], axis=1)
    return np.frombuffer(np.ascontiguousarray(words).astype(">u8").tobytes(), "S32")


def describe(config: CurationConfig, number: int, source: Source, cut_keys: np.ndarray, parts: int) -> Described:
    """Write a source's records for whoever orders them."""
    root, blocks = Root(config.root), len(cut_keys) + 1
    made, by_bytes = _records(config, number, source)
    block = np.searchsorted(cut_keys, _keys(made), side="right") if blocks > 1 else np.zeros(len(made), np.int64)
    by_bytes = by_bytes[:0] if source.in_index else by_bytes
    part = (by_bytes["sha"][:, 0] % np.uint64(parts)).astype(np.int64)
    return Described(
        by_rank=write_parts(root, f"{SCRATCH}/rank/{number}.bin", made, block, blocks),
        by_bytes=write_parts(root, f"{SCRATCH}/bytes/{number}.bin", by_bytes, part, parts),
        ahead=len(made) if source.in_index else int(made["evaluation"].sum()),
    )


def find_errors(config: CurationConfig, by_bytes: list[Parts], part: int) -> np.ndarray:
    """Return fragment, row and cluster of the error images among one part of all bytes."""
    found, first = rec.error_images(read_part(Root(config.root), by_bytes, part), config.dedup)
    errors = np.zeros(len(found), [("fragment", "i4"), ("row", "i4"), ("cluster", "u8", 2)])
    errors["fragment"], errors["row"], errors["cluster"] = found["fragment"], found["row"], first
    return errors


def make_block(config: CurationConfig, by_rank: list[Parts], errors: np.ndarray, block: int) -> int:
    """Order one block's records by rank, without error images; return their number."""
    made = read_part(Root(config.root), by_rank, block)
    if len(errors):
        is_error = np.isin(_origin(made), _origin(errors)) & ~made["evaluation"]
        made = made[~is_error]
    order = ranking.order(made["key"], made["uid"])
    whole_words = made.view(np.uint64).reshape(len(made), made.dtype.itemsize // 8)
    words = np.take(whole_words, order, axis=0)
    write_block(config, block, words.reshape(-1).view(made.dtype))
    return len(made)


def _origin(made: np.ndarray) -> np.ndarray:
    return made["fragment"].astype(np.int64) << 32 | made["row"]


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
    """Write the verdict on each dropped row of a block: its survivor, and by what it is near and worse."""
    own, (unique, inverse) = [(block, rows)], np.unique(kept, return_inverse=True)
    keepers = list(blocks.of(unique))
    made = np.zeros(len(rows), VERDICT)
    made["row"], made["survivor"] = blocks.load("row", own), blocks.load("uid", keepers)[inverse]
    is_evaluation = blocks.load("evaluation", keepers)[inverse]
    made["kind"] = np.where(is_evaluation, KINDS.index(EVAL_SET), by)
    made["won_by"] = ranking.won_by(blocks.load("key", keepers)[inverse], blocks.load("key", own))
    bits = blocks.near_by(BY_HASH, [*own, *keepers]).distance(np.arange(len(rows)), len(rows) + inverse)
    made["distance"] = np.select([by == (BY_BYTES, BY_HASH).index(BY_HASH), by == 0], [bits, 0], one_minus_cosine)
    fragment = blocks.load("fragment", own)
    return write_parts(Root(blocks.root), f"{SCRATCH}/verdicts/{block}.bin", made, fragment, fragments)


def write_fragment(
    config: CurationConfig, number: int, source: Source, explained: list[Parts], errors: np.ndarray, cluster_path: str
) -> WrittenFragment:
    """Write one fragment of the duplicates table, and its survivors to the index where there is one."""
    root = Root(config.root)
    rows = root.read_table(table_file("features", source.fragment), ["uid", "status", "entropy_bits"])
    decoded = np.flatnonzero(pc.equal(rows["status"], sample.OK).to_numpy(zero_copy_only=False))
    verdicts = read_part(root, explained, number).copy() if explained else np.empty(0, VERDICT)
    cluster = np.load(root.open(cluster_path)) if cluster_path else np.full(len(rows), -1, np.int32)
    codes = _kinds_of_evaluation(config, source, len(rows))[decoded]
    rows = rows if len(decoded) == len(rows) else rows.take(pa.array(decoded))
    verdicts["row"] = np.searchsorted(decoded, verdicts["row"])
    errors = errors[errors["fragment"] == number]
    errors["row"] = np.searchsorted(decoded, errors["row"])
    table = _table(rows, codes, verdicts, errors)
    clusters = pa.array(cluster[decoded], pa.int32(), mask=cluster[decoded] < 0)
    flat = pa.array(rec.is_flat(rows["entropy_bits"].to_numpy(), config.dedup))
    table = conform(table.append_column("is_flat", flat).append_column("semantic_cluster", clusters), SCHEMA)
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


def _table(rows: pa.Table, codes: np.ndarray, verdicts: np.ndarray, errors: np.ndarray) -> pa.Table:
    """Return what the verdicts and errors say of each row; their `row` counts from the table's first."""
    uid, count = rows["uid"].combine_chunks(), len(rows)
    codes[verdicts["row"]], codes[errors["row"]] = verdicts["kind"], KINDS.index(ERROR_IMAGE)
    won_by, distance = np.full(count, -1, np.int8), np.full(count, np.nan, np.float32)
    won_by[verdicts["row"]], distance[verdicts["row"]] = verdicts["won_by"], verdicts["distance"]
    said = np.concatenate([verdicts["row"], errors["row"]])
    named = np.concatenate([rec.hex_of_words(verdicts["survivor"]), rec.hex_of_words(errors["cluster"])])
    is_said, order = np.zeros(count, bool), np.argsort(said)
    is_said[said] = True
    cluster_id = pc.replace_with_mask(uid, pa.array(is_said), pa.array(named[order], pa.string()))
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
    return {entry["values"]: entry["counts"] for entry in said} | {"flat": pc.sum(table["is_flat"]).as_py() or 0}
