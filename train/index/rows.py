"""From a fragment of the tables to its rows of the index, a column at a time, and where they go among the others'.

Legend: N rows of a fragment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import FileIO

import duckdb
import numpy as np
import pyarrow as pa

from curate.bad_input import BadInput
from train.index.reader import ROW

MAX_GROUPS = 4096
COPIED = (
    "num_bytes",
    "offset",
    "original_height_px",
    "original_width_px",
    "crop_top_px",
    "crop_left_px",
    "aesthetic",
)
Key = tuple[int, int, str, float]
"""Bucket height and width in px, source, weight."""
SAMPLING_WEIGHT = "sampling_weight"
KEY_COLUMNS = ("bucket_height_px", "bucket_width_px", "source", SAMPLING_WEIGHT)
NO_NIBBLE = 255


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What must be known of a fragment before any row is laid."""

    counts: dict[Key, int]
    """Rows of each group."""
    rows_read: int
    """Rows before those of weight 0 were left out."""
    caption_bytes: int
    """Length of all captions."""
    missing_aesthetic: int
    """Rows without the score."""
    missing_latents: tuple[int, int]
    """Rows without moments as they are, and mirrored."""
    shards: tuple[str, ...]
    """Tars that the rows lie in."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a fragment's rows go."""

    next_row: dict[Key, int]
    """First free row of each of its groups."""
    counts: dict[Key, int]
    """Rows of each of its groups, as they were counted."""
    caption_offset: int
    """Where its captions begin."""
    shard_numbers: dict[str, int]
    """Numbers of its tars."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole index, before any row is laid."""

    counts: dict[Key, int]
    """Rows of each group, in the order of the index."""
    places: tuple[Place, ...]
    """Where each fragment's rows go."""
    caption_bytes: int
    """Length of all captions."""
    rows_found: int
    """Rows before those of weight 0 were left out."""
    missing_aesthetic: int
    """Rows without the score."""
    missing_latents: tuple[int, int]
    """Rows without moments as they are, and mirrored."""
    left_out: int
    """Rows of weight 0."""
    shards: tuple[str, ...]
    """Names of the tars by number."""

    @property
    def num_rows(self) -> int:
        """Rows of the index."""
        return sum(self.counts.values())

    @property
    def first_rows(self) -> dict[Key, int]:
        """First row of each group."""
        ends = np.cumsum([0, *self.counts.values()])[:-1].tolist()
        return dict(zip(self.counts, ends, strict=True))


def survey_fragment(read: Callable[[], pa.Table], weight: str) -> Survey:
    """Count a fragment; raises ValueError where the weight is none."""
    table = read()
    rows = weighted(table, weight)
    _refuse_nulls(rows)
    keys, codes = group_codes(rows)
    tars = {name for column in _shard_columns(rows) for name in column.unique().to_pylist() if name is not None}
    return Survey(
        counts=dict(zip(keys, np.bincount(codes, minlength=len(keys)).tolist(), strict=True)),
        rows_read=table.num_rows,
        caption_bytes=int(_offsets(_texts(rows.column("caption")))[-1]),
        missing_aesthetic=int(np.isnan(rows.column("aesthetic").to_numpy().astype(np.float32)).sum()),
        missing_latents=_missing_latents(rows),
        shards=tuple(sorted(tars)),
    )


def plan_index(surveys: Sequence[Survey], weight: str) -> Plan:
    """Return where every fragment's rows go; raises ValueError where there are too many groups."""
    unsorted: dict[Key, int] = {}
    for survey in surveys:
        for key, count in survey.counts.items():
            unsorted[key] = unsorted.get(key, 0) + count
    if len(unsorted) > MAX_GROUPS:
        raise BadInput(f"weight = {weight!r}: more than {MAX_GROUPS} groups of bucket, source and weight; round it")
    numbers: dict[str, int] = {}
    for survey in surveys:
        for name in survey.shards:
            numbers.setdefault(name, len(numbers))
    plan = Plan(
        counts=dict(sorted(unsorted.items())),
        places=(),
        caption_bytes=sum(survey.caption_bytes for survey in surveys),
        rows_found=sum(survey.rows_read for survey in surveys),
        missing_aesthetic=sum(survey.missing_aesthetic for survey in surveys),
        missing_latents=(
            sum(survey.missing_latents[0] for survey in surveys),
            sum(survey.missing_latents[1] for survey in surveys),
        ),
        left_out=sum(survey.rows_read for survey in surveys) - sum(unsorted.values()),
        shards=tuple(numbers),
    )
    return replace(plan, places=_places(surveys, plan.first_rows, numbers))


