"""Decoding the exact way: header checks first, then true pixels in sRGB through Pillow.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache

import pi_heif
import pylibjxl
from PIL import Image, ImageCms

from curate import sample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL")
"""Formats that are decoded; every other one is a status."""


class UnreadableImage(ValueError):
    """An image that cannot be used; `status` is the class of the reason."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself before anything is decoded."""

    format: str
    width_px: int
    height_px: int


def read_header(data: bytes) -> Header:
    """Return the header of an image file; raises UnreadableImage where there is none."""
    with open_header(data) as image:
        return Header(format=str(image.format), width_px=image.width, height_px=image.height)


def decode(data: bytes, max_megapixels: float) -> Image.Image:
    """Return the picture as RGB, upright, in sRGB, alpha over white, first frame of an animation.

    Raises UnreadableImage: `not_an_image`, `too_large` (by the header, before decoding),
    `truncated` or `decode_error`.
    """
    with open_header(data, max_megapixels) as image:
        return decode_opened(image)


def open_header(data: bytes, max_megapixels: float = float("inf")) -> Image.Image:
    """Return Pillow's image before anything is decoded; raises UnreadableImage."""
    image = _open(data)
    if image.width * image.height > max_megapixels * 1e6:
        raise UnreadableImage(
            sample.TOO_LARGE,
            f"{image.width} x {image.height} px is over the limit of {max_megapixels:g} megapixels",
        )
    return image


def decode_opened(image: Image.Image) -> Image.Image:
    """Return the pixels of an opened image as `decode` does; raises UnreadableImage."""
    try:
        image.load()
        return _to_rgb(_upright(image))
    except DECODER_ERRORS as error:
        status = sample.TRUNCATED if "truncated" in str(error) else sample.DECODE_ERROR
        raise UnreadableImage(status, f"{type(error).__name__}: {error}") from error


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8, of an opened image; 1 is upright, and what anything else means.

    JPEG XL turns its pictures itself, and its EXIF says nothing (ISO/IEC 18181-2).
    """
    if image.format == "JXL":
        return 1
    said = image.getexif().get(0x0112, 1)
    return said if said in _TURNS else 1


DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on hostile files."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation, and what undoes it."""


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture turned by its EXIF orientation, whatever its other tags hold."""
    said = orientation(image)
    if said == 1:
        return image
    turned = image.transpose(_TURNS[said])
    turned.info = image.info  # transparency and colour profile
    return turned


def _open(data: bytes) -> Image.Image:
    if not data:
        raise UnreadableImage(sample.EMPTY, "the file has no bytes")
    _register_formats()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(sample.TOO_LARGE, str(error)) from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError, RuntimeError) as error:
        raise UnreadableImage(sample.NOT_AN_IMAGE, f"{type(error).__name__}: {_without_address(error)}") from error


def _without_address(error: Exception) -> str:
    """Return the message without the address of the buffer, which differs from run to run."""
    return str(error).split(" <_io.BytesIO")[0]


@cache
def _register_formats() -> None:
    """Make Pillow know HEIC and JPEG XL, once."""
    pi_heif.register_heif_opener()
    pylibjxl.register_pillow(override=False)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        return _wide_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _over_white(image)
    return _in_srgb(image)


def _over_white(image: Image.Image) -> Image.Image:
    """Return what shows of a picture with transparency, its colours in sRGB, over white."""
    rgba = image.convert("RGBA")
    opaque = rgba.convert("RGB")
    opaque.info = image.info
    colours = _in_srgb(opaque)
    colours.putalpha(rgba.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), colours).convert("RGB")


def _wide_grey(image: Image.Image) -> Image.Image:
    """Return 16-bit grey (0..65535) as 8 bits; wider values are clipped."""
    return image.convert("F").point(lambda value: value / 257.0).convert("L").convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Return RGB through the embedded ICC profile where there is a usable one."""
    profile = image.info.get("icc_profile")
    coloured = image.convert("RGB") if image.mode == "P" else image  # a palette's profile speaks of its colours
    if profile and coloured.mode in ("RGB", "CMYK", "L"):
        try:
            own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(coloured, own, srgb, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")  # a profile that does not open says nothing of the colours
    return image.convert("RGB")
