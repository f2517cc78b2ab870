import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from curate import jpeg
from curate.config import EmbedConfig
from curate.image import UnreadableImage, decode
from curate.picture import read_picture
from tests.conftest import encoded, picture


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def pillow_is_forbidden(monkeypatch):
    """Fail where a file is not decoded the short way."""

    def refuse(_):
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr("curate.image.decode_opened", refuse)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_short_way_has_pillow_s_pixels(mode, options, orientation, monkeypatch):
    data = encoded(picture(1, 301, 203).convert(mode), "JPEG", exif=exif_of(orientation), **options)
    expected = decode(data, 100)
    monkeypatch.setattr("curate.image.decode_opened", lambda _: pytest.fail("decoded by Pillow"))
    found = read_picture(data, 100, 448)
    assert np.array_equal(found.rgb_HWC, np.asarray(expected))
    assert np.array_equal(found.luma_HW, np.asarray(expected.convert("L")))
    assert (found.width_px, found.height_px) == expected.size


@pytest.mark.parametrize(
    ("width_px", "height_px", "by"), [(894, 2000, 1), (895, 2000, 2), (1788, 1801, 2), (1789, 1801, 4), (3600, 3585, 8)]
)
def test_reduced_as_far_as_the_shorter_side_allows(width_px, height_px, by, pillow_is_forbidden):
    found = read_picture(encoded(picture(2, width_px, height_px)), 100, 448)
    assert found.reduced_by == by
    assert found.luma_HW.shape == (-(-height_px // by), -(-width_px // by))
    assert found.rgb_HWC.shape == (*found.luma_HW.shape, 3)
    assert (found.width_px, found.height_px) == (width_px, height_px)
    assert found.extent_HW == (None if by == 1 else (height_px / by, width_px / by))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_reduced_where_its_sides_divide(orientation):
    whole = picture(3, 1000, 904)
    found = read_picture(encoded(whole, exif=exif_of(orientation), quality=95), 100, 448)
    assert found.reduced_by == 2
    upright = decode(encoded(whole, "PNG", exif=exif_of(orientation)), 100).reduce(2)
    assert np.abs(found.rgb_HWC.astype(int) - np.asarray(upright)).mean() < 2
    odd = read_picture(encoded(picture(3, 1001, 904), exif=exif_of(orientation)), 100, 448)
    assert odd.reduced_by == (2 if orientation == 1 else 1)


def test_exact_never_takes_the_short_way(monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("took the short way"))
    assert read_picture(encoded(picture(1, 1000, 1000)), 100, None).reduced_by == 1


def adobe_rgb_jpeg() -> bytes:
    """Return a JPEG without colour transform: its channels are R, G and B themselves."""
    return encoded(picture(4), "JPEG", keep_rgb=True)


@pytest.mark.parametrize(
    "data",
    [encoded(picture(4).convert("CMYK")), adobe_rgb_jpeg(), encoded(picture(4), "PNG"), encoded(picture(4), "WEBP")],
    ids=["CMYK", "RGB", "PNG", "WebP"],
)
def test_everything_else_goes_through_pillow(data, monkeypatch):
    expected = np.asarray(decode(data, 100))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("took the short way"))
    assert np.array_equal(read_picture(data, 100, 448).rgb_HWC, expected)


def profiles() -> tuple[bytes, bytes]:
    """Return sRGB, and a profile whose red and blue primaries have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert srgb.count(b"rXYZ") == srgb.count(b"bXYZ") == 1
    return srgb, srgb.replace(b"rXYZ", b"temp").replace(b"bXYZ", b"rXYZ").replace(b"temp", b"bXYZ")


def test_a_profile_that_is_srgb_takes_the_short_way_and_no_other(pillow_is_forbidden):
    srgb, swapped = profiles()
    assert jpeg.is_srgb(srgb)
    assert not jpeg.is_srgb(swapped)
    read_picture(encoded(picture(5), icc_profile=srgb), 100, 448)
    with pytest.raises(AssertionError, match="decoded by Pillow"):
        read_picture(encoded(picture(5), icc_profile=swapped), 100, 448)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG with alpha"])
def test_colours_go_through_the_profile(kind):
    red = Image.new("RGBA" if kind == "PNG with alpha" else "RGB", (16, 16), (200, 20, 20))
    data = encoded(red, kind.split()[0], icc_profile=profiles()[1])
    r, _, b = np.asarray(read_picture(data, 100, 448).rgb_HWC)[8, 8].tolist()
    assert b > 180 and r < 80


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_left_to_pillow_to_decide(seed):
    """Bytes in the middle are overwritten: the same status or the same pixels as without the short way."""
    data = bytearray(encoded(picture(seed, 400, 300)))
    at = np.random.default_rng(seed).integers(len(data) // 2, len(data) - 40)
    data[at : at + 30] = bytes(30)
    outcomes = []
    for min_side_px in (None, 256):
        try:
            outcomes.append(read_picture(bytes(data), 100, min_side_px).rgb_HWC.tobytes())
        except UnreadableImage as error:
            outcomes.append(error.status)
    assert outcomes[0] == outcomes[1]


def test_a_bomb_is_refused_before_either_decoder(monkeypatch, pillow_is_forbidden):
    data = encoded(picture(6, 400, 300))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match="400 x 300 px is over the limit of 0.1 megapixels") as caught:
        read_picture(data, 0.1, 448)
    assert caught.value.status == "too_large"


@pytest.mark.parametrize("limit", [0, 179, float("nan")])
def test_a_limit_that_would_not_hold_is_refused(limit):
    with pytest.raises(ValueError, match=f"embed.max_megapixels = {limit}: must be above 0 and at most 178"):
        EmbedConfig(max_megapixels=limit)


def test_the_largest_limit_is_one_that_pillow_opens():
    assert 178e6 <= 2 * Image.MAX_IMAGE_PIXELS < 179e6


@pytest.mark.parametrize("quality", range(1, 101))
def test_the_jpeg_quality_is_the_one_that_libjpeg_was_told(quality):
    small = Image.new("RGB", (8, 8))
    assert read_picture(encoded(small, "JPEG", quality=quality), 100, 448).jpeg_quality == quality


def test_jpeg_quality_of_other_tables_and_formats():
    assert read_picture(encoded(picture(7), "PNG"), 100, 448).jpeg_quality is None
    flat = {0: [2] * 64, 1: [2] * 64}
    buffer = io.BytesIO()
    picture(7).save(buffer, "JPEG", qtables=flat)
    assert 95 <= read_picture(buffer.getvalue(), 100, 448).jpeg_quality <= 99