def _places(surveys: Sequence[Survey], next_row: dict[Key, int], numbers: dict[str, int]) -> tuple[Place, ...]:
    places, caption_offset = [], 0
    for survey in surveys:
        places.append(
            Place(
                next_row={key: next_row[key] for key in survey.counts},
                counts=survey.counts,
                caption_offset=caption_offset,
                shard_numbers={name: numbers[name] for name in survey.shards},
            )
        )
        caption_offset += survey.caption_bytes
        for key, count in survey.counts.items():
            next_row[key] += count
    return tuple(places)


def lay_fragment(read: Callable[[], pa.Table], weight: str, folder: str, place: Place) -> None:
    """Write a fragment's rows and captions to their places, in the order of shard and offset in each group."""
    table = in_shard_order(weighted(read(), weight))
    if not table.num_rows:
        return
    keys, codes = group_codes(table)
    counts = dict(zip(keys, np.bincount(codes, minlength=len(keys)).tolist(), strict=True))
    assert counts == place.counts, "the fragment changed between counting and writing"
    captions = _texts(table.column("caption"))
    offsets = _offsets(captions)
    rows = _records(table, place.shard_numbers)
    rows["caption_bytes"], rows["caption_offset"] = np.diff(offsets), place.caption_offset + offsets[:-1]
    with open(f"{folder}/rows.bin", "r+b", buffering=0) as file:
        for code, key in enumerate(keys):
            mine = rows[codes == code] if len(keys) > 1 else rows
            file.seek(place.next_row[key] * ROW.itemsize)
            _write(file, memoryview(mine.tobytes()))
    with open(f"{folder}/captions.bin", "r+b", buffering=0) as file:
        file.seek(place.caption_offset)
        _write(file, memoryview(captions.buffers()[2] or b"")[: offsets[-1]])


def weighted(table: pa.Table, weight: str) -> pa.Table:
    """Return the rows whose weight is above 0, with it; raises ValueError where the expression is no weight."""
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("fragment", table)
        try:
            relation = database.sql(f"SELECT CAST(({weight}) AS DOUBLE) AS {SAMPLING_WEIGHT} FROM fragment")
            column = relation.to_arrow_table().column(SAMPLING_WEIGHT).fill_null(0.0)
        except duckdb.Error as error:
            raise BadInput(f"weight = {weight!r}: {str(error).splitlines()[0]}") from error
    values = column.to_numpy()
    if not (np.isfinite(values) & (values >= 0)).all():
        raise BadInput(f"weight = {weight!r}: gives values below 0 or infinite; a weight is 0 or more")
    rows = table.append_column(SAMPLING_WEIGHT, column)
    return rows if (values > 0).all() else rows.filter(pa.array(values > 0))


def group_codes(table: pa.Table) -> tuple[list[Key], np.ndarray]:
    """Return the groups of a fragment, sorted, and the number of each row's group, (N,)."""
    combined, parts = np.zeros(table.num_rows, np.int64), []
    for name in KEY_COLUMNS:
        encoded = table.column(name).combine_chunks().dictionary_encode()
        parts.append(encoded.dictionary.to_pylist())
        combined = combined * len(parts[-1]) + encoded.indices.to_numpy()
    found = pa.array(combined).dictionary_encode()
    keys = [_key(number, parts) for number in found.dictionary.to_pylist()]
    by_key = sorted(range(len(keys)), key=keys.__getitem__)
    ranks = np.zeros(len(keys), np.int64)
    ranks[by_key] = np.arange(len(keys))
    return [keys[at] for at in by_key], ranks[found.indices.to_numpy()]


def in_shard_order(table: pa.Table) -> pa.Table:
    """Return the rows in the order of shard and offset."""
    encoded = table.column("shard").combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    order = np.lexsort((table.column("offset").to_numpy(), ranks[encoded.indices.to_numpy()]))
    return table if np.array_equal(order, np.arange(len(order))) else table.take(pa.array(order))


