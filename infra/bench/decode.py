#!/usr/bin/env python3
"""One decode for every measurement, beside decoding anew for each; one JSON line for each contender.

    python infra/bench/decode.py [PHOTOS...] [--count 48] [--model ViT-B-32] [--encoder FOLDER]

PHOTOS are folders of photographs; those of a megapixel and more become JPEGs of 1.4 megapixels, quality 92. One
thread. Each contender takes all of them in turn, six times, the contenders alternating; the best pass counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
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
import open_clip  # noqa: E402
import pdqhash  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from curate.config import ClipSpec, EmbedConfig  # noqa: E402
from curate.embedder import Embedder, middle_square, normalised  # noqa: E402
from curate.image import decode  # noqa: E402
from curate.picture import from_pixels, read_picture  # noqa: E402
from curate.quality import technical_quality  # noqa: E402
from infra.bench import keras_encoder  # noqa: E402
from pipelines.embed import measurements  # noqa: E402

MEGAPIXELS = 1.4
PASSES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="*", help="folders; without any, drawn pictures stand in")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip architecture; its weights are random")
    parser.add_argument("--encoder", type=Path, help="folder of a trained encoder: also the effect on its features")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = jpegs(args.photos, args.count)
    spec = ClipSpec(architecture=args.model, weights=None, allow_untrained=True)
    fast, exact = (Embedder(EmbedConfig(clip=spec, decode=how, device="cpu")) for how in ("fast", "exact"))
    compare(files, contenders(fast, exact))
    print(json.dumps({"bench": "agreement", **agreement(files, fast, exact)}), flush=True)
    if args.encoder is not None:
        found = [path for path in photographs(args.photos) if path.suffix.lower() in (".jpg", ".jpeg")]
        print(json.dumps({"bench": "embedding", **embedding_effect(found, args.encoder)}), flush=True)


def jpegs(folders: list[Path], count: int) -> list[bytes]:
    """Return JPEGs of 1.4 megapixels: of the photographs there that have a megapixel, or drawn ones."""
    if not folders:
        return [_jpeg(_drawn(seed)) for seed in range(count)]
    made = []
    for path in photographs(folders):
        with Image.open(path) as image:
            if image.width * image.height >= 1e6 and len(made) < count:
                made.append(_jpeg(image.convert("RGB")))
    if not made:
        raise SystemExit(f"PHOTOS = {folders[0]}: no photograph of a megapixel or more: name another folder")
    return made


def photographs(folders: list[Path]) -> list[Path]:
    found = sorted(path for folder in folders for path in folder.rglob("*"))
    return [path for path in found if path.suffix.lower() in (".jpg", ".jpeg", ".png")]


def _drawn(seed: int) -> Image.Image:
    """Return noise at every scale, as much of it at each as in a photograph."""
    rng, sides = np.random.default_rng(seed), (4, 8, 16, 32, 64, 128, 256, 512)
    total = np.zeros((966, 1449, 3), np.float32)
    for side in sides:
        coarse = rng.standard_normal((side, side * 3 // 2, 3)).astype(np.float32) * 30 / side**0.4
        total += cv2.resize(coarse, (1449, 966), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


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


def embedding_effect(photos: list[Path], folder: Path) -> dict[str, Any]:
    """Return the cosines of a trained encoder's features of each file, decoded fast and exactly.

    Beside them: a q85 copy of the file decoded exactly, and the nearest other photograph.
    """
    features_of = keras_encoder.load(folder)
    side_px = 224
    open_clip_s = open_clip.image_transform(side_px, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)

    def fast(data: bytes) -> torch.Tensor:
        return middle_square(read_picture(data, 120, 2 * side_px), side_px)

    def exact(data: bytes) -> torch.Tensor:
        return 255 * open_clip_s(decode(data, 120))

    def unit(tensor_CHW: torch.Tensor) -> np.ndarray:
        return normalize(features_of(tensor_CHW[None].float() / 255))[0].numpy()

    files = [path.read_bytes() for path in photos]
    exactly = np.stack([unit(exact(data)) for data in files])
    quickly = np.stack([unit(fast(data)) for data in files])
    again = np.stack([unit(exact(_recompressed(data))) for data in files])
    others = exactly @ exactly.T - 2 * np.eye(len(files))
    return {
        "encoder": folder.name,
        "photos": len(files),
        "reduced": sum(read_picture(data, 120, 2 * side_px).reduced_by > 1 for data in files),
        "fast_to_exact": _cosines((quickly * exactly).sum(axis=1)),
        "q85_copy_to_exact": _cosines((again * exactly).sum(axis=1)),
        "nearest_other_photo": _cosines(others.max(axis=1)),
    }


def _cosines(values: np.ndarray) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 5), "min": round(float(values.min()), 5)}


def _recompressed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    decode(data, 120).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
