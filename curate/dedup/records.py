"""What dedup keeps of a sample: its place in the ranking, its hashes, and where it came from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curate import ranking, sample
from curate.config import DedupConfig
from curate.dedup.relations import first_equal

MIN_PDQ_QUALITY = 50
FLIPS = 3
"""The first of the seven turned pictures are the flips and the half turn."""

SAMPLE_COLUMNS = ["uid", "source", "url", "sha256", "caption"]
FEATURE_COLUMNS = ["uid", "status", "width_px", "height_px", "phash64", "entropy_bits", "sharpness", "jpeg_quality"]
BYTES = np.dtype(
    [("sha", "u8", 4), ("caption", "u8"), ("url", "u8"), ("uid", "u8", 2), ("fragment", "i4"), ("row", "i4")]
)
"""What finds error images."""


def feature_columns(config: DedupConfig) -> list[str]:
    """Return the columns of the features table that the settings need, without the embedding."""
    turned = ["phash64_turned"] if config.turns != "none" else []
    return FEATURE_COLUMNS + turned + (["pdq256", "pdq_quality"] if config.confirm_pdq_bits is not None else [])


def dtype(config: DedupConfig) -> np.dtype:
    """Return the type of one record."""
    fields: list = [("key", "u8", 2), ("uid", "u8", 2), ("sha", "u8", 4), ("phash", "u8"), ("has_hash", "?")]
    fields += [("evaluation", "?"), ("fragment", "i4"), ("row", "i4")]
    fields += [("turned", "u8", num_turns(config))] if config.turns != "none" else []
    return np.dtype(fields + ([("pdq", "u8", 4)] if config.confirm_pdq_bits is not None else []), align=True)


def num_turns(config: DedupConfig) -> int:
    return {"none": 0, "flips": FLIPS, "all": 7}[config.turns]


def records(
    rows: pa.Table, fragment: int, ahead: bool, evaluation: tuple[str, ...], config: DedupConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the records of a fragment's decoded samples, and what finds error images among them.

    `rows` has the columns above and `caption_fine`. Samples of the sources in `evaluation`, or all
    where `ahead`, come before every other one.
    """
    decoded = np.flatnonzero(pc.equal(rows["status"], sample.OK).to_numpy(zero_copy_only=False))
    rows = (rows if len(decoded) == len(rows) else rows.take(pa.array(decoded))).combine_chunks()
    made = np.zeros(len(rows), dtype(config))
    made["fragment"], made["row"] = fragment, decoded
    made["uid"], made["sha"] = words_of_hex(rows["uid"], 32), words_of_hex(rows["sha256"], 64)
    made["evaluation"] = pc.is_in(rows["source"], pa.array(evaluation, pa.string())).to_numpy(zero_copy_only=False)
    area_px = rows["width_px"].to_numpy().astype(np.int64) * rows["height_px"].to_numpy()
    fine = rows["caption_fine"].to_numpy(zero_copy_only=False)
    jpeg_quality = rows["jpeg_quality"].cast(pa.float64()).to_numpy()
    made["key"] = ranking.keys(made["evaluation"] | ahead, area_px, jpeg_quality, rows["sharpness"].to_numpy(), fine)
    made["key"][made["evaluation"]] = 0  # ahead of earlier corpora, too
    _fill_hashes(made, rows, config)
    by_bytes = np.zeros(len(rows), BYTES)
    for name in ("sha", "uid", "fragment", "row"):
        by_bytes[name] = made[name]
    for name in ("caption", "url"):
        text = rows[name].fill_null("").to_numpy(zero_copy_only=False)
        by_bytes[name] = pd.util.hash_array(text, categorize=False)
    return made, by_bytes[~made["evaluation"]]


def _fill_hashes(made: np.ndarray, rows: pa.Table, config: DedupConfig) -> None:
    made["phash"] = rows["phash64"].to_numpy()
    made["has_hash"] = ~is_flat(rows["entropy_bits"].to_numpy(), config)
    if config.turns != "none":
        made["turned"] = fixed_size(rows["phash64_turned"])[:, : num_turns(config)]
    if config.confirm_pdq_bits is not None:
        pdq = rows["pdq256"].combine_chunks().buffers()[1] if len(rows) else b""
        made["pdq"] = np.frombuffer(pdq, ">u8").reshape(-1, 4)[: len(rows)]
        made["has_hash"] &= rows["pdq_quality"].to_numpy() >= MIN_PDQ_QUALITY


def is_flat(entropy_bits: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Return which pictures are too flat to be matched by hash, bool (N,)."""
    return entropy_bits < config.min_entropy_bits


def fixed_size(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists without nulls as (N, size)."""
    whole = column.combine_chunks()
    size = whole.type.list_size
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)


def words_of_hex(column: pa.ChunkedArray, digits: int) -> np.ndarray:
    """Return strings of `digits` hex digits as uint64 (N, digits / 16), the first digits first."""
    lengths = pc.min_max(pc.binary_length(column)).as_py()
    if len(column) and lengths != {"min": digits, "max": digits}:
        raise ValueError(f"column of lengths {lengths}: every value must be {digits} hex digits")
    if len(column) == 0:
        return np.empty((0, digits // 16), np.uint64)
    whole = column.combine_chunks()
    first = np.frombuffer(whole.buffers()[1], np.int32)[whole.offset]
    text = whole.buffers()[2][int(first) : int(first) + len(whole) * digits].to_pybytes().decode()
    return np.frombuffer(bytes.fromhex(text), ">u8").reshape(-1, digits // 16).astype(np.uint64)


def hex_of_words(words: np.ndarray) -> np.ndarray:
    """Return uint64 (N, W) as strings of 16 W hex digits, str (N,)."""
    digits = words.shape[1] * 16
    text = np.ascontiguousarray(words).astype(">u8").tobytes().hex()
    return np.array([text[at : at + digits] for at in range(0, len(text), digits)], dtype=f"U{digits}")


def error_images(by_bytes: np.ndarray, config: DedupConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows whose bytes come under too many different captions or URLs, and their first uid.

    Captions and URLs are compared by a 64-bit hash. Both are in the order of the bytes, then of the uid;
    the uid is uint64 (E, 2), the smallest with those bytes.
    """
    first = first_equal([by_bytes["sha"][:, 0]])  # rules out nearly all; the rest are compared in full
    least = min(config.error_image_captions, config.error_image_urls)
    often = by_bytes[np.bincount(first, minlength=len(first))[first] >= least]
    ordered = often[np.lexsort((often["uid"][:, 1], often["uid"][:, 0], *often["sha"].T[::-1]))]
    starts = np.flatnonzero(np.r_[True, (ordered["sha"][1:] != ordered["sha"][:-1]).any(axis=1)][: len(ordered)])
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(ordered)]))
    captions, urls = (_different(ordered[name], group) for name in ("caption", "url"))
    is_error = ((captions >= config.error_image_captions) | (urls >= config.error_image_urls))[group]
    return ordered[is_error], ordered["uid"][starts[group]][is_error]


def _different(value: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return how many different values each group has, int64 (groups,); the groups are in a row."""
    order = np.lexsort((value, group))
    is_new = np.ones(len(value), bool)
    is_new[1:] = (group[order][1:] != group[order][:-1]) | (value[order][1:] != value[order][:-1])
    return np.bincount(group[order][is_new])
