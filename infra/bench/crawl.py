"""Ingest of a crawl with every consent check on, beside img2dataset alone, from an origin on loopback. One JSON line.

The origin listens on --hosts loopback addresses, so that limits and consent files of many hosts
take part; it runs in processes of its own and serves JPEG files of --kilobytes of noise behind a
real header. Both sides use Ray on the same number of CPUs, the same threads and the same rows for
each shard, keep the bytes as they came, and start with Ray running and img2dataset imported, in
turns. `darkroom` is the whole of pipelines/ingest.py: lists, requests, raw shards, tables.

    python infra/bench/crawl.py [--rows 20000] [--hosts 40] [--turns 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from aiohttp import web
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from curate.config import CurationConfig, IngestConfig, RayConfig, WebSource  # noqa: E402
from pipelines.ingest import ingest  # noqa: E402
from pipelines.runner import Runner  # noqa: E402

PORT = 8080
THREADS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--hosts", type=int, default=40)
    parser.add_argument("--kilobytes", type=int, default=30)
    parser.add_argument("--rows-per-shard", type=int, default=5_000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(arguments.hosts, [noise(arguments.kilobytes)]):
        config = _config(Path(folder), arguments)
        found: dict[str, list[float]] = {"img2dataset": [], "darkroom": []}
        with Runner(config) as runner, contextlib.redirect_stdout(sys.stderr):
            runner.ray()
            _warm_up(runner, Path(folder), arguments)
            for turn in range(arguments.turns):
                found["img2dataset"].append(_alone(config, Path(folder) / f"alone{turn}", arguments))
                found["darkroom"].append(_ingest(runner, config, Path(folder) / f"root{turn}", arguments.rows))
    print(json.dumps(_line(arguments, found)))


def _line(arguments: argparse.Namespace, found: dict[str, list[float]]) -> dict[str, Any]:
    rates = {name: round(arguments.rows / statistics.median(seconds)) for name, seconds in found.items()}
    return {
        "bench": "crawl",
        "rows": arguments.rows,
        "hosts": arguments.hosts,
        "kilobytes": arguments.kilobytes,
        "rows_per_shard": arguments.rows_per_shard,
        "threads": THREADS,
        "seconds": {name: [round(value, 2) for value in seconds] for name, seconds in found.items()},
        "rows_per_s": rates,
        "share_of_img2dataset": round(rates["darkroom"] / rates["img2dataset"], 2),
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
    }


def _config(folder: Path, arguments: argparse.Namespace) -> CurationConfig:
    urls = [f"http://127.0.1.{n % arguments.hosts + 1}:{PORT}/{n}.jpg" for n in range(arguments.rows)]
    pd.DataFrame({"url": urls, "caption": "a picture"}).to_parquet(folder / "urls.parquet")
    return CurationConfig(
        root=str(folder / "root"),
        web=(WebSource(name="web", url_list=str(folder / "urls.parquet")),),
        ingest=IngestConfig(
            rows_per_shard=arguments.rows_per_shard, download_threads=THREADS, allowed_networks=("127.0.0.0/8",)
        ),
        ray=RayConfig(num_cpus=os.cpu_count()),
    )


def _warm_up(runner: Runner, folder: Path, arguments: argparse.Namespace) -> None:
    """Start every worker process and import what both sides need."""
    few = argparse.Namespace(**{**vars(arguments), "rows": 400, "rows_per_shard": 100})
    config = _config(folder, few)
    _alone(config, folder / "warm", few)
    _ingest(runner, config, folder / "warm-root", 400)
    _config(folder, arguments)


def _alone(config: CurationConfig, output: Path, arguments: argparse.Namespace) -> float:
    """Return the seconds that img2dataset takes on its own."""
    import img2dataset

    started = time.perf_counter()
    img2dataset.download(
        url_list=config.web[0].url_list,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(output),
        output_format="webdataset",
        number_sample_per_shard=arguments.rows_per_shard,
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash="sha256",
        thread_count=THREADS,
        timeout=10,
        retries=1,
        user_agent_token="darkroom",
        distributor="ray",
    )
    seconds = time.perf_counter() - started
    came_in = sum(json.loads(path.read_text())["successes"] for path in output.glob("*_stats.json"))
    assert came_in == arguments.rows, f"img2dataset brought {came_in} of {arguments.rows}"
    return seconds


def _ingest(runner: Runner, config: CurationConfig, root: Path, rows: int) -> float:
    """Return the seconds that ingest takes."""
    other = Runner(CurationConfig(**{**vars(config), "root": str(root)}))
    other._ray = runner.ray()
    started = time.perf_counter()
    counts = ingest(other)[-1].counts
    seconds = time.perf_counter() - started
    assert counts == {"ok": rows}, f"ingest brought {counts}"
    return seconds


@contextlib.contextmanager
def serving(hosts: int, bodies: list[bytes]):
    """Serve the bodies in turn as /<number>.jpg of every host, from a process of its own, which is gone at the end."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_serve, args=(hosts, bodies, ready), daemon=True)
    process.start()
    assert ready.wait(60), "the origin did not start"
    try:
        yield
    finally:
        process.terminate()
        process.join()


def noise(kilobytes: int) -> bytes:
    """Return a small JPEG of noise that is filled up to a size."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    head = buffer.getvalue()
    return head + bytes(max(0, kilobytes * 1000 - len(head)))


def _serve(hosts: int, bodies: list[bytes], ready: Any) -> None:
    async def picture(request: web.Request) -> web.Response:
        name = request.path[1:].removesuffix(".jpg")
        if not name.isdigit():
            return web.Response(status=404)
        return web.Response(body=bodies[int(name) % len(bodies)])

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", picture)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        for number in range(hosts):
            await web.TCPSite(runner, f"127.0.1.{number + 1}", PORT, backlog=1024).start()
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(start())


if __name__ == "__main__":
    main()
