"""One parquet for other explorers: a row for each sample with its thumbnail, caption, scores, outcome and embedding."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.image import UnreadableImage
from pipelines.dashboard_server.browse import unsafe_sql
from pipelines.dashboard_server.filters import SHOWN
from pipelines.dashboard_server.index import ROWS_BITS, Index
from pipelines.dashboard_server.pictures import SIDES_PX, Pictures
from pipelines.store import MissingTable, table_file

OUTCOME = ("uid", "source", "host", "language", "license", "stage", "reason", "keep", "cluster_id", "kind")


def write(index: Index, file: Path, max_megapixels: float) -> int:
    """Write the samples that may be shown and have an embedding to a local file; returns how many.

    Raises MissingTable where nothing was embedded yet.
    `image` is a struct {bytes, path}, as Hugging Face's Image feature reads it; unsafe samples come without one.
    """
    pictures = Pictures(index, max_megapixels)
    writer, written = None, 0
    embedded = index.tables["features"]
    if not embedded.fragments:
        raise MissingTable(f"nothing to write: {embedded.told}")
    try:
        for name, number in index.rows("SELECT name, number FROM fragments ORDER BY number"):
            if name not in embedded.fragments:
                continue
            rows = _fragment(index, pictures, name, number)
            writer = writer or pq.ParquetWriter(file, rows.schema, compression="zstd")
            writer.write_table(rows)
            written += len(rows)
    finally:
        if writer is not None:
            writer.close()
    return written


def _fragment(index: Index, pictures: Pictures, name: str, number: int) -> pa.Table:
    numbers = ", ".join(f'"{one}"' for one in index.numbers)
    columns = f"number, {', '.join(OUTCOME)}, coalesce(caption_clean, caption) AS caption, {numbers}"
    rows = index.arrow(
        f"""SELECT {columns}, {unsafe_sql(index)} AS is_unsafe FROM board
        WHERE number >= ? AND number < ? AND {SHOWN} ORDER BY number""",
        [number << ROWS_BITS, (number + 1) << ROWS_BITS],
    )
    features = index.root.read_table(table_file("features", name), ["uid", "embedding"])
    at = {uid: place for place, uid in enumerate(features["uid"].to_pylist())}
    embedding = features["embedding"].combine_chunks()
    there = [uid in at and embedding[at[uid]].is_valid for uid in rows["uid"].to_pylist()]
    rows = rows.filter(pa.array(there, pa.bool_()))
    taken = embedding.take(pa.array([at[uid] for uid in rows["uid"].to_pylist()], pa.int64()))
    vectors = taken.cast(pa.list_(pa.float32(), embedding.type.list_size))
    image = [
        None if unsafe else _image(pictures, place)
        for place, unsafe in zip(rows["number"].to_pylist(), rows["is_unsafe"].to_pylist(), strict=True)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = rows.drop_columns(["number"]).append_column("embedding", vectors)
    return rows.append_column("image", pa.array(image, kind))


def _image(pictures: Pictures, number: int) -> dict[str, object] | None:
    try:
        return {"bytes": pictures.webp(number, SIDES_PX[1]), "path": None}
    except (LookupError, UnreadableImage, FileNotFoundError, EOFError):
        return None
