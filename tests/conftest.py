"""What several tests share: the real data beside the checkout, and small pictures."""

from __future__ import annotations

import io
import signal
import urllib.request
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from PIL import Image

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data; tests that use it carry the mark `shared`."""
    if not SHARED.is_dir():
        pytest.skip("no real data beside the checkout: ../shared/data is missing")
    return SHARED


def picture(seed: int, width_px: int = 320, height_px: int = 240) -> Image.Image:
    """Return a smooth random picture that no other seed comes near."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on loopback with one empty bucket, which child processes find, too; yields its file system."""
    s3fs.S3FileSystem.clear_instance_cache()  # those of another server
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    said = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (said | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    fs.mkdir("bucket")
    yield fs
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"")  # moto keeps buckets for each process
    server.stop()


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="FOLDER", help="keep the screenshots of the demo's dashboard there")
