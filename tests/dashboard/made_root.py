"""A root written by hand for the dashboard's tests: pictures in a shard, and the tables that point at them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.config import CurationConfig, SelectionConfig
from curate.config_file import as_dict
from pipelines.selection import choose
from pipelines.store import Root, commit, parquet_bytes, publish, table_file
from schemas import captions, duplicates, features, samples, scores, selection
from schemas.column import conform, with_model
from tests.conftest import encoded, picture

FRAGMENTS = ("made-00000", "made-00001")
SHARD, DIM, ROWS = "raw/made.tar", 8, 60
HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script> "\'`${1} </script>'
BLOCKED, UNSAFE, COPY, BROKEN, GONE, HOSTILE_AT = 3, 4, 5, 6, 7, 8
"""Places of the samples that are special."""
SETTINGS = SelectionConfig(min_aesthetic=4.0)
SCHEMAS = {
    "samples": samples.SCHEMA,
    "captions": captions.SCHEMA,
    "features": features.schema(DIM),
    "duplicates": duplicates.SCHEMA,
    "scores": with_model(scores.SCHEMA, ["aesthetic", "nsfw_prob"], "a head", "weights of the tests"),
    "selection": selection.SCHEMA,
}


def uid(number: int) -> str:
    return hashlib.sha256(f"made {number}".encode()).hexdigest()[:32]


def picture_with_gps(number: int) -> bytes:
    """Return a JPEG with a place and a camera's name in its EXIF."""
    image = picture(number, 240 + 4 * number, 300)
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    exif.get_ifd(0x8825)[1] = "N"
    return encoded(image, exif=exif)


def write_root(
    url: str,
    rows: int = ROWS,
    change: Callable[[dict[str, Any]], None] | None = None,
    settings: SelectionConfig = SETTINGS,
) -> Root:
    """Write every table of a root, in two fragments; `change` may alter the rows of all tables before."""
    root = Root(url)
    made = made_rows(root, rows)
    if change is not None:
        change(made)
    for name, listed in made.items():
        publish_table(root, name, pa.Table.from_pylist(listed, schema=_plain(SCHEMAS[name])))
    publish_table(root, "selection", selected(url, settings), settings=as_dict(settings))
    root.write_json("run.json", {"config": {"root": url, "selection": as_dict(settings), "embed": {}}})
    return root


def selected(url: str, settings: SelectionConfig) -> pa.Table:
    """Return what the selection step makes of the root's tables with those settings."""
    made = choose(CurationConfig(root=url, selection=settings), list(FRAGMENTS))
    return pa.concat_tables(pq.read_table(made.files[table_file("selection", name)]) for name in FRAGMENTS)


def publish_table(
    root: Root, name: str, table: pa.Table, *, finished: bool = True, settings: dict[str, Any] | None = None
) -> None:
    """Write a table as two fragments, with a manifest where it is finished."""
    half, receipts = len(table) // 2, []
    for fragment, part in zip(FRAGMENTS, (table.slice(0, half), table.slice(half)), strict=True):
        files = {table_file(name, fragment): parquet_bytes(conform(part, SCHEMAS[name]))}
        receipts.append(commit(root, name, fragment, "", files, len(part), {}))
    said = {"settings": settings or {}, "models": [], "seconds": 2.0, "fragments_made": 2}
    if finished:
        publish(root, name, receipts, said)


def made_rows(root: Root, rows: int) -> dict[str, list[dict[str, Any]]]:
    """Write the shard, and return the rows of every table but selection."""
    rng = np.random.default_rng(0)
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS if name != "selection"}
    shard = b""
    for number in range(rows):
        data = b"no picture" if number == BROKEN else picture_with_gps(number % 60)
        caption = HOSTILE if number == HOSTILE_AT else f"A picture of thing {number} in the light"
        there = number != GONE
        made["samples"].append(
            _row("samples", number)
            | {"source": ("crawl", "archive")[number % 3 == 0], "url": f"https://site{number % 4}.example/{number}.jpg"}
            | {"caption": caption, "shard": SHARD if there else None, "status": "ok" if there else "http_gone"}
            | {"offset": len(shard) if there else None, "num_bytes": len(data) if there else None, "format": "JPEG"}
            | {"license": ("CC-BY-4.0", None)[number % 2], "sha256": hashlib.sha256(data).hexdigest()}
        )
        shard += data if there else b""
        made["captions"].append(
            _row("captions", number)
            | {"caption_clean": caption, "language": ("en", "de")[number % 10 == 1], "language_prob": 0.9}
            | {"num_words": 8, "num_clip_tokens": 10, "caption_count": 1}
            | {"caption_reason": "caption_language" if number % 10 == 1 else None}
        )
        decodes = there and number != BROKEN
        vector = rng.standard_normal(DIM)
        made["features"].append(
            _row("features", number)
            | {"status": "ok" if decodes else ("decode_error" if there else None), "phash64": number}
            | {"width_px": 240 + 4 * number if decodes else None, "height_px": 300 if decodes else None}
            | {"entropy_bits": 7.0 if decodes else None, "sharpness": 10.0 * number if decodes else None}
            | {"embedding": (vector / np.linalg.norm(vector)).astype(np.float16) if decodes else None}
        )
        is_copy = number == COPY
        made["duplicates"].append(
            _row("duplicates", number)
            | {"cluster_id": uid(0 if is_copy else number), "survivor_uid": uid(0 if is_copy else number)}
            | {"kind": "perceptual" if is_copy else None, "distance": 2.0 if is_copy else None}
            | {"is_survivor": not is_copy, "won_by": "resolution" if is_copy else None}
        )
        made["scores"].append(
            _row("scores", number)
            | {"aesthetic": 1.0 + 8.0 * number / rows if decodes else None, "blocklist_hit": number == BLOCKED}
            | {"nsfw_prob": (0.9 if number == UNSAFE else 0.01) if decodes else None}
            | {"clip_similarity": 0.3 if decodes else None}
        )
    root.write(SHARD, shard)
    return made


def write_grid(folder: Path, run: str, step: int, colour: str) -> None:
    """Write what a training run draws after a step."""
    place = folder / "train" / run / "grids"
    place.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(place / f"step-{step:08d}.png")


def write_training(folder: Path, run: str, steps: int) -> Path:
    """Write a training run's metrics; returns their file."""
    place = folder / "train" / run
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({"config": {"steps": steps}, "samples": 50, "val_loss_before": 1.0}))
    lines = [{"step": s, "time": 0.0, "loss": 1.0 / s, "images_per_s": 30.0} for s in range(1, steps + 1)]
    lines.append({"step": steps, "time": 0.0, "val_loss": 0.5})
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place / "metrics.jsonl"


def _row(table: str, number: int) -> dict[str, Any]:
    return dict.fromkeys(SCHEMAS[table].names) | {"uid": uid(number)}


def _plain(schema: pa.Schema) -> pa.Schema:
    return schema.remove_metadata()
