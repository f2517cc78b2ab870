"""Buckets, the one resize, and tar shards."""

import io
import math
import re
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from curate.buckets import SDXL_1024, bucket_of, ladder, nearest
from curate.config import ExportConfig
from curate.encoded import encode, fits_as_it_is
from curate.image import open_header
from curate.resize import Decoded, decode_for, scale
from curate.tar import TarShard
from tests.conftest import encoded, picture


def test_the_forty_buckets():
    assert len(SDXL_1024) == len(set(SDXL_1024)) == 40
    assert (1344, 704) not in SDXL_1024
    assert all(h % 64 == 0 and w % 64 == 0 and abs(h * w / 2**20 - 1) < 0.13 for h, w in SDXL_1024)


def test_nearest_is_by_aspect_in_log_space():
    assert nearest(1000, 1000, SDXL_1024) == (1024, 1024)
    assert nearest(100, 400, SDXL_1024) == (512, 2048)
    assert nearest(768, 1344, SDXL_1024) == (768, 1344)
    assert nearest(3000, 2000, SDXL_1024) == (1216, 832)


def test_smaller_ladders_keep_their_multiple():
    assert (64, 64) in ladder(64, 16)
    assert all(h % 16 == 0 and w % 16 == 0 for h, w in ladder(64, 16))
    with pytest.raises(ValueError, match="multiple of 64"):
        ladder(100)


def test_a_small_picture_goes_to_smaller_buckets():
    assert bucket_of(600, 600, 1024, 64, 2.0) == (1024, 1024)
    assert bucket_of(500, 500, 1024, 64, 2.0) == (512, 512)
    assert bucket_of(500, 500, 1024, 64, math.inf) == (1024, 1024)
    assert bucket_of(200, 300, 1024, 64, 1.0) == (128, 192)
    assert bucket_of(40, 40, 1024, 64, 1.0) is None
    assert bucket_of(40, 40, 1024, 64, 1.6) == (64, 64)


def reference(image, size_HW, resample=Image.Resampling.LANCZOS):
    """Return the picture resized by Pillow in floats, channel by channel."""
    channels = [Image.fromarray(np.asarray(image)[..., c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(one.resize(size_HW[::-1], resample)) for one in channels], -1).clip(0, 255)


def psnr_db(one, other):
    return 10 * np.log10(255**2 / max(1e-30, np.mean((one.astype(float) - other.astype(float)) ** 2)))


def decoded(image):
    return Decoded(rgb_HWC=np.asarray(image), height_px=image.height, width_px=image.width)


@pytest.mark.parametrize(("size", "bucket", "crop"), [((400, 200), (64, 64), (0, 32)), ((90, 301), (64, 64), (75, 0))])
def test_scale_covers_the_bucket_and_tells_the_crop(size, bucket, crop):
    image = picture(1, *size)
    scaled = scale(decoded(image), bucket)
    assert scaled.cropped(bucket).shape == (64, 64, 3)
    assert (scaled.crop_top_px, scaled.crop_left_px) == crop
    expected = reference(image, scaled.rgb_HWC.shape[:2])[crop[0] : crop[0] + 64, crop[1] : crop[1] + 64]
    assert np.abs(scaled.cropped(bucket) - expected).max() <= 2


def test_area_averages_and_enlarging_is_lanczos():
    image = picture(2, 300, 200)
    boxes = reference(image, (50, 75), Image.Resampling.BOX)
    assert np.abs(scale(decoded(image), (50, 75), "area").rgb_HWC - boxes).max() <= 1
    larger = scale(decoded(image), (400, 600), "area").rgb_HWC
    assert np.abs(larger - reference(image, (400, 600))).max() <= 2


@pytest.mark.parametrize("size", [(640, 512), (641, 513), (1023, 767)])
@pytest.mark.parametrize("exif", [1, 6])
def test_the_reduced_decode_is_near_the_exact_one(size, exif):
    orientation = Image.Exif()
    orientation[0x0112] = exif
    data = encoded(picture(3, *size), quality=95, exif=orientation)
    bucket = (128, 128)
    with open_header(data) as opened:
        fast, exact = decode_for(opened, data, bucket), decode_for(opened, data, None)
    assert (fast.height_px, fast.width_px) == exact.rgb_HWC.shape[:2] == (exact.height_px, exact.width_px)
    assert fast.reduced_by == (1 if exif == 6 and size[0] % 2 else 4)
    assert psnr_db(scale(fast, bucket).rgb_HWC, scale(exact, bucket).rgb_HWC) > 45


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "png"])
def test_files_carry_no_metadata_and_fit_as_they_are(image_format):
    config = ExportConfig(image_format=image_format)
    pixels = np.asarray(picture(1, 128, 64))
    data = encode(pixels, config)
    assert data == encode(pixels, config)
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif() and not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
        assert image.format == image_format.upper() and image.size == (128, 64)
        assert psnr_db(np.asarray(image.convert("RGB")), pixels) > (38 if image_format != "png" else 200)
        assert fits_as_it_is(data, image, (64, 128), image_format)
        assert not fits_as_it_is(data, image, (128, 64), image_format)
        assert not fits_as_it_is(data + b"more", image, (64, 128), image_format)
        other = "png" if image_format != "png" else "jpeg"
        assert not fits_as_it_is(data, image, (64, 128), other)


