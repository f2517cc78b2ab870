import io
import struct

import numpy as np
import pylibjxl
import pytest
from PIL import Image

from curate import sample
from curate.image import UnreadableImage, decode, read_header
from tests.conftest import encoded, picture


def status_of(data: bytes, max_megapixels: float = 100) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data, max_megapixels)
    return caught.value.status


def test_a_plain_picture_keeps_its_pixels():
    image = picture(1)
    assert np.array_equal(np.asarray(decode(encoded(image, "PNG"), 100)), np.asarray(image))


def test_header_is_read_without_decoding():
    header = read_header(encoded(picture(1, 64, 48), "WEBP"))
    assert (header.format, header.width_px, header.height_px) == ("WEBP", 64, 48)


def test_exif_orientation_turns_the_picture():
    image = picture(2, 400, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(image, "JPEG", exif=exif, quality=100), 100)
    assert turned.size == (200, 400)
    expected = np.asarray(image.rotate(-90, expand=True)).astype(int)
    assert np.abs(np.asarray(turned).astype(int) - expected).mean() < 3


def test_alpha_lies_over_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(clear, "PNG"), 100).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_scale():
    deep = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    assert decode(encoded(deep, "PNG"), 100).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "GIF"), ("1", "PNG"), ("CMYK", "TIFF")]
)
def test_every_mode_becomes_rgb_with_its_colours(mode, kind):
    image = picture(3).convert(mode)
    found = decode(encoded(image, kind, **({"quality": 100} if kind == "JPEG" else {})), 100)
    assert found.mode == "RGB"
    off = np.abs(np.asarray(found).astype(int) - np.asarray(image.convert("RGB")))
    assert off.mean() < (2 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_of_an_animation_the_first_frame_counts(kind):
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ((230, 0, 0), (0, 0, 230)))
    data = encoded(red, kind, save_all=True, append_images=[blue, red], duration=100)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    off = np.abs(np.asarray(decode(data, 100)).astype(int) - np.asarray(red))
    assert off.max() <= 6


def test_what_cannot_be_read_has_a_status():
    whole = encoded(picture(4))
    assert status_of(b"") == sample.EMPTY
    assert status_of(b"<html>") == sample.NOT_AN_IMAGE
    assert status_of(whole[: len(whole) // 2]) == sample.TRUNCATED
    assert status_of(encoded(picture(4), "PNG")[:100]) in (sample.TRUNCATED, sample.DECODE_ERROR)
    assert status_of(encoded(picture(4), "PPM")) == sample.NOT_AN_IMAGE


def test_a_bomb_is_refused_by_its_header():
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert status_of(bomb.getvalue(), max_megapixels=120) == sample.TOO_LARGE


def test_error_texts_do_not_change_from_run_to_run():
    texts = set()
    for _ in range(2):
        with pytest.raises(UnreadableImage) as caught:
            read_header(b"not an image")
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert "0x" not in texts.pop()


def test_a_broken_exif_tag_does_not_stop_the_turn():
    """ImageWidth as a negative number cannot be written back by Pillow; the orientation beside it still counts."""
    entries = struct.pack("<HHIi", 0x0100, 9, 1, -1) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    assert decode(encoded(picture(1, 60, 30), "JPEG", exif=exif), 100).size == (30, 60)


def jxl(image: Image.Image, **options: object) -> bytes:
    pylibjxl.register_pillow(override=False)
    return encoded(image, "JXL", **options)


def test_jpeg_xl_is_read():
    image, exif = picture(5, 400, 200), Image.Exif()
    assert np.array_equal(np.asarray(decode(jxl(image, lossless=True), 100)), np.asarray(image))
    exif[0x0112] = 6  # libjxl has turned what is to be turned
    assert decode(jxl(image, exif=exif.tobytes()), 100).size == (400, 200)
    assert decode(jxl(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), lossless=True), 100).getpixel((0, 0)) == (255,) * 3
    assert (
        decode(jxl(image.convert("L"), lossless=True), 100).getpixel((9, 9))
        == (image.convert("L").getpixel((9, 9)),) * 3
    )


def test_a_broken_jpeg_xl_has_a_status():
    whole = jxl(picture(5))
    assert status_of(whole, max_megapixels=0.01) == sample.TOO_LARGE
    assert status_of(whole[:3]) == sample.NOT_AN_IMAGE
    assert status_of(whole[: len(whole) // 2]) == sample.DECODE_ERROR
