"""Faces: what a detector finds on photographs, drawn on sheets to be counted by eye.

    python infra/bench/faces.py [--data ../shared/data] [--detector cascades] [--out faces]

One JSON line, and a PNG for each 20 pictures under --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from curate import faces  # noqa: E402
from curate.config import ExportConfig  # noqa: E402

TILE_PX, COLUMNS, ON_A_SHEET = 400, 5, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--detector", choices=("cascades", "yunet"), default="cascades")
    parser.add_argument("--out", type=Path, default=Path("faces"))
    arguments = parser.parse_args()
    paths = sorted((arguments.data / "photos_coco").rglob("*.jpg"))
    if not paths:
        print(json.dumps({"bench": "faces", "skipped": f"no real data at {arguments.data}"}))
        return
    pictures = [Image.open(path).convert("RGB") for path in paths]
    started = time.process_time()
    found = [faces.find(np.asarray(one), ExportConfig.min_face_share, arguments.detector) for one in pictures]
    rate = len(pictures) / (time.process_time() - started)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tiles = [drawn(number, *pair) for number, pair in enumerate(zip(pictures, found, strict=True))]
    for first in range(0, len(tiles), ON_A_SHEET):
        sheet(tiles[first : first + ON_A_SHEET]).save(arguments.out / f"{first:03d}.png")
    told = {"bench": "faces", "detector": arguments.detector, "pictures": len(pictures), "boxes": sum(map(len, found))}
    print(json.dumps(told | {"pictures_per_cpu_s": round(rate, 1)}))


def drawn(number: int, picture: Image.Image, boxes_N4: np.ndarray) -> Image.Image:
    """Return a small copy with its number and the boxes."""
    small = picture.copy()
    small.thumbnail((TILE_PX, TILE_PX))
    draw = ImageDraw.Draw(small)
    draw.text((3, 3), str(number), fill="yellow")
    for box in boxes_N4:
        draw.rectangle([float(side) for side in box * [*small.size, *small.size]], outline="red", width=2)
    return small


def sheet(tiles: list[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (COLUMNS * TILE_PX, -(-len(tiles) // COLUMNS) * TILE_PX))
    for number, tile in enumerate(tiles):
        whole.paste(tile, (number % COLUMNS * TILE_PX, number // COLUMNS * TILE_PX))
    return whole


if __name__ == "__main__":
    main()
