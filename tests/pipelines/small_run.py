"""A small curation for tests: an origin server on loopback, a dump, and settings with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import yaml

from tests.conftest import encoded, picture

PROJECT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, tuple[int, dict[str, str], bytes]]:
    """Return what the origin answers for each path: status, headers, body."""
    good = {f"/good/{n}.jpg": (200, {}, encoded(picture(n), quality=92)) for n in range(6)}
    gone = encoded(picture(99))
    return good | {
        "/copy/0.jpg": good["/good/0.jpg"],
        "/near/1.jpg": (200, {}, encoded(picture(1), quality=60)),
        "/small.png": (200, {}, encoded(picture(20, 60, 60), "PNG")),
        "/opted-out.jpg": (200, {"X-Robots-Tag": "noai"}, encoded(picture(21))),
        "/cut.jpg": (200, {}, encoded(picture(22))[:3000]),
        "/page.jpg": (200, {}, b"<html></html>"),
        **{f"/gone/{n}.jpg": (200, {}, gone) for n in range(4)},
    }


@contextmanager
def origin() -> Iterator[str]:
    """Serve the pages; yields the address."""
    answers = pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def write_sources(folder: Path, address: str) -> None:
    """Write the URL list and the dump."""
    rows = [{"url": address + path, "caption": f"A small picture from the web, {path[1:-4]}"} for path in pages()]
    rows += [
        {"url": address + "/nowhere.jpg", "caption": "A picture that is lost"},
        {"url": None, "caption": "No address"},
    ]
    rows.append({"url": address + "/good/5.jpg?again", "caption": None})
    (folder / "dump").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "urls.csv", index=False)
    for n in range(40, 46):
        (folder / "dump" / f"{n}.png").write_bytes(encoded(picture(n, 300, 200 + 20 * (n % 2)), "PNG"))
    lines = [{"file_name": f"{n}.png", "caption": f"An archived picture of shapes, number {n}"} for n in range(40, 45)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"file_name": "lost.png", "caption": "gone for good"}])
    (folder / "dump" / "captions.jsonl").write_text(text)


def settings(folder: Path, **changes: object) -> Path:
    """Write the configuration and return its path."""
    untrained = {"weights": None, "allow_untrained": True}
    config = {
        "root": str(folder / "out"),
        "web": [{"name": "web", "url_list": str(folder / "urls.csv")}],
        "dumps": [{"name": "dump", "folder": str(folder / "dump"), "captions": "captions.jsonl"}],
        "ingest": {"rows_per_shard": 10, "download_threads": 4, "timeout_s": 3, "allowed_networks": ["127.0.0.1/32"]},
        "embed": {
            "clip": {"architecture": str(PROJECT / "pipelines/demo_models/clip_score.json"), **untrained},
            "precision": "fp32",
        },
        "dedup": {"error_image_captions": 3, "semantic_eps": None},
        "score": {"heads": [{"column": "aesthetic", "low": 1.0, "high": 10.0, **untrained}]},
        "selection": {"max_nsfw_prob": None, "max_watermark_prob": None},
        "export": {"resolution_px": 64, "multiple_px": 16, "samples_per_shard": 4, "val_fraction": 0.2},
        "ray": {"num_cpus": 2},
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(*words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the project from its folder, as a user types it."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}")
    return done
