import json

import imagehash
import numpy as np
import pdqhash
import pytest
from PIL import Image

from curate.hashes import (
    TURNS,
    _luma_32,
    pdq,
    pdq256,
    pdq_and_turned,
    phash64,
    phash64_and_turned,
    phashes,
    phashes_of,
    turned,
)
from curate.image import UnreadableImage, decode
from curate.picture import read_picture
from tests.conftest import encoded, picture


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


def bits_beside_imagehash(image: Image.Image) -> list[int]:
    """Return for each turn how many bits the hash from one DCT is away from imagehash's of the turned picture."""
    _, found = phash64_and_turned(image)
    return [(own ^ of_imagehash(image.transpose(turn))).bit_count() for own, turn in zip(found, TURNS, strict=True)]


def test_the_turned_hashes_are_imagehash_s_of_the_turned_picture():
    """Resizing rounds differently in another direction: a bit may go over the median, and another one under it."""
    away = np.array([bits_beside_imagehash(picture(seed, 200 + 13 * seed, 150)) for seed in range(20)])
    assert away.shape == (20, 7)
    assert away.max() <= 2
    assert (away == 0).mean() >= 0.95


@pytest.mark.shared
def test_the_turned_hashes_are_imagehash_s_on_photographs(shared):
    photos = sorted((shared / "photos_coco").rglob("*.jpg"))
    assert len(photos) >= 50
    away = np.array([bits_beside_imagehash(Image.open(path).convert("RGB")) for path in photos])
    assert away.max() <= 2
    assert (away == 0).mean() >= 0.95


def test_the_one_dct_gives_phash64_too():
    image = picture(1)
    own, others = phash64_and_turned(image)
    assert own == phash64(image)
    assert len({own, *others}) == 8


INVERSE = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
"""Every other turn undoes itself."""


@pytest.mark.parametrize("turn", TURNS)
def test_turning_back_gives_the_original(turn):
    low = np.random.default_rng(0).normal(size=(8, 8))
    there = turned(low)[TURNS.index(turn)]
    back = turned(there)[TURNS.index(INVERSE.get(turn, turn))]
    assert not np.array_equal(there, low)
    assert np.array_equal(back, low)


def test_two_turns_make_a_third():
    low = np.random.default_rng(1).normal(size=(8, 8))
    once = dict(zip(TURNS, turned(low), strict=True))
    flipped = dict(zip(TURNS, turned(once[Image.Transpose.FLIP_LEFT_RIGHT]), strict=True))
    assert np.array_equal(flipped[Image.Transpose.FLIP_TOP_BOTTOM], once[Image.Transpose.ROTATE_180])
    quarter = dict(zip(TURNS, turned(once[Image.Transpose.ROTATE_90]), strict=True))
    assert np.array_equal(quarter[Image.Transpose.ROTATE_90], once[Image.Transpose.ROTATE_180])
    assert np.array_equal(quarter[Image.Transpose.TRANSPOSE], once[Image.Transpose.FLIP_LEFT_RIGHT])


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


@pytest.mark.parametrize("extent_HW", [(300.0, 500.0), (299.25, 499.5), (299.5, 500.0)])
def test_the_products_resize_as_pillow_does_but_for_its_rounding(extent_HW):
    noise = np.random.default_rng(1).integers(0, 256, (300, 500), dtype=np.uint8)
    box = (0, 0, extent_HW[1], extent_HW[0])
    expected = np.asarray(Image.fromarray(noise).resize((32, 32), Image.Resampling.LANCZOS, box=box))
    assert np.abs(_luma_32(noise, extent_HW) - expected).max() < 1.1


def of_pdqhash(image: Image.Image) -> tuple[np.ndarray, int]:
    bits, quality = pdqhash.compute(np.asarray(image))
    return np.packbits(bits.astype(bool)), quality


def bits_between(one: bytes, other: np.ndarray) -> int:
    return int(np.bitwise_count(np.frombuffer(one, np.uint8) ^ other).sum())