def _key(number: int, parts: list[list]) -> Key:
    values = []
    for part in reversed(parts):
        number, at = divmod(number, len(part))
        values.append(part[at])
    weight, source, width_px, height_px = values
    return height_px, width_px, source, weight


def _records(table: pa.Table, shard_numbers: dict[str, int]) -> np.ndarray:
    """Return the rows without their captions."""
    rows = np.zeros(table.num_rows, ROW)
    rows["uid"] = _uids(table.column("uid")).view("V16")[:, 0]
    rows["shard"] = _numbers(table.column("shard"), shard_numbers)
    for name in COPIED:
        rows[name] = table.column(name).to_numpy()
    rows["latent_offsets"] = -1
    if "latent_shard" not in table.column_names:
        return rows
    found = table.column("latent_shard").is_valid().to_numpy()
    known = table.filter(pa.array(found))
    rows["latent_shard"][found] = _numbers(known.column("latent_shard"), shard_numbers)
    rows["latent_bytes"][found] = known.column("latent_bytes").to_numpy()
    for variant in (0, 1):
        rows["latent_offsets"][found, variant] = known.column(f"latent_offset_{variant}").fill_null(-1).to_numpy()
    return rows


def _refuse_nulls(table: pa.Table) -> None:
    """Raise BadInput where a row does not say where it lies or how it was cut: only the score may be null."""
    for name in (*COPIED, *KEY_COLUMNS, "uid", "shard"):
        column = table.column(name)
        if name != "aesthetic" and column.null_count:
            at = column.is_null().to_numpy().argmax()
            shard = table.column("shard")[at].as_py()
            raise BadInput(f"{shard}: {name} is null in {column.null_count} rows; name it in each, or export again")


def _missing_latents(table: pa.Table) -> tuple[int, int]:
    """Return how many rows have no moments as they are, and mirrored."""
    if "latent_shard" not in table.column_names:
        return table.num_rows, table.num_rows
    return table.column("latent_offset_0").null_count, table.column("latent_offset_1").null_count


def _shard_columns(table: pa.Table) -> list[pa.ChunkedArray]:
    return [table.column(name) for name in ("shard", "latent_shard") if name in table.column_names]


def _numbers(names: pa.ChunkedArray, numbers: dict[str, int]) -> np.ndarray:
    encoded = names.combine_chunks().dictionary_encode()
    of_name = np.array([numbers[name] for name in encoded.dictionary.to_pylist()], dtype=np.uint32)
    return of_name[encoded.indices.to_numpy()]


def _uids(column: pa.ChunkedArray) -> np.ndarray:
    """Return uids of 32 hex characters as uint8 (N, 16); raises ValueError where one is something else."""
    texts = _texts(column)
    offsets = _offsets(texts)
    letters = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[: offsets[-1]]
    nibbles = _nibble_of()[letters]
    if (np.diff(offsets) != 32).any() or (nibbles == NO_NIBBLE).any():
        raise BadInput("tables/shards: a uid is not 32 hex characters; run the export step again")
    return (nibbles[::2] << 4 | nibbles[1::2]).reshape(-1, 16)


def _nibble_of() -> np.ndarray:
    table = np.full(256, NO_NIBBLE, np.uint8)
    for letters in ("0123456789abcdef", "0123456789ABCDEF"):
        table[np.frombuffer(letters.encode(), np.uint8)] = np.arange(16)
    return table


def _texts(column: pa.ChunkedArray) -> pa.LargeStringArray:
    """Return the texts, null ones empty, as one array that begins its buffers."""
    return pa.concat_arrays([pa.array([], pa.large_string()), *column.cast(pa.large_string()).fill_null("").chunks])


def _offsets(texts: pa.LargeStringArray) -> np.ndarray:
    """Return where each text starts in the buffer, and where the last one ends, (N + 1,)."""
    if not len(texts):
        return np.zeros(1, np.int64)
    found = np.frombuffer(texts.buffers()[1], np.int64)[: len(texts) + 1]
    assert texts.offset == found[0] == 0
    return found


def _write(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
