"""From tables to records in order of rank: equal bytes are brought together first, and one record stands for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curate import ranking
from curate.config import CurationConfig
from curate.dedup import records as rec
from curate.dedup import same_bytes
from curate.dedup.relations import NearToFixed
from curate.dedup.same_bytes import SameBytes
from curate.dedup.text_columns import words_of_hex
from pipelines.dedup_blocks import COPY, END, SCRATCH, copies_file, write_block
from pipelines.dedup_sources import Batch, batch_of, evaluation_sources, read_rows
from pipelines.dedup_verdicts import ERROR_IMAGE, KINDS, VERDICT
from pipelines.shuffle import Parts, gather, read_part, write_parts
from pipelines.store import Root

KEYS_A_BLOCK = 1000


@dataclass(frozen=True, kw_only=True)
class Described:
    """A batch's records by their bytes."""

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
    """Verdicts, by batch."""
    ends: Parts
    """Of pairs with the same bytes, one of which is ahead; by place in the ranking."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """What is known of one block of records in order of rank."""

    rows: int
    ends: np.ndarray
    """Records of END, with places in the block."""


def sample_keys(config: CurationConfig, batch: Batch, step: int) -> np.ndarray:
    """Return the key and uid of each `step`-th of the samples of each source, bytes (K,)."""
    drawn = [np.empty(0, "S24")]
    for _, source in batch.numbered():
        rows = read_rows(config, source, rec.RANK_COLUMNS, ["source"])
        rows = rows.take(pa.array(rec.decoded(rows)[::step]))
        keys, _ = rec.rank_keys(rows, source.in_index, tuple(evaluation_sources(config)))
        drawn.append(_sortable(keys, words_of_hex(rows["uid"], 32)))
    return np.concatenate(drawn)


def cuts(keys: np.ndarray, blocks: int) -> np.ndarray:
    """Return the keys between blocks of about equal size, bytes (blocks - 1,); none without keys."""
    ordered = np.sort(keys)
    if len(ordered) == 0:
        return ordered
    return ordered[[at * len(ordered) // blocks for at in range(1, blocks)]]


def _sortable(keys: np.ndarray, uid_N2: np.ndarray) -> np.ndarray:
    words = np.concatenate([keys[:, None], uid_N2], axis=1)
    return np.frombuffer(np.ascontiguousarray(words).astype(">u8").tobytes(), "S24")


def describe(config: CurationConfig, number: int, batch: Batch, parts: int) -> Described:
    """Write a batch's records by their bytes."""
    shown = tuple(evaluation_sources(config))
    made = []
    for at, source in batch.numbered():
        rows = read_rows(config, source, rec.feature_columns(config.dedup))
        made.append(rec.records(rows, at, source.in_index, shown, config.dedup))
    records = made[0] if len(made) == 1 else np.concatenate(made)
    part = (records["sha"][:, 0] % np.uint64(parts)).astype(np.int64)
    written = write_parts(Root(config.root), f"{SCRATCH}/bytes/{number}.bin", records, part, parts)
    return Described(by_bytes=written, ahead=int(ranking.is_ahead(records["key"]).sum()))


def sift(config: CurationConfig, by_bytes: list[Parts], part: int, cut_keys: np.ndarray, first: np.ndarray) -> Sifted:
    """Set the error images and the copies of one part aside, and write the rest for whoever orders it."""
    root, blocks = Root(config.root), len(cut_keys) + 1
    came = read_part(root, by_bytes, part)
    same = same_bytes.sift(came, config.dedup)
    for named in (same.copy_of, same.lost, same.lost_to):
        came["has_equals"][named] = True
    block = np.zeros(len(came), np.int64)
    if blocks > 1:
        block = np.searchsorted(cut_keys, _sortable(came["key"], came["uid"]), side="right")
    is_kept = np.ones(len(came), bool)
    is_kept[same.error] = is_kept[same.copy] = False
    kept = np.flatnonzero(is_kept)
    records, errors = rec.take(came, kept, config.dedup), _errors(came, same)
    of_batch, of_end = batch_of(errors["fragment"], first), block[np.concatenate([same.lost, same.lost_to])]
    return Sifted(
        by_rank=write_parts(root, f"{SCRATCH}/rank/{part}.bin", records, block[kept], blocks),
        copies=write_parts(root, f"{SCRATCH}/copies/{part}.bin", _copies(came, same), block[same.copy_of], blocks),
        errors=write_parts(root, f"{SCRATCH}/errors/{part}.bin", errors, of_batch, len(first)),
        ends=write_parts(root, f"{SCRATCH}/ends/{part}.bin", _ends(came, same), of_end, blocks),
    )


def _copies(came: np.ndarray, same: SameBytes) -> np.ndarray:
    """Return the copies, each with the origin of what stands for it."""
    made = np.zeros(len(same.copy), COPY)
    made["of"] = rec.origin(came)[same.copy_of]
    for name in ("key", "fragment", "row"):
        made[name] = came[name][same.copy]
    return made


def _errors(came: np.ndarray, same: SameBytes) -> np.ndarray:
    """Return the verdicts on error images: the best-ranked one names their cluster, and none survives."""
    made = np.zeros(len(same.error), VERDICT)
    made["fragment"], made["row"] = came["fragment"][same.error], came["row"][same.error]
    made["survivor"] = came["uid"][same.error_of]
    made["kind"], made["won_by"], made["distance"] = KINDS.index(ERROR_IMAGE), -1, np.nan
    return made


def _ends(came: np.ndarray, same: SameBytes) -> np.ndarray:
    """Return both ends of each pair of a sample and one ahead with its bytes: all samples first."""
    made = np.zeros(2 * len(same.lost), END)
    made["pair"] = np.tile(rec.origin(came)[same.lost], 2)
    made["is_ahead"][len(same.lost) :] = True
    made["place"] = rec.origin(came)[np.concatenate([same.lost, same.lost_to])]
    return made


def make_block(config: CurationConfig, sifted: list[Sifted], block: int, threads: int) -> Block:
    """Order one block's records by rank, and its copies by what stands for them."""
    root = Root(config.root)
    made = read_part(root, [part.by_rank for part in sifted], block)
    made = gather(made, ranking.order(np.ascontiguousarray(made["key"]), made["uid"]), threads)
    write_block(config, block, made)
    copies = read_part(root, [part.copies for part in sifted], block)
    ends = read_part(root, [part.ends for part in sifted], block)
    standing = np.flatnonzero(made["has_equals"])
    by_origin = standing[np.argsort(rec.origin(made[standing]))]
    origin = rec.origin(made[by_origin])
    copies["of"] = by_origin[np.searchsorted(origin, copies["of"])]
    ends["place"] = by_origin[np.searchsorted(origin, ends["place"])]
    root.write(copies_file(block), gather(copies, np.argsort(copies["of"])).tobytes(), durable=False)
    return Block(rows=len(made), ends=ends)


def same_bytes_ahead(blocks: list[Block], starts: np.ndarray) -> NearToFixed:
    """Return which rows have the bytes of one that is ahead."""
    ends = np.concatenate([block.ends for block in blocks])
    ends["place"] += np.repeat(starts[:-1], [len(block.ends) for block in blocks])
    row, near = (ends[ends["is_ahead"] == side] for side in (False, True))
    row, near = (np.sort(side, order="pair")["place"] for side in (row, near))
    return NearToFixed(row=row, near=near)
