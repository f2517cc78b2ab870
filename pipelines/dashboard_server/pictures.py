"""Pictures of the index: read by offset from the shards, reduced, and encoded anew without anything but pixels."""

from __future__ import annotations

import io
from collections import OrderedDict
from threading import BoundedSemaphore, Lock

from PIL import Image

from curate import sample
from curate.image import UnreadableImage
from curate.picture import read_picture
from pipelines.dashboard_server.filters import SHOWN
from pipelines.dashboard_server.index import Index

SIDES_PX = (96, 192, 1024)
"""Longest sides that can be asked for."""
CACHE_BYTES = 64 << 20
DECODERS = 4


class NotShown(LookupError):
    """There is no such picture, or it is not shown; which of them is not said."""


class Pictures:
    """Thumbnails, the last ones kept in memory."""

    def __init__(self, index: Index, max_megapixels: float) -> None:
        self._index = index
        self._max_megapixels = max_megapixels
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self._decoding = BoundedSemaphore(DECODERS)

    def webp(self, number: int, side_px: int) -> bytes:
        """Return a sample's picture as WebP; raises NotShown, or UnreadableImage where it does not decode."""
        key = (self._index.version, number, side_px)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._decoding:
            made = self._make(number, side_px)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made

    def _make(self, number: int, side_px: int) -> bytes:
        found = self._index.rows(
            'SELECT shard, "offset", num_bytes, early_reason FROM board'
            f" WHERE number = ? AND {SHOWN} AND shard IS NOT NULL",
            [number],
        )
        if not found:
            raise NotShown(str(number))
        *place, reason = found[0]
        if reason == sample.DECODER_CRASHED:
            raise UnreadableImage(reason, "it would end this process, too")
        return encode(self._index.root.read(*place), side_px, self._max_megapixels)


def encode(data: bytes, side_px: int, max_megapixels: float) -> bytes:
    """Return the picture within side_px x side_px as WebP, of its pixels alone; raises UnreadableImage."""
    found = read_picture(data, max_megapixels, min_side_px=side_px)
    picture = Image.fromarray(found.rgb_HWC)
    scale = min(1.0, side_px / max(found.width_px, found.height_px))
    size = max(1, round(found.width_px * scale)), max(1, round(found.height_px * scale))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0).save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


__all__ = ["NotShown", "Pictures", "UnreadableImage", "encode"]
