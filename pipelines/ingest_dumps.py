"""Ingest of dumps: images that one already has, with the captions beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import fsspec

from curate import sample
from curate.config import DumpSource
from curate.dump import DumpRow, list_dump
from curate.sample import sample_uid, storable
from pipelines.runner import Fragment, say


def dump_fragments(dump: DumpSource, rows_per_shard: int) -> Iterator[Fragment]:
    listed = list_dump(dump)
    if not listed:
        say(f"samples: dump {dump.name} has no images in {dump.folder}")
    for number, first in enumerate(range(0, len(listed), rows_per_shard)):
        rows = listed[first : first + rows_per_shard]
        made_from = [asdict(dump), [asdict(row) for row in rows]]
        yield Fragment(name=f"{dump.name}-{number:05d}", made_from=made_from, arguments=("dump", dump, number, rows))


def dumped(dump: DumpSource, number: int, rows: list[DumpRow]) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    fs, folder = fsspec.core.url_to_fs(dump.folder)
    for entry in rows:
        caption = entry.caption
        if entry.sidecar:
            caption = fs.cat_file(f"{folder}/{entry.sidecar}").decode("utf-8", errors="replace").strip()
        row: dict[str, Any] = {"uid": sample_uid(dump.name, entry.path, caption), "source": dump.name}
        row |= {"url": storable(entry.path), "caption": caption, "license": dump.license}
        try:
            yield row, fs.cat_file(f"{folder}/{entry.path}")
        except OSError as error:
            yield row | {"status": sample.MISSING_FILE, "error": type(error).__name__}, None
