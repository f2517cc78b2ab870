#!/usr/bin/env python3
"""One decode for every measurement, beside decoding anew for each; one JSON line for each contender.

    python infra/bench/decode.py PHOTOS [--count 48] [--model ViT-B-32]

PHOTOS is a folder of photographs; those of a megapixel and more become JPEGs of 1.4 megapixels, quality 92. One
thread. Each contender takes all of them in turn, three times, the contenders alternating; the best pass counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2  # noqa: E402
import imagehash  # noqa: E402
import numpy as np  # noqa: E402
import pdqhash  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from curate import hashes  # noqa: E402
from curate.config import ClipSpec, EmbedConfig  # noqa: E402
from curate.embedder import Embedder, normalised  # noqa: E402
from curate.picture import from_pixels, read_picture  # noqa: E402
from curate.quality import technical_quality  # noqa: E402
from pipelines.embed import _as_table, measurements  # noqa: E402
from pipelines.store import Root, parquet_bytes  # noqa: E402
from schemas import features  # noqa: E402

MEGAPIXELS = 1.4
PASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip architecture; its weights are random")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = jpegs(args.photos, args.count)
    spec = ClipSpec(architecture=args.model, weights=None, allow_untrained=True)
    fast, exact = (Embedder(EmbedConfig(clip=spec, decode=how, device="cpu")) for how in ("fast", "exact"))
    compare(files, contenders(fast, exact))
    print(json.dumps({"bench": "agreement", **agreement(files, fast, exact)}), flush=True)
    print(json.dumps({"bench": "parts", "model": args.model, **parts(files, fast)}), flush=True)


def jpegs(folder: Path, count: int) -> list[bytes]:
    made = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png") or len(made) == count:
            continue
        with Image.open(path) as image:
            if image.width * image.height >= 1e6:
                made.append(_jpeg(image.convert("RGB")))
    if not made:
        raise SystemExit(f"PHOTOS = {folder}: no photograph of a megapixel or more: name another folder")
    return made


def _jpeg(rgb: Image.Image) -> bytes:
    scale = (MEGAPIXELS * 1e6 / (rgb.width * rgb.height)) ** 0.5
    size = round(rgb.width * scale), round(rgb.height * scale)
    buffer = io.BytesIO()
    rgb.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def contenders(fast: Embedder, exact: Embedder) -> dict[str, Callable[[bytes], Any]]:
    """Return what each contender does with the bytes of one file."""

    def opened(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data))

    def both(data: bytes) -> None:
        imagehash.phash(opened(data))
        exact._exact(opened(data))

    def each_stage_decodes(data: bytes) -> None:
        both(data)
        pdqhash.compute(np.asarray(opened(data).convert("RGB")))
        technical_quality(np.asarray(opened(data).convert("L")))

    def measured(embedder: Embedder) -> Callable[[bytes], Any]:
        def one(data: bytes) -> None:
            picture = read_picture(data, 120, embedder.min_side_px)
            measurements(picture)
            tensor = embedder.preprocess(picture)
            if embedder._fast is not None:
                normalised(tensor[None], embedder._fast)

        return one

    return {
        "Pillow decode alone": lambda data: opened(data).convert("RGB"),
        "imagehash.phash": lambda data: imagehash.phash(opened(data)),
        "open_clip transform": lambda data: exact._exact(opened(data)),
        "torchvision decode and transform": torchvision_s(fast),
        "imagehash, then open_clip": both,
        "each stage decodes: imagehash, pdqhash, quality, open_clip": each_stage_decodes,
        "Darkroom, decode: exact": measured(exact),
        "Darkroom, decode: fast": measured(fast),
    }


def torchvision_s(embedder: Embedder) -> Callable[[bytes], Any]:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    wanted = embedder._fast
    assert wanted is not None
    transform = v2.Compose(
        [
            v2.Resize(wanted.side_px, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(wanted.side_px),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(wanted.mean, wanted.std),
        ]
    )

    def one(data: bytes) -> torch.Tensor:
        return transform(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB))

    return one


def compare(files: list[bytes], contender: dict[str, Callable[[bytes], Any]]) -> None:
    best = dict.fromkeys(contender, float("inf"))
    for work in contender.values():
        work(files[0])
    for _ in range(PASSES):
        for name, work in contender.items():
            started = time.perf_counter()
            for data in files:
                work(data)
            best[name] = min(best[name], (time.perf_counter() - started) / len(files))
    for name, seconds in best.items():
        line = {"bench": "decode", "contender": name, "images": len(files), "images_per_s": round(1 / seconds, 1)}
        line["times_imagehash_then_open_clip"] = round(best["imagehash, then open_clip"] / seconds, 2)
        print(json.dumps(line), flush=True)


def agreement(files: list[bytes], fast: Embedder, exact: Embedder) -> dict[str, Any]:
    """Return how far the fast way is from imagehash, pdqhash and open_clip on the same files."""
    phash_bits, pdq_bits, tensor_levels, recompressed = [], [], [], []
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        picture = read_picture(data, 120, fast.min_side_px)
        found = measurements(picture)
        phash_bits.append((found["phash64"] ^ int(str(imagehash.phash(image)), 16)).bit_count())
        reference = np.packbits(pdqhash.compute(np.asarray(image))[0].astype(bool))
        pdq_bits.append(int(np.bitwise_count(np.frombuffer(found["pdq256"], np.uint8) ^ reference).sum()))
        full = fast.preprocess(from_pixels(image)).float()
        tensor_levels.append(float((fast.preprocess(picture).float() - full).abs().mean()))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        again = fast.preprocess(from_pixels(Image.open(buffer).convert("RGB"))).float()
        recompressed.append(float((again - full).abs().mean()))
    return {
        "phash64_bits": np.bincount(phash_bits).tolist(),
        "share_within_2_bits": round(float((np.array(phash_bits) <= 2).mean()), 4),
        "pdq_bits_mean": round(float(np.mean(pdq_bits)), 2),
        "pdq_bits_max": max(pdq_bits),
        "tensor_mean_difference_of_255": round(float(np.mean(tensor_levels)), 3),
        "tensor_worst_image_of_255": round(max(tensor_levels), 3),
        "a_q85_copy_s_mean_difference_of_255": round(float(np.mean(recompressed)), 3),
    }


def parts(files: list[bytes], embedder: Embedder, batch_size: int = 16) -> dict[str, Any]:
    """Return the CPU milliseconds an image costs in each part of the embed step, one thread."""
    spent: dict[str, float] = {}

    def timed(part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        result = work(*arguments)
        spent[part] = spent.get(part, 0.0) + time.process_time() - started
        return result

    with tempfile.TemporaryDirectory() as folder:
        root, offsets = Root(folder), np.cumsum([0, *map(len, files)]).tolist()
        root.write("all.tar", b"".join(files))
        rows = []
        for offset, whole in zip(offsets, files, strict=False):
            data = timed("read", root.read, "all.tar", offset, len(whole))
            picture = timed("decode", read_picture, data, 120, embedder.min_side_px)
            timed("phash64", lambda picture: hashes.phashes_of(picture.low_frequencies), picture)
            timed("PDQ", hashes.pdq, picture.luma_HW)
            timed("quality", technical_quality, picture.luma_HW)
            rows.append(
                measurements(picture)
                | {"tensor": timed("tensor", embedder.preprocess, picture), "text": "a photograph"}
            )
        for first in range(0, len(rows), batch_size):
            timed("model", embedder.complete, rows[first : first + batch_size])
        schema = features.schema(embedder.dim)
        timed("write", lambda: root.write("features.parquet", parquet_bytes(_as_table(rows, schema))))
    return {"images": len(files), "ms_per_image": {part: round(1000 * s / len(files), 2) for part, s in spent.items()}}


if __name__ == "__main__":
    main()
