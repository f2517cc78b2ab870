"""One decode for each image: the pixels, perhaps reduced, that every measurement shares.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from PIL import Image

from curate import hashes, image, jpeg


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A decoded picture, upright and in sRGB, and what its file says of it."""

    rgb_HWC: np.ndarray
    """uint8, C is 3; at its true size, or reduced by 2, 4 or 8."""
    luma_HW: np.ndarray
    """uint8, ITU-R 601 luma of the same pixels."""
    width_px: int
    """True width."""
    height_px: int
    """True height."""
    reduced_by: int
    """1, 2, 4 or 8; the last row and column are then partly outside of the picture."""
    jpeg_quality: int | None
    """libjpeg quality nearest to the file's tables; None for other formats."""

    @property
    def extent_HW(self) -> tuple[float, float] | None:
        """How much of the reduced arrays is picture, in their own pixels; None where they are not reduced."""
        if self.reduced_by == 1:
            return None
        return self.height_px / self.reduced_by, self.width_px / self.reduced_by

    @cached_property
    def low_frequencies(self) -> np.ndarray:
        """What phash64 is made of, float64 (8, 8)."""
        return hashes.low_frequencies(self.luma_HW, self.extent_HW)


def read_picture(data: bytes, max_megapixels: float, min_side_px: int | None) -> Picture:
    """Return the picture of an image file; raises UnreadableImage as `curate.image.decode` does.

    Plain JPEGs are decoded by libjpeg-turbo directly, reduced while the shorter side stays at `min_side_px`, unless
    that leaves the hash undecided; everything else, and a JPEG that gives cause for a warning, goes through Pillow.
    None decodes all of them through Pillow.
    """
    with image.open_header(data, max_megapixels) as opened:
        quality = jpeg.quality_of(getattr(opened, "quantization", {}))
        if min_side_px is not None and jpeg.is_plain(opened, data):
            try:
                picture = _read_plain(data, opened, min_side_px, quality)
                if picture.reduced_by > 1 and hashes.is_undecided(picture.low_frequencies):
                    return _read_plain(data, opened, None, quality)
                return picture
            except ValueError:
                pass  # whether a damaged file counts as a picture is Pillow's decision
        return from_pixels(image.decode_opened(opened), quality)


def from_pixels(rgb: Image.Image, jpeg_quality: int | None = None) -> Picture:
    """Return a picture of decoded pixels at their true size."""
    return Picture(
        rgb_HWC=np.asarray(rgb),
        luma_HW=np.asarray(rgb.convert("L")),
        width_px=rgb.width,
        height_px=rgb.height,
        reduced_by=1,
        jpeg_quality=jpeg_quality,
    )


def _read_plain(data: bytes, opened: Image.Image, min_side_px: int | None, quality: int | None) -> Picture:
    turn = image.orientation(opened)
    by = jpeg.reduction(opened.width, opened.height, min_side_px)
    if turn != 1 and (opened.width % by or opened.height % by):
        by = 1  # turned, the partial pixels of the last row and column would come first
    pixels_HWC = jpeg.decode_plain(data, opened.width, opened.height, by, is_grey=opened.mode == "L")
    upright_HWC = np.ascontiguousarray(upright(pixels_HWC, turn))
    width_px, height_px = opened.size if turn < 5 else opened.size[::-1]
    rgb_HWC, luma_HW = _colours(upright_HWC, exact=by == 1)
    return Picture(
        rgb_HWC=rgb_HWC,
        luma_HW=luma_HW,
        width_px=width_px,
        height_px=height_px,
        reduced_by=by,
        jpeg_quality=quality,
    )


def _colours(pixels_HWC: np.ndarray, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return RGB and luma; Pillow's rounding of the luma is the one that hashes are defined on."""
    if pixels_HWC.shape[2] == 1:
        return np.repeat(pixels_HWC, 3, axis=2), pixels_HWC[:, :, 0]
    if exact:
        return pixels_HWC, np.asarray(Image.fromarray(pixels_HWC).convert("L"))
    return pixels_HWC, cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY)


def upright(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view turned by an EXIF orientation, 1..8."""
    if orientation >= 5:
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels_HWC[rows, columns]
