"""What is indexed, in tables or in tars: a reader for each fragment, and one digest of them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

TABLE_COLUMNS = (
    "uid",
    "source",
    "split",
    "shard",
    "offset",
    "num_bytes",
    "bucket_height_px",
    "bucket_width_px",
    "original_height_px",
    "original_width_px",
    "crop_top_px",
    "crop_left_px",
    "aesthetic",
    "caption",
)


@dataclass(frozen=True, kw_only=True)
class Fragments:
    """Tables to be indexed, and what identifies them all."""

    readers: tuple[Callable[[], pa.Table], ...]
    """In the order of the shards, one for each fragment, to be called in any process; each returns TABLE_COLUMNS and,
    where there are latents, their places."""
    digest: str
    """Changes when any of them does."""
