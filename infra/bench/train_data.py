#!/usr/bin/env python3
"""Training batches beside webdataset and mosaicml-streaming, on the same samples; one JSON line for each contender.

    python infra/bench/train_data.py [--latents 1500] [--pictures 400] [--peers .venv-peers/bin/python]

Latents are moments of 1024 px pictures (262 kB), shuffled and batched by aspect bucket. Pictures are JPEGs of about
1.2 megapixels, decoded, resized to a bucket near 512 px, flipped and jittered in colour. Two workers and batches of
16 for each contender; the samples lie in the page cache; they take turns, and the best of the passes counts.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

PEERS = Path(__file__).resolve().parents[2] / ".venv-peers/bin/python"
BATCH, WORKERS, PASSES = 16, 2, 3
LATENT_BUCKETS = ((1024, 1024), (832, 1216), (1216, 832), (896, 1152))
PICTURE_BUCKETS = ((512, 512), (448, 576), (576, 448))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=1500)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python with mosaicml-streaming")
    args = parser.parse_args()
    for kind, count in (("latents", args.latents), ("pictures", args.pictures)):
        with tempfile.TemporaryDirectory(prefix=f"bench-{kind}-") as folder:
            root = Path(folder)
            write_root(root, kind, count, LATENT_BUCKETS if kind == "latents" else PICTURE_BUCKETS)
            compare(root, kind, count, args.peers)


def compare(root: Path, kind: str, count: int, peers: Path) -> None:
    best: dict[str, float] = {}
    for _ in range(PASSES):
        best["darkroom"] = max(best.get("darkroom", 0.0), rate(ours(root, kind, count)))
        best["webdataset"] = max(best.get("webdataset", 0.0), rate(webdataset(root, kind)))
        command = [str(peers), str(Path(__file__).with_name("streaming_reader.py")), str(root), kind]
        done = subprocess.run([*command, str(BATCH), str(WORKERS)], check=True, capture_output=True, text=True)
        best["streaming"] = max(best.get("streaming", 0.0), float(done.stdout.split()[-1]))
    fastest = max(best["webdataset"], best["streaming"])
    for name, samples_per_s in best.items():
        said = {"bench": "train_data", "kind": kind, "samples": count, "contender": name}
        print(json.dumps(said | {"samples_per_s": round(samples_per_s, 1)}), flush=True)
    print(json.dumps({"bench": "train_data", "kind": kind, "ratio": round(best["darkroom"] / fastest, 2)}), flush=True)


def rate(batches: Iterable[Any]) -> float:
    """Return samples/s over the second half of the batches: workers run and shuffle buffers are full."""
    times, sizes = [], []
    for batch in batches:
        times.append(time.perf_counter())
        sizes.append(len(batch))
    half = len(times) // 2
    return sum(sizes[half:]) / (times[-1] - times[half - 1])


def ours(root: Path, kind: str, count: int) -> Iterator[Any]:
    from dataclasses import replace

    from train.config import BatchConfig, LoaderConfig
    from train.data.loader import Loader
    from train.data.samples import ImageSource, LatentSource
    from train.data.shards import ShardReader
    from train.index.build import IndexOf, build_index
    from train.index.reader import open_index
    from train.recipes import base

    folder = root / "index/train"
    if not folder.exists():
        build_index(IndexOf(root=str(root), split="train"), folder)
    index, reader = open_index(folder), ShardReader(root=str(root))
    config = replace(
        base(),
        steps=count // BATCH,
        batch=BatchConfig(global_batch=BATCH, micro_batch=BATCH),
        loader=LoaderConfig(workers=WORKERS),
    )
    config = replace(config, augment=replace(config.augment, flip_prob=0.0 if kind == "latents" else 0.5))
    images = ImageSource(reader=reader, augment=config.augment, seed=0)
    source = LatentSource(reader=reader, channels=8, factor=8) if kind == "latents" else images
    for batch in Loader(config, index, source, rank=0, world_size=1).micro_batches(0):
        yield batch.arrays_BCHW


def webdataset(root: Path, kind: str) -> Iterator[Any]:
    import webdataset as wds
    from torch.utils.data import DataLoader

    tars = sorted(str(path) for path in (root / ("latents" if kind == "latents" else "shards") / "train").glob("*.tar"))
    pipeline = wds.WebDataset(tars, shardshuffle=100).shuffle(500).map(_decoded(kind)).compose(_by_bucket)
    return iter(DataLoader(pipeline, batch_size=None, num_workers=WORKERS, prefetch_factor=4))


def _decoded(kind: str) -> Any:
    from streaming_reader import augmented

    if kind == "latents":
        return lambda sample: np.load(io.BytesIO(sample["v0.npy"]))
    return lambda sample: augmented(sample["jpg"], *_bucket_of(json.loads(sample["json"])))


def _bucket_of(said: dict[str, Any]) -> tuple[int, int]:
    return said["bucket_height_px"], said["bucket_width_px"]


def _by_bucket(samples: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    waiting: dict[tuple[int, ...], list[np.ndarray]] = {}
    for sample in samples:
        bucket = waiting.setdefault(sample.shape, [])
        bucket.append(sample)
        if len(bucket) == BATCH:
            yield np.stack(bucket)
            bucket.clear()


def write_root(root: Path, kind: str, count: int, buckets: tuple[tuple[int, int], ...]) -> None:
    """Write tars and tables as the curation does, a shard for every 100 samples of a bucket."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from curate.tar import TarShard
    from schemas import latents, shards

    rng = np.random.default_rng(0)
    tables: dict[str, list[dict[str, Any]]] = {"shards": [], "latents": []}
    folder = root / ("latents" if kind == "latents" else "shards") / "train"
    folder.mkdir(parents=True)
    (root / "shards/train").mkdir(parents=True, exist_ok=True)
    for number in range(len(buckets)):
        for first in range(0, count // len(buckets), 100):
            path = folder / f"{number}-{first:06d}.tar"
            with path.open("wb") as file:
                tar = TarShard(file)
                for at in range(first, min(first + 100, count // len(buckets))):
                    _add(tar, tables, str(path.relative_to(root)), kind, buckets[number], f"{number} {at}", rng)
                tar.close()
    for name, schema in (("shards", shards.SCHEMA), ("latents", latents.SCHEMA)):
        (root / f"tables/{name}").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(tables[name], schema=schema), root / f"tables/{name}/all.parquet")
        (root / f"tables/{name}/_run.json").write_text(json.dumps({"fragments": {"all": {"receipt": "bench"}}}))
    if kind == "latents":
        (root / "latents/shards.json").write_text(json.dumps({"all": "bench"}))


def _add(tar: Any, tables: dict[str, Any], shard: str, kind: str, bucket: tuple[int, int], name: str, rng: Any) -> None:
    uid = hashlib.sha256(name.encode()).hexdigest()[:32]
    said = {"uid": uid, "split": "train", "shard": shard}
    row = said | {"source": "web", "bucket_height_px": bucket[0], "bucket_width_px": bucket[1], "aesthetic": 5.0}
    row |= {f"original_{side}_px": 1100 for side in ("height", "width")} | {"crop_top_px": 0, "crop_left_px": 0}
    row |= {"caption": f"picture {name}", "offset": 0, "num_bytes": 0}
    if kind == "latents":
        buffer = io.BytesIO()
        np.save(buffer, rng.standard_normal((8, bucket[0] // 8, bucket[1] // 8)).astype(np.float16))
        place = {"offset": tar.add(f"{uid}.v0.npy", buffer.getvalue()), "num_bytes": buffer.tell()}
        tables["latents"].append(said | {"variant": 0} | place)
    else:
        size = (bucket[1] * 1100 // 512, bucket[0] * 1100 // 512)
        picture = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).resize(size, 3)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        row |= {"offset": tar.add(f"{uid}.jpg", buffer.getvalue()), "num_bytes": buffer.tell()}
        tar.add(f"{uid}.json", json.dumps(row).encode())
    tables["shards"].append(row)


if __name__ == "__main__":
    main()
