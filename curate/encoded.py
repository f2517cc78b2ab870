"""Pictures as files without metadata: JPEG, WebP, PNG, and the originals that already are such files."""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
from PIL import Image

from curate.config import ExportConfig

ENDINGS = {"jpeg": "jpg", "webp": "webp", "png": "png"}
"""Member names of each format."""


def encode(rgb_HWC: np.ndarray, config: ExportConfig) -> bytes:
    """Return the pixels, uint8 (H, W, 3), as a file without metadata; the same pixels give the same bytes."""
    if config.image_format == "jpeg":
        return simplejpeg.encode_jpeg(rgb_HWC, config.jpeg_quality, "RGB", config.jpeg_chroma)
    buffer = io.BytesIO()
    if config.image_format == "webp":
        Image.fromarray(rgb_HWC).save(buffer, "WEBP", quality=config.webp_quality, lossless=config.webp_quality == 100)
    else:
        Image.fromarray(rgb_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def fits_as_it_is(data: bytes, opened: Image.Image, bucket: tuple[int, int], image_format: str) -> bool:
    """Return whether a file is of this format and size, RGB, one frame, with nothing but the picture in it."""
    if opened.format != image_format.upper() or opened.size != bucket[::-1] or opened.mode != "RGB":
        return False
    return {"jpeg": _bare_jpeg, "png": _bare_png, "webp": _bare_webp}[image_format](data)


_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)
"""A marker inside entropy-coded data that is no restart marker."""
_JFIF, _EOI, _SOS, _COMMENT = 0xE0, 0xD9, 0xDA, 0xFE


def _bare_jpeg(data: bytes) -> bool:
    """Return whether no segment but JFIF's carries anything beside the picture, and nothing follows the end."""
    at = 2
    while (found := _MARKER.match(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            return at == len(data)
        length = int.from_bytes(data[at : at + 2], "big")
        thumbnail = marker == _JFIF and (data[at + 2 : at + 7] != b"JFIF\0" or length != 16)
        if 0xE1 <= marker <= 0xEF or marker == _COMMENT or thumbnail or length < 2:
            return False
        at += length
        if marker == _SOS:
            following = _MARKER.search(data, at)
            at = following.start() if following else len(data)
    return False


def _bare_png(data: bytes) -> bool:
    """Return whether there are no chunks but the picture's."""
    at, seen = 8, b""
    while at + 12 <= len(data) and seen != b"IEND":
        seen, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        if seen not in (b"IHDR", b"IDAT", b"IEND"):
            return False
        at += 12 + length
    return seen == b"IEND" and at == len(data)


def _bare_webp(data: bytes) -> bool:
    """Return whether the file is a single chunk with a picture: VP8X, which announces metadata, is another one."""
    length = int.from_bytes(data[16:20], "little")
    return data[12:16] in (b"VP8 ", b"VP8L") and 20 + length + length % 2 == len(data)
