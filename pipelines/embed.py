#!/usr/bin/env python3
"""Embed: one decode of each image gives true size, hashes, technical quality and the CLIP embedding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate import hashes, sample
from curate.config import CurationConfig
from curate.image import UnreadableImage
from curate.picture import Picture, read_picture
from curate.quality import technical_quality
from curate.text_only import text_share
from curate.trial import tried_first
from pipelines.command import run_step
from pipelines.preflight import check_clip_weights
from pipelines.runner import Fragment, Made, Report, Runner, Step, shaping
from pipelines.store import Root, check_fragments, fragments, stale, table_file
from schemas import features
from schemas.column import conform, with_model

SPEED = ("actors", "batch_size", "decode_threads", "device", "gpus_per_actor")
"""Settings that shape no result."""

Decode = Callable[[bytes], Picture]


def embed(runner: Runner) -> list[Report]:
    """Measure every image that came in."""
    config = runner.config
    check_clip_weights(config)
    samples, texts = fragments(runner.root, "samples"), fragments(runner.root, "texts")
    check_fragments(runner.root, samples, "texts", dry_run=runner.dry_run)
    wanted = [
        Fragment(name=name, made_from=[receipt, texts[name]], arguments=(name,)) for name, receipt in samples.items()
    ]
    step = Step(
        table="features",
        settings=shaping(config.embed, *SPEED),
        build=_build,
        actors=config.embed.actors,
        device=config.embed.device,
        gpus_per_actor=config.embed.gpus_per_actor,
        models=(_model_name(config),),
    )
    return [runner.run(step, wanted)]


def _model_name(config: CurationConfig) -> str:
    spec = config.embed.clip
    return f"{Path(spec.architecture).stem}, " + (spec.weights or f"UNTRAINED random weights, seed {spec.seed}")


def _build(config: CurationConfig) -> Any:
    from curate.embedder import Embedder

    embedder, root = Embedder(config.embed), Root(config.root)
    schema = features.schema(embedder.dim)
    said = _model_name(config)
    schema = with_model(schema, ["embedding", "clip_similarity"], said, embedder.revision)
    read = partial(read_picture, max_megapixels=config.embed.max_megapixels, min_side_px=embedder.min_side_px)

    def measure(name: str, careful: bool = False) -> Made:
        samples = root.read_table(
            table_file("samples", name), ["uid", "status", "error", "shard", "offset", "num_bytes"]
        )
        captions = root.read_table(table_file("texts", name), ["uid", "caption_clean"])
        if samples["uid"] != captions["uid"]:
            raise stale(table_file("texts", name))
        texts = captions["caption_clean"].to_pylist()
        rows = []
        with tried_first(read, careful) as decode:
            for batch in _decoded(root, samples, texts, embedder, decode, config):
                rows.extend(embedder.complete(batch))
        return Made(rows=conform(_as_table(rows, schema), schema), counts=_statuses(rows))

    return measure


def _decoded(
    root: Root, samples: pa.Table, texts: list[Any], embedder: Any, decode: Decode, config: CurationConfig
) -> Iterator[list[dict]]:
    """Yield measured batches; threads decode the next batch while the model works on this one."""
    listed = [{**row, "text": text} for row, text in zip(samples.to_pylist(), texts, strict=True)]
    size = config.embed.batch_size
    batches = [listed[first : first + size] for first in range(0, len(listed), size)]

    def one(row: dict[str, Any]) -> dict[str, Any]:
        return measure_image(root, row, embedder, decode)

    with ThreadPoolExecutor(config.embed.decode_threads) as pool:
        upcoming = [pool.submit(one, row) for row in batches[0]] if batches else []
        for following in [*batches[1:], []]:
            current, upcoming = upcoming, [pool.submit(one, row) for row in following]
            yield [task.result() for task in current]


def measure_image(root: Root, row: dict[str, Any], embedder: Any, decode: Decode) -> dict[str, Any]:
    """Return one image's measurements and its tensor for the model, or its status."""
    measured: dict[str, Any] = {"uid": row["uid"], "text": row["text"], "status": row["status"], "error": row["error"]}
    if row["shard"] is None:
        return measured
    data = root.read(row["shard"], row["offset"], row["num_bytes"])
    try:
        picture = decode(data)
    except UnreadableImage as error:
        return measured | {"status": error.status, "error": str(error)}
    return measured | {"status": sample.OK, **measurements(picture), "tensor": embedder.preprocess(picture)}


def measurements(picture: Picture) -> dict[str, Any]:
    """Return what is measured on one decoded picture, by column."""
    phash64, phash64_turned = hashes.phashes_of(picture.low_frequencies)
    (pdq256, *pdq256_turned), pdq_quality = hashes.pdq_and_turned(picture.luma_HW)
    return {
        "width_px": picture.width_px,
        "height_px": picture.height_px,
        "phash64": phash64,
        "phash64_turned": phash64_turned,
        "pdq256": pdq256,
        "pdq256_turned": b"".join(pdq256_turned),
        "pdq_quality": pdq_quality,
        "jpeg_quality": picture.jpeg_quality,
        **technical_quality(picture.luma_HW)._asdict(),
        "text_share": text_share(picture.luma_HW),
    }


def _as_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    plain = [name for name in schema.names if name != "embedding"]
    columns = {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in plain}
    dim = schema.field("embedding").type.list_size
    flat = np.zeros((len(rows), dim), np.float16)
    absent = np.array([row.get("embedding") is None for row in rows], bool)
    for position in np.flatnonzero(~absent):
        flat[position] = rows[position]["embedding"]
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), dim, mask=pa.array(absent))
    return pa.table(columns)


def _statuses(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return counts


if __name__ == "__main__":
    run_step("embed", embed, __doc__)