@pytest.mark.parametrize("size", [(64, 64), (63, 65), (128, 129), (700, 300), (1, 900), (4, 50), (5, 5), (2000, 130)])
def test_pdq_is_the_reference_at_every_size(size):
    """The reference sums in float32 in another order: a coefficient at the median may change sides."""
    for seed in range(4):
        image = picture(seed, *size).convert("L").convert("RGB")  # so that no luma is rounded
        found, quality = pdq256(image)
        expected, its_quality = of_pdqhash(image)
        assert bits_between(found, expected) <= 2
        assert abs(quality - its_quality) <= 1


def scaled_to_a_crawl_s_size(path) -> bytes:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    scale = (1.4e6 / (rgb.width * rgb.height)) ** 0.5
    return encoded(rgb.resize((round(rgb.width * scale), round(rgb.height * scale))), quality=92)


@pytest.mark.shared
def test_hashes_of_a_reduced_decode_are_those_of_the_full_one(shared):
    """A drawing that is nearly its own mirror image is not reduced: half of its coefficients are 0."""
    away, of_pdq, reduced = [], [], 0
    for path in sorted((shared / "photos_hires" / "images").glob("*.jpg")):
        data = scaled_to_a_crawl_s_size(path)
        found, whole = read_picture(data, 100, 448), decode(data, 100)
        reduced += found.reduced_by > 1
        own, _ = phashes_of(found.low_frequencies)
        away.append((own ^ of_imagehash(whole)).bit_count())
        of_pdq.append(bits_between(pdq(found.luma_HW)[0], of_pdqhash(whole)[0]))
    assert reduced >= 40 and len(away) >= 50
    assert (np.array(away) <= 2).mean() >= 0.99
    assert np.mean(of_pdq) <= 5 and np.max(of_pdq) <= 16


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["dup_history", "dup_caltech", "dup_imagededup", "dup_pdq"])
def test_near_pairs_of_the_short_way_are_no_worse_than_imagehash_s(shared, folder):
    own, its, groups = [], [], []
    for line in (shared / folder / "groups.jsonl").read_text().splitlines():
        said = json.loads(line)
        data = (shared / folder / said["file"]).read_bytes()
        try:
            found, upright = read_picture(data, 120, 448), decode(data, 120)
        except UnreadableImage:
            continue
        own.append(phashes(found.luma_HW, found.extent_HW)[0])
        its.append(of_imagehash(upright))
        groups.append(said["group"])
    same = np.array([[one == other for one in groups] for other in groups])[np.triu_indices(len(groups), 1)]
    for radius in (2, 4, 6):
        ours, theirs = (near_pairs_of(hashes, radius) for hashes in (own, its))
        assert (ours & same).sum() >= (theirs & same).sum()
        assert (ours & ~same).sum() <= (theirs & ~same).sum()
        assert (theirs & same).any()


def near_pairs_of(hashes: list[int], radius: int) -> np.ndarray:
    words = np.array(hashes, np.uint64)
    return (np.bitwise_count(words[:, None] ^ words) <= radius)[np.triu_indices(len(words), 1)]


OF_DIHEDRAL = (5, 4, 2, 6, 7, 1, 3)
"""Where pdqhash.compute_dihedral has each of TURNS; it counts rotations from the original on."""


@pytest.mark.shared
def test_turned_pdq_is_the_reference_s_dihedral_and_near_the_turned_picture_s_own(shared):
    from_reference, from_turned = [], []
    for path in sorted((shared / "photos_coco").rglob("*.jpg"))[:20]:
        with Image.open(path) as image:
            grey = image.convert("L")
        (_, *found), _ = pdq_and_turned(np.asarray(grey))
        dihedral, _ = pdqhash.compute_dihedral(np.asarray(grey.convert("RGB")))
        from_reference.append(
            [bits_between(a, np.packbits(dihedral[b].astype(bool))) for a, b in zip(found, OF_DIHEDRAL, strict=True)]
        )
        own = [of_pdqhash(grey.transpose(turn).convert("RGB"))[0] for turn in TURNS]
        from_turned.append([bits_between(a, b) for a, b in zip(found, own, strict=True)])
    assert np.max(from_reference) <= 2
    assert np.max(from_turned) <= 31 and np.median(from_turned) <= 10
