"""What several tests share: the real data beside the checkout, and small pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
