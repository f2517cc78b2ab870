#!/usr/bin/env python3
"""CPU time of ingest and embed, from a list of URLs to the features table, part by part. One JSON line for each part.

    python infra/bench/ingest_embed.py [PHOTOS...] [--images 1000] [--model ViT-B-32] [--model-images 32]

The pictures are those of decode.py (JPEGs of 1.4 megapixels), served on loopback by a process of its own, whose time
does not count. Each part runs the code of the pipeline in this process, one after the other, without Ray; CPU time of
all its threads counts, that of the kernel, too. All but the model see --images pictures; the model, with random
weights in bf16, sees --model-images, and on a GPU takes no CPU time to speak of. The last line sums up for 10,000.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

from curate import hashes  # noqa: E402
from curate.config import ClipSpec, EmbedConfig, IngestConfig, WebSource  # noqa: E402
from curate.crawl.fetcher import Fetcher  # noqa: E402
from curate.crawl.limits import Limits  # noqa: E402
from curate.crawl.lists import list_files, read_lists  # noqa: E402
from curate.embedder import Embedder  # noqa: E402
from curate.picture import read_picture  # noqa: E402
from curate.quality import technical_quality  # noqa: E402
from curate.text_only import text_share  # noqa: E402
from infra.bench.crawl import PORT, serving  # noqa: E402
from infra.bench.decode import jpegs  # noqa: E402
from pipelines.embed import _as_table  # noqa: E402
from pipelines.ingest import _shard  # noqa: E402
from pipelines.store import Root, parquet_bytes  # noqa: E402
from schemas import features, fetches  # noqa: E402

DISTINCT = 48
HOSTS = 20
THREADS = 16


class Clock:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def timed(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        result = work(*arguments)
        self.spent[part] = self.spent.get(part, 0.0) + time.process_time() - started
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="*", help="folders; without any, drawn pictures stand in")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip architecture; its weights are random")
    parser.add_argument("--model-images", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    bodies = jpegs(args.photos, DISTINCT)
    spec = ClipSpec(architecture=args.model, weights=None, allow_untrained=True)
    embedder = Embedder(EmbedConfig(clip=spec, device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        with serving(HOSTS, bodies):
            ingested = ingest_parts(Path(folder), args.images)
        embedded, modelled = embed_parts(Root(folder), embedder, args.model_images)
    kilobytes = sum(map(len, bodies)) / len(bodies) / 1000
    print_parts(args, ingested | embedded, modelled, kilobytes)


def ingest_parts(folder: Path, count: int) -> dict[str, float]:
    """Crawl the pictures into one raw shard; return the CPU milliseconds of each part for an image."""
    clock = Clock()
    urls = [f"http://127.0.1.{n % HOSTS + 1}:{PORT}/{n}.jpg" for n in range(count)]
    pd.DataFrame({"url": urls, "caption": "a picture"}).to_parquet(folder / "urls.parquet")
    source = WebSource(name="web", url_list=str(folder / "urls.parquet"))
    listed = clock.timed("list of URLs", lambda: list(read_lists(source, list_files(source), 10_000)))
    rows = pa.concat_tables(listed).to_pylist()
    found = clock.timed("requests, consent checks", fetch, [row["url"] for row in rows])
    done = [({"uid": row["uid"]} | _columns(outcome), data) for row, (data, outcome) in zip(rows, found, strict=True)]
    made = clock.timed("sha256, header, raw shard", lambda: _shard("shard", iter(done), fetches.SCHEMA))
    assert made.counts == {"ok": count}, made.counts
    clock.timed("table of samples", lambda: (folder / "samples.parquet").write_bytes(parquet_bytes(made.rows)))
    ((name, path),) = made.files.items()
    clock.timed("raw shard published", Root(str(folder)).write_file, name, path)
    path.unlink()
    return {part: 1000 * seconds / count for part, seconds in clock.spent.items()}


def fetch(urls: list[str]) -> list[Any]:
    settings = IngestConfig(allowed_networks=("127.0.0.0/8",))
    fetcher = Fetcher(settings, Limits(settings.requests_per_host).exchange)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(fetcher.fetch, urls))


def _columns(outcome: Any) -> dict[str, Any]:
    said = asdict(outcome)
    return said | said.pop("signals")


def embed_parts(root: Root, embedder: Embedder, model_images: int) -> tuple[dict[str, float], float]:
    """Measure every picture of the shard; return the CPU milliseconds of each part, and of the model, for an image."""
    clock = Clock()
    listed = pd.read_parquet(io.BytesIO(root.read("samples.parquet")))
    rows, tensors = [], []
    for row in listed.to_dict("records"):
        data = clock.timed("read", root.read, row["shard"], row["offset"], row["num_bytes"])
        picture = clock.timed("decode", read_picture, data, 120, embedder.min_side_px)
        phash64, turned = clock.timed("phash64", hashes.phashes_of, picture.low_frequencies)
        (pdq256, *pdq_turned), quality = clock.timed("PDQ", hashes.pdq_and_turned, picture.luma_HW)
        measured = clock.timed("quality", technical_quality, picture.luma_HW)._asdict()
        measured["text_share"] = clock.timed("share of text", text_share, picture.luma_HW)
        tensors.append(clock.timed("tensor", embedder.preprocess, picture))
        measured |= {"pdq256": pdq256, "pdq256_turned": b"".join(pdq_turned), "pdq_quality": quality}
        rows.append(measured | {"uid": row["uid"], "phash64": phash64, "phash64_turned": turned, "status": "ok"})
    seen = [{"tensor": tensor, "text": "a photograph"} for tensor in tensors[:model_images]]
    embedder.complete(seen[:2])
    seen = [{"tensor": tensor, "text": "a photograph"} for tensor in tensors[:model_images]]
    completed = clock.timed("model", embedder.complete, seen)
    for row in rows:
        row["embedding"] = completed[0]["embedding"]
    schema = features.schema(embedder.dim)
    clock.timed("table of features", lambda: root.write("features.parquet", parquet_bytes(_as_table(rows, schema))))
    model_ms = 1000 * clock.spent.pop("model") / len(seen)
    return {part: 1000 * seconds / len(rows) for part, seconds in clock.spent.items()}, model_ms


def print_parts(args: argparse.Namespace, parts: dict[str, float], model_ms: float, kilobytes: float) -> None:
    known = {"bench": "ingest_embed", "images": args.images, "kilobytes": round(kilobytes)}
    whole_ms = sum(parts.values())
    for part, ms in parts.items():
        line = {"part": part, "cpu_ms_per_image": round(ms, 3), "share_without_model": round(ms / whole_ms, 3)}
        print(json.dumps(known | line), flush=True)
    line = {"part": f"model {args.model}, bf16, images and captions", "cpu_ms_per_image": round(model_ms, 1)}
    print(json.dumps(known | line | {"images": args.model_images}), flush=True)
    summary = {
        "part": "all",
        "cpu_s_for_10000": round(10 * (whole_ms + model_ms)),
        "cpu_s_for_10000_without_model": round(10 * whole_ms),
        "limit_on_cpu": "model" if model_ms > max(parts.values()) else max(parts, key=lambda part: parts[part]),
        "limit_with_a_gpu": max(parts, key=lambda part: parts[part]),
        "images_per_s_and_core_with_a_gpu": round(1000 / whole_ms, 1),
    }
    print(json.dumps(known | summary), flush=True)


if __name__ == "__main__":
    main()
