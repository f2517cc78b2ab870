"""Recaptions: a new caption, by a local vision-language model, for the samples that the mix gives one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from curate.config import CurationConfig
from curate.image import UnreadableImage, decode
from curate.recaption import fingerprint, is_chosen, open_captioner
from curate.trial import tried_first
from pipelines.runner import Fragment, Made, Report, Runner, Step, shaping
from pipelines.store import Root, fragments, table_file
from schemas.column import conform, with_model
from schemas.recaptions import SCHEMA

SPEED = ("actors", "batch_size", "device")


def recaption(runner: Runner) -> Report:
    """Caption the samples that are chosen by uid and decode."""
    settings = runner.config.captions.recaption
    identity = fingerprint(settings)
    wanted = [
        Fragment(name=name, made_from=[receipt, identity], arguments=(name, identity))
        for name, receipt in fragments(runner.root, "samples").items()
    ]
    step = Step(
        table="recaptions",
        settings=shaping(settings, *SPEED),
        build=_build,
        actors=settings.actors,
        device=settings.device,
        models=(f"{settings.model}, sha256 of its files {identity}",),
    )
    return runner.run(step, wanted)


def _build(config: CurationConfig) -> Any:
    root, settings = Root(config.root), config.captions.recaption
    captioner = open_captioner(settings)
    read = partial(decode, max_megapixels=config.embed.max_megapixels)

    def write(name: str, identity: str, careful: bool = False) -> Made:
        schema = with_model(SCHEMA, ["caption_generated"], str(settings.model), identity)
        rows = root.read_table(table_file("samples", name), ["uid", "shard", "offset", "num_bytes"])
        listed = rows.to_pylist()
        texts: list[str | None] = [None] * len(listed)
        chosen = [at for at, row in enumerate(listed) if row["shard"] and is_chosen(row["uid"], settings.share)]
        with tried_first(read, careful) as decode_one:
            for first in range(0, len(chosen), settings.batch_size):
                images = {}
                for at in chosen[first : first + settings.batch_size]:
                    row = listed[at]
                    try:
                        images[at] = decode_one(root.read(row["shard"], row["offset"], row["num_bytes"]))
                    except UnreadableImage:
                        continue  # embed gives it its status
                if images:
                    for at, text in zip(images, captioner.captions(list(images.values())), strict=True):
                        texts[at] = text or None
        table = pa.table({"uid": rows["uid"], "caption_generated": pa.array(texts, pa.string())})
        return Made(rows=conform(table, schema), counts={"generated": sum(text is not None for text in texts)})

    return write