def metadata(image_format):
    gps = Image.Exif()
    gps[0x010E] = "a place"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "somebody")
    said = [{"exif": gps}, {"icc_profile": profile}]
    return (
        said
        + {"JPEG": [{"comment": b"somebody"}], "PNG": [{"pnginfo": text}], "WEBP": [{"xmp": b"<x/>"}]}[image_format]
    )


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_what_carries_metadata_or_is_not_rgb_does_not_fit(image_format):
    for said in metadata(image_format):
        data = encoded(picture(1, 64, 64), image_format, **said)
        with open_header(data) as image:
            assert not fits_as_it_is(data, image, (64, 64), image_format.lower()), said
    other = picture(1, 64, 64).convert("CMYK" if image_format == "JPEG" else "RGBA")
    if image_format != "JPEG":
        other.putalpha(77)
    data = encoded(other, image_format)
    with open_header(data) as image:
        assert not fits_as_it_is(data, image, (64, 64), image_format.lower())


def test_a_progressive_jpeg_with_restarts_fits():
    data = encoded(picture(1, 64, 64), progressive=True, restart_marker_rows=1)
    with open_header(data) as image:
        assert fits_as_it_is(data, image, (64, 64), "jpeg")
        assert not fits_as_it_is(data[:-2], image, (64, 64), "jpeg")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_enlargement": 0.5}, "export.max_enlargement = 0.5: must be 1 or more"),
        ({"jpeg_quality": 101}, "export.jpeg_quality = 101: must be 1..100"),
        ({"samples_per_shard": 0}, "export.samples_per_shard = 0: must be at least 1"),
        ({"max_shard_mb": 0}, "export.max_shard_mb = 0: must be above 0"),
        ({"min_face_share": 0}, "export.min_face_share = 0: must be above 0, up to 1"),
        ({"resolution_px": 1000}, "export.resolution_px = 1000: must be a multiple of 64"),
        ({"val_fraction": 1.0}, "export.val_fraction = 1.0: must be 0 or more and below 1"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_line(settings, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        ExportConfig(**settings)


def test_offsets_lead_to_the_members_and_tarfile_reads_them():
    buffer = io.BytesIO()
    shard = TarShard(buffer)
    members = {"a.jpg": b"x" * 5, "b.txt": b"", "c.bin": bytes(range(256)) * 6}
    offsets = {name: shard.add(name, data) for name, data in members.items()}
    shard.close()
    written = buffer.getvalue()
    for name, data in members.items():
        assert written[offsets[name] : offsets[name] + len(data)] == data
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        assert {m.name: archive.extractfile(m).read() for m in archive} == members
        assert {m.mtime for m in archive} == {0}
