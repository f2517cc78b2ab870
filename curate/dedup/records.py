"""What dedup keeps of a sample: its place in the ranking, its hashes, and where it came from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from curate import ranking, sample
from curate.config import DedupConfig
from curate.dedup.text_columns import hashes_of_text, words_of_hex

MIN_PDQ_QUALITY = 50
FLIPS, MAX_TURNS = 3, 7
"""The first of the seven turned pictures are the flips and the half turn."""
SHA_WORDS = 2
"""Bytes are compared by the first 128 bits of their SHA-256, as samples are by the 128 bits of their uid."""

SAMPLE_COLUMNS = ["source", "url", "sha256", "caption"]
RANK_COLUMNS = ["uid", "status", "width_px", "height_px", "jpeg_quality", "sharpness"]
LEFT_OUT = ("flat", "text", "pdq_quality")
"""Why a picture takes no part in matching by hash: it would match everything flat, or every page of text."""


def left_out_columns(config: DedupConfig) -> list[str]:
    """Return the columns of the features table that `left_out` needs."""
    return ["entropy_bits", "text_share"] + (["pdq_quality"] if config.confirm_pdq_bits is not None else [])


def feature_columns(config: DedupConfig) -> list[str]:
    """Return the columns of the features table that the settings need, without the embedding."""
    names = ["phash64"] + (["pdq256"] if config.confirm_pdq_bits is not None else [])
    turned = [f"{name}_turned" for name in names] if config.turns != "none" else []
    return RANK_COLUMNS + left_out_columns(config) + names + turned


def dtype(config: DedupConfig) -> np.dtype:
    """Return the type of one record."""
    return np.dtype(_fields(config), align=True)


def came_dtype(config: DedupConfig) -> np.dtype:
    """Return the type of a record with what tells equal bytes and error images after it."""
    return np.dtype([*_fields(config), ("sha", "u8", SHA_WORDS), ("caption", "u4"), ("url", "u4")], align=True)


def _fields(config: DedupConfig) -> list:
    fields: list = [("key", "u8"), ("uid", "u8", 2), ("phash", "u8"), ("has_hash", "?"), ("evaluation", "?")]
    fields += [("has_equals", "?"), ("fragment", "i4"), ("row", "i4")]
    turns, confirmed = num_turns(config), config.confirm_pdq_bits is not None
    fields += [("turned", "u8", turns)] if turns else []
    fields += [("pdq", "u8", 4)] if confirmed else []
    return fields + ([("turned_pdq", "u8", (turns, 4))] if turns and confirmed else [])


def num_turns(config: DedupConfig) -> int:
    return {"none": 0, "flips": FLIPS, "all": MAX_TURNS}[config.turns]


def origin(made: np.ndarray) -> np.ndarray:
    """Return what tells a record from every other one, int64 (N,)."""
    return made["fragment"].astype(np.int64) << 32 | made["row"]


def take(made: np.ndarray, rows: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Return some rows as records, without what `came_dtype` has after them."""
    kind = dtype(config)
    words_NW = made.view(np.uint64).reshape(len(made), made.dtype.itemsize // 8)
    taken = np.empty((len(rows), kind.itemsize // 8), np.uint64)
    _take(words_NW, rows, taken)
    return taken.reshape(-1).view(kind)


@njit(nogil=True, cache=True)
def _take(words_NW, rows, taken):
    for at in range(len(rows)):
        for word in range(taken.shape[1]):
            taken[at, word] = words_NW[rows[at], word]


def decoded(rows: pa.Table) -> np.ndarray:
    """Return the rows that dedup compares, int64."""
    return np.flatnonzero(pc.equal(rows["status"], sample.OK).to_numpy(zero_copy_only=False))


def rank_keys(rows: pa.Table, ahead: bool, evaluation: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of decoded samples, and which of them are of the sources in `evaluation`.

    These come before every other one, and then all where `ahead`.
    """
    shown = pc.is_in(rows["source"], pa.array(evaluation, pa.string())).to_numpy(zero_copy_only=False)
    area_px = rows["width_px"].to_numpy().astype(np.int64) * rows["height_px"].to_numpy()
    fine = rows["caption_fine"].to_numpy(zero_copy_only=False)
    jpeg_quality = rows["jpeg_quality"].cast(pa.float64()).to_numpy()
    keys = ranking.keys(shown | ahead, area_px, jpeg_quality, rows["sharpness"].to_numpy(), fine)
    keys[shown] = 0
    return keys, shown


def records(rows: pa.Table, fragment: int, ahead: bool, evaluation: tuple[str, ...], config: DedupConfig) -> np.ndarray:
    """Return the records of a fragment's decoded samples, of `came_dtype`.

    `rows` has the columns above, `source`, `sha256`, `caption`, `url` and `caption_fine`.
    """
    compared = decoded(rows)
    rows = (rows if len(compared) == len(rows) else rows.take(pa.array(compared))).combine_chunks()
    made = np.zeros(len(rows), came_dtype(config))
    made["fragment"], made["row"] = fragment, compared
    made["uid"], made["sha"] = words_of_hex(rows["uid"], 32), words_of_hex(rows["sha256"], 64, SHA_WORDS)
    made["key"], made["evaluation"] = rank_keys(rows, ahead, evaluation)
    for name in ("caption", "url"):
        made[name] = hashes_of_text(rows[name])
    _fill_hashes(made, rows, config)
    return made


def _fill_hashes(made: np.ndarray, rows: pa.Table, config: DedupConfig) -> None:
    made["phash"] = rows["phash64"].to_numpy()
    made["has_hash"] = left_out(rows, config) < 0
    turns, confirmed = num_turns(config), config.confirm_pdq_bits is not None
    if turns:
        made["turned"] = fixed_size(rows["phash64_turned"])[:, :turns]
    if confirmed:
        made["pdq"] = _pdq_words(rows["pdq256"], 1)[:, 0]
    if turns and confirmed:
        made["turned_pdq"] = _pdq_words(rows["pdq256_turned"], MAX_TURNS)[:, :turns]


def _pdq_words(column: pa.ChunkedArray, hashes: int) -> np.ndarray:
    """Return PDQ hashes, so many in each row, as words (N, hashes, 4)."""
    raw = column.combine_chunks().buffers()[1] if len(column) else b""
    return np.frombuffer(raw, ">u8").reshape(-1, hashes, 4)[: len(column)]


def left_out(rows: pa.Table, config: DedupConfig) -> np.ndarray:
    """Return why each picture takes no part in matching by hash, int8 (N,): a place in LEFT_OUT, -1 where it does."""
    reasons = [rows["entropy_bits"].to_numpy() < config.min_entropy_bits]
    reasons += [rows["text_share"].to_numpy() > config.max_text_share]
    if config.confirm_pdq_bits is not None:
        reasons += [rows["pdq_quality"].to_numpy() < MIN_PDQ_QUALITY]
    return np.select(reasons, [np.int8(at) for at in range(len(reasons))], np.int8(-1))


def fixed_size(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists without nulls as (N, size)."""
    whole = column.combine_chunks()
    size = whole.type.list_size
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
