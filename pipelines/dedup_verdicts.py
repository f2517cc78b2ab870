"""From what is dropped to the duplicates table: for each sample its survivor, and by what it is near and worse."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import ranking
from curate.config import CurationConfig
from curate.dedup import records as rec
from curate.dedup.text_columns import hex_of_words
from pipelines.dedup_blocks import COPY, SCRATCH, Blocks, copies_file
from pipelines.dedup_index import write_index
from pipelines.dedup_sources import Batch, Source, batch_of, evaluation_sources
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
COUNTED = ("survivors", *KINDS, *rec.LEFT_OUT)
VERDICT = np.dtype(
    [("fragment", "i4"), ("row", "i4"), ("kind", "i1"), ("won_by", "i1"), ("distance", "f4"), ("survivor", "u8", 2)],
    align=True,
)


@dataclass(frozen=True, kw_only=True)
class WrittenFragment:
    path: str
    file: Written
    rows: int
    counts: dict[str, int]


def explain(
    blocks: Blocks,
    block: int,
    rows: np.ndarray,
    kept: np.ndarray,
    by: np.ndarray,
    one_minus_cosine: np.ndarray,
    first: np.ndarray,
) -> Parts:
    """Write the verdicts on a block's dropped rows and on its copies, by batch; `by` is a place in KINDS."""
    own, (unique, inverse) = [(block, rows)], np.unique(kept, return_inverse=True)
    keepers = list(blocks.of(unique))
    made = np.zeros(len(rows), VERDICT)
    made["fragment"], made["row"] = blocks.load("fragment", own), blocks.load("row", own)
    made["survivor"] = blocks.load("uid", keepers)[inverse]
    is_evaluation, key = (blocks.load(name, keepers)[inverse] for name in ("evaluation", "key"))
    made["kind"] = np.where(is_evaluation, KINDS.index(EVAL_SET), by)
    made["won_by"] = ranking.won_by(key, blocks.load("key", own))
    bits = blocks.near_by([*own, *keepers]).distance(np.arange(len(rows)), len(rows) + inverse)
    made["distance"] = np.select([by == KINDS.index(PERCEPTUAL), by == KINDS.index(SEMANTIC)], [bits, one_minus_cosine])
    made = np.concatenate([made, _explain_copies(blocks, block, rows, made, key)])
    path = f"{SCRATCH}/verdicts/{block}.bin"
    return write_parts(Root(blocks.root), path, made, batch_of(made["fragment"], first), len(first))


def _explain_copies(blocks: Blocks, block: int, rows: np.ndarray, verdicts: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return the verdicts on a block's copies; `key` is that of each dropped row's survivor."""
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
    made["fragment"], made["row"] = copies["fragment"], copies["row"]
    made["won_by"] = ranking.won_by(winner, copies["key"])
    return made


def write_batch(
    config: CurationConfig, number: int, batch: Batch, said: list[Parts], has_clusters: bool
) -> list[WrittenFragment]:
    """Write a batch's fragments of the duplicates table, and their survivors to the index where there is one."""
    verdicts = read_part(Root(config.root), said, number) if said else np.empty(0, VERDICT)
    of_each = by_fragment(verdicts, batch)
    return [
        _write_fragment(config, source, own, cluster_file(at) if has_clusters else None)
        for (at, source), own in zip(batch.numbered(), of_each, strict=True)
        if not source.in_index
    ]


def by_fragment(records: np.ndarray, batch: Batch) -> Iterator[np.ndarray]:
    """Yield the records of each of a batch's sources, by row."""
    ordered = records[np.lexsort((records["row"], records["fragment"]))]
    edges = np.searchsorted(ordered["fragment"], np.arange(batch.first, batch.first + len(batch.sources) + 1))
    return (ordered[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True))


def cluster_file(number: int) -> str:
    """Return where the nearest cluster of each of a source's embeddings is."""
    return f"{SCRATCH}/clusters/{number}.npy"


def _write_fragment(
    config: CurationConfig, source: Source, verdicts: np.ndarray, clusters: str | None
) -> WrittenFragment:
    root = Root(config.root)
    columns = ["uid", "status", *rec.left_out_columns(config.dedup)]
    rows = root.read_table(table_file("features", source.fragment), columns)
    compared = rec.decoded(rows)
    cluster = np.load(root.open(clusters)) if clusters else np.full(len(rows), -1, np.int32)
    codes = _kinds_of_evaluation(config, source, len(rows))[compared]
    rows = rows if len(compared) == len(rows) else rows.take(pa.array(compared))
    verdicts["row"] = np.searchsorted(compared, verdicts["row"])
    table = _table(rows, codes, verdicts)
    of_cluster = pa.array(cluster[compared], pa.int32(), mask=cluster[compared] < 0)
    left_out = _words(rec.left_out(rows, config.dedup), rec.LEFT_OUT)
    table = conform(table.append_column("left_out", left_out).append_column("semantic_cluster", of_cluster), SCHEMA)
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
    """Return what the verdicts, by row, say of each row; their `row` counts from the table's first."""
    uid, count, said = rows["uid"].combine_chunks(), len(rows), verdicts["row"]
    codes[said] = verdicts["kind"]
    won_by, distance = np.full(count, -1, np.int8), np.full(count, np.nan, np.float32)
    won_by[said], distance[said] = verdicts["won_by"], verdicts["distance"]
    is_said = np.zeros(count, bool)
    is_said[said] = True
    cluster_id = pc.replace_with_mask(uid, pa.array(is_said), hex_of_words(verdicts["survivor"]))
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
