"""One duplicate cluster as a strip of thumbnails, the survivor in a coloured frame."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from curate.ranking import TERMS

MAX_TILES = 12
TILE_PX = 160
FRAME_PX = 4
LINE_PX = 14
LINES = 4
CELL_PX = TILE_PX + 2 * FRAME_PX
SURVIVOR_COLOUR, BACKGROUND, GREY, INK = (0, 160, 70), (255, 255, 255), (200, 200, 200), (20, 20, 20)


LOST = {term: f"lost by {term}" for term in TERMS} | {"earlier": "came after it"}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One member of a cluster."""

    uid: str
    is_survivor: bool
    picture: Image.Image | None
    """Thumbnail; None is drawn as a grey tile with the uid."""
    told: tuple[str, ...]
    """Lines under the picture; what is over LINES is not shown."""


def strip(cluster_id: str, num_members: int, tiles: Sequence[Tile]) -> Image.Image:
    """Return the first MAX_TILES tiles side by side, under a line that says how many there are and are shown."""
    shown = tiles[:MAX_TILES]
    header = f"{cluster_id}: {num_members:,} members, {len(shown)} shown"
    width_px = max(len(shown) * CELL_PX, round(_font().getlength(header)) + 2 * FRAME_PX)
    canvas = Image.new("RGB", (width_px, CELL_PX + (1 + LINES) * LINE_PX), BACKGROUND)
    ImageDraw.Draw(canvas).text((FRAME_PX, 0), header, INK, _font())
    for number, tile in enumerate(shown):
        canvas.paste(_cell(tile), (number * CELL_PX, LINE_PX))
    return canvas


def thumbnail(picture: Image.Image) -> Image.Image:
    """Return the whole picture within TILE_PX x TILE_PX; smaller ones stay as they are."""
    scale = min(1.0, TILE_PX / max(picture.size))
    width_px, height_px = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width_px, height_px), Image.Resampling.LANCZOS, reducing_gap=2.0)


def lines_under(kind: str | None, distance: float | None, won_by: str | None) -> tuple[str, ...]:
    """Return the lines under a member: its kind, distance (bits, or 1 - cosine) and what the survivor won by."""
    unit = " bits" if kind == "perceptual" else ""
    lines = (kind, None if distance is None else f"distance {distance:.3g}{unit}", won_by and LOST[won_by])
    return tuple(line for line in lines if line)


def _cell(tile: Tile) -> Image.Image:
    cell = Image.new("RGB", (CELL_PX, CELL_PX + LINES * LINE_PX), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    if tile.is_survivor:
        draw.rectangle((0, 0, CELL_PX - 1, CELL_PX - 1), outline=SURVIVOR_COLOUR, width=FRAME_PX)
    if tile.picture is None:
        draw.rectangle((FRAME_PX, FRAME_PX, FRAME_PX + TILE_PX - 1, FRAME_PX + TILE_PX - 1), fill=GREY)
        _lines(draw, textwrap.wrap(tile.uid, 16), 2 * FRAME_PX)
    else:
        left, top = ((CELL_PX - side) // 2 for side in tile.picture.size)
        cell.paste(tile.picture, (left, top))
    _lines(draw, tile.told[:LINES], CELL_PX)
    return cell


def _lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], top_px: int) -> None:
    for number, line in enumerate(lines):
        draw.text((FRAME_PX, top_px + number * LINE_PX), line, INK, _font())


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()
