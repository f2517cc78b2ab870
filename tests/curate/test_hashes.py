import json

import imagehash
import numpy as np
import pytest
from PIL import Image

from curate.hashes import pdq256, phash64
from curate.image import decode
from tests.conftest import picture


def of_imagehash(image: Image.Image) -> int:
    bits = imagehash.phash(image).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


@pytest.mark.parametrize("seed", range(20))
def test_phash64_is_imagehash_s(seed):
    image = picture(seed, 200 + 13 * seed, 150)
    assert phash64(image) == of_imagehash(image)


@pytest.mark.shared
def test_phash64_is_imagehash_s_on_photographs(shared):
    photos = sorted((shared / "photos_coco").rglob("*.jpg"))
    assert len(photos) >= 50
    for path in photos:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        assert phash64(rgb) == of_imagehash(rgb), path.name


PUBLISHED_ON_ONE_PHOTO = ("python/java hasher on aaa-orig.jpg", "bridge-1-original.jpg (=aaa-orig.jpg)")
OTHER_PIXELS = ("LA.png", "I16.png")
"""Hashed there with alpha dropped and 16 bits clipped; here alpha lies over white and 16 bits are scaled."""


@pytest.mark.shared
def test_pdq_agrees_with_the_published_hashes(shared):
    """The published values come from other decoders: a few bits may differ."""
    expected = json.loads((shared / "dup_pdq" / "expected_pdq.json").read_text())
    compared = 0
    for name, said in expected.items():
        if name in OTHER_PIXELS:
            continue
        file = "aaa-orig.jpg" if name in PUBLISHED_ON_ONE_PHOTO else name
        found, quality = pdq256(decode((shared / "dup_pdq" / "images" / file).read_bytes(), 100))
        difference = np.frombuffer(found, np.uint8) ^ np.frombuffer(bytes.fromhex(said), np.uint8)
        assert int(np.bitwise_count(difference).sum()) <= 8, name
        assert quality == 100
        compared += 1
    assert compared == 10
