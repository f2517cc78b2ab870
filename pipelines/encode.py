#!/usr/bin/env python3
"""Encode: posterior moments of every exported picture, as it is and mirrored, in latent shards."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.command_line import heed_ctrl_c
from curate.config import AutoencoderFit, CurationConfig
from curate.tar import TarShard
from pipelines.command import run_step
from pipelines.progress import LOG_EVERY_S, time_left
from pipelines.runner import Fragment, Made, Report, Runner, Step, WouldMake, say, shaping
from pipelines.store import Root, digest, fragments, scratch_file, table_file
from pipelines.table_lock import table_lock
from schemas.column import with_model
from schemas.latents import SCHEMA

FIT_RECEIPT = "darkroom_fit.json"


def encode(runner: Runner) -> list[Report]:
    """Write the latent shards, after fitting a small autoencoder where the configuration asks for one."""
    config, root = runner.config, runner.root
    if config.encode.vae is None:
        say("encode: encode.vae is null, training will encode online")
        return []
    shards = fragments(root, "shards")
    if runner.dry_run and config.encode.fit is not None and not Root(config.encode.vae).exists("config.json"):
        raise WouldMake("latents", len(shards), len(shards))
    if config.encode.fit is not None and shards and not runner.dry_run:
        with table_lock(root, "latents"):
            _fit_once(root, config.encode.vae, config.encode.fit, shards)
    said = _vae_facts(config.encode.vae) if shards else {}
    wanted = [
        Fragment(name=name, made_from=[receipt, said], arguments=(name, said["vae_fingerprint"]))
        for name, receipt in shards.items()
    ]
    _begin(runner, said)
    report = runner.run(Step(table="latents", settings=shaping(config.encode, "batch_size"), build=_build), wanted)
    if not runner.dry_run:
        root.write_json("latents/shards.json", shards)  # training takes no latents of shards that are others by now
        root.write_json("latents/run.json", {**said, "variants": 2 if config.encode.flip else 1, "rows": report.rows})
    return [report]


def _begin(runner: Runner, said: dict[str, Any]) -> None:
    """Mark latents of another autoencoder or code as unfinished before the first of them is replaced."""
    before = runner.root.read_json("latents/run.json")
    if before is not None and not runner.dry_run and any(before.get(name) != value for name, value in said.items()):
        runner.root.write_json("latents/run.json", {"unfinished": True})


def _vae_facts(folder: str) -> dict[str, Any]:
    from train.autoencoder import latent_facts, load_vae

    return {"vae": folder, **latent_facts(load_vae(folder))}


def _build(config: CurationConfig) -> Any:
    import torch

    from train.autoencoder import encode_moments, load_vae

    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = load_vae(str(config.encode.vae), torch.bfloat16 if device == "cuda" else torch.float32, device)
    root, size = Root(config.root), config.encode.batch_size

    def write(name: str, vae_fingerprint: str) -> Made:
        schema = with_model(SCHEMA, ["offset"], str(config.encode.vae), vae_fingerprint)
        rows = root.read_table(table_file("shards", name)).to_pylist()
        placed, files = [], {}
        for shard, found in groupby(rows, key=lambda row: row["shard"]):
            relative = shard.replace("shards/", "latents/", 1)
            files[relative] = scratch_file(".tar")
            with files[relative].open("wb") as file:
                placed += write_tar(TarShard(file), list(found), relative)
        return Made(rows=pa.Table.from_pylist(placed, schema=schema), files=files)

    def write_tar(tar: TarShard, rows: list[dict[str, Any]], relative: str) -> list[dict[str, Any]]:
        placed = []
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            pixels_BCHW = torch.stack([_pixels(root, row) for row in batch])
            for variant in (0, 1) if config.encode.flip else (0,):
                moments = encode_moments(vae, pixels_BCHW.flip(-1) if variant else pixels_BCHW)
                placed += [_add(tar, row, variant, one, relative) for row, one in zip(batch, moments, strict=True)]
        tar.close()
        return placed

    return write


def _pixels(root: Root, row: dict[str, Any]) -> Any:
    from train.autoencoder import pixels

    return pixels(Image.open(io.BytesIO(root.read(row["shard"], row["offset"], row["num_bytes"]))))


def _add(tar: TarShard, row: dict[str, Any], variant: int, moments: np.ndarray, shard: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, moments)
    data = buffer.getvalue()
    offset = tar.add(f"{row['uid']}.v{variant}.npy", data)
    place = {"shard": shard, "offset": offset, "num_bytes": len(data)}
    return {"uid": row["uid"], "split": row["split"], "variant": variant, **place}


def _fit_once(root: Root, folder: str, settings: AutoencoderFit, shards: dict[str, str]) -> None:
    """Fit the small autoencoder, unless the folder holds the one of these pictures and settings."""
    from train.autoencoder import FitConfig, fit, reconstruction_psnr_db, save_vae

    rows = [row for name in shards for row in root.read_table(table_file("shards", name)).to_pylist()]
    made_from = digest([asdict(settings), sorted(row["uid"] for row in rows), sorted({row["shard"] for row in rows})])
    target = Root(folder)
    if (target.read_json(FIT_RECEIPT) or {}).get("made_from") == made_from:
        return
    say(f"encode: fitting a small autoencoder on {len(rows)} pictures, {settings.steps} steps")
    batches = _batches(root, rows)
    vae = fit(batches, FitConfig(steps=settings.steps, seed=settings.seed), fit_progress(settings.steps))
    psnr_db = round(reconstruction_psnr_db(vae, batches), 2)
    say(f"encode: its reconstructions have a PSNR of {psnr_db} dB on these pictures")
    with tempfile.TemporaryDirectory() as local:
        save_vae(vae, Path(local))
        for path in sorted(Path(local).iterdir()):
            target.write_file(path.name, path)
    target.write_json(
        FIT_RECEIPT, {"made_from": made_from, "pictures": len(rows), "psnr_db": psnr_db, **asdict(settings)}
    )


def fit_progress(steps: int) -> Callable[[int], None]:
    """Return what is called after each step of a fit; it says now and then how many are done, and heeds Ctrl-C."""
    started = said = time.monotonic()

    def after_step(done: int) -> None:
        nonlocal said
        heed_ctrl_c()
        now = time.monotonic()
        if now - said > LOG_EVERY_S:
            said = now
            left = time_left(now - started, done, steps - done)
            say(f"encode: fitting the autoencoder, {done}/{steps} steps, {left} left")

    return after_step


def _batches(root: Root, rows: list[dict[str, Any]]) -> list[Any]:
    """Return the pictures stacked by bucket."""
    import torch

    by_bucket: dict[tuple[int, int], list[Any]] = {}
    for row in rows:
        by_bucket.setdefault((row["bucket_height_px"], row["bucket_width_px"]), []).append(_pixels(root, row))
    return [torch.stack(pictures) for _, pictures in sorted(by_bucket.items())]


if __name__ == "__main__":
    run_step("encode", encode, __doc__)
