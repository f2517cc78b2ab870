"""Buckets, the one resize, and tar shards."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from curate.buckets import SDXL_1024, ladder, nearest
from curate.resize import enlargement, fit, jpeg_bytes
from curate.tar import TarShard
from tests.conftest import picture


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


def test_fit_covers_the_bucket_and_tells_the_crop():
    fitted = fit(picture(1, 400, 200), (64, 64))
    assert fitted.image.size == (64, 64)
    assert (fitted.crop_top_px, fitted.crop_left_px) == (0, 32)
    expected = picture(1, 400, 200).resize((128, 64), Image.Resampling.LANCZOS).crop((32, 0, 96, 64))
    assert np.abs(np.asarray(fitted.image, int) - np.asarray(expected, int)).max() <= 2


def test_enlargement_is_the_larger_factor():
    assert enlargement(100, 200, (200, 200)) == 2.0
    assert enlargement(400, 400, (200, 100)) == 0.5


def test_jpeg_carries_no_metadata():
    with Image.open(io.BytesIO(jpeg_bytes(picture(1), 95))) as image:
        assert not image.getexif()


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
