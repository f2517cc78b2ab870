import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import convolve
from scipy.stats import entropy

from curate.picture import from_pixels, read_picture
from curate.quality import technical_quality
from tests.conftest import encoded, picture


def test_small_pictures_are_measured_as_they_are():
    luma = np.asarray(picture(1, 200, 100).convert("L"))
    found = technical_quality(luma)
    laplacian = convolve(luma.astype(float), [[0, 1, 0], [1, -4, 1], [0, 1, 0]], mode="mirror")
    assert found.sharpness == pytest.approx(laplacian.var(), rel=1e-6)
    assert found.entropy_bits == pytest.approx(entropy(np.bincount(luma.ravel()), base=2), abs=1e-6)
    assert found.luma_mean == pytest.approx(luma.mean())


def test_exposure_counts_black_and_white():
    luma = np.full((10, 10), 128, np.uint8)
    luma[:2], luma[9] = 5, 250
    found = technical_quality(luma)
    assert (found.shadows_clipped, found.highlights_clipped) == (0.2, 0.1)
    luma[:2], luma[9] = 6, 249
    assert technical_quality(luma)[3:] == (0, 0)


def test_large_pictures_are_measured_at_256_px():
    large = picture(2, 1024, 700)
    small = cv2.resize(np.asarray(large.convert("L")), (256, 175), interpolation=cv2.INTER_AREA)
    assert technical_quality(from_pixels(large).luma_HW) == technical_quality(small)


def sharpness_when_blurred(image: Image.Image) -> list[float]:
    blurs = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    blurred = [image.filter(ImageFilter.GaussianBlur(radius)) if radius else image for radius in blurs]
    return [technical_quality(from_pixels(one).luma_HW).sharpness for one in blurred]


def test_higher_is_sharper():
    pixels = np.random.default_rng(3).integers(0, 256, (200, 250, 3), dtype=np.uint8)
    found = sharpness_when_blurred(Image.fromarray(pixels))
    assert all(more > less for more, less in zip(found, found[1:], strict=False)), found


@pytest.mark.shared
def test_higher_is_sharper_on_photographs(shared):
    paths = sorted((shared / "photos_coco").rglob("*.jpg"))[:20]
    assert len(paths) == 20
    for path in paths:
        with Image.open(path) as image:
            found = sharpness_when_blurred(image.convert("RGB"))
        assert all(more > less for more, less in zip(found, found[1:], strict=False)), (path.name, found)


@pytest.mark.shared
def test_a_reduced_decode_measures_nearly_the_same(shared):
    paths = sorted((shared / "photos_hires" / "images").glob("*.jpg"))
    compared = []
    for path in paths[::4]:
        with Image.open(path) as image:
            data = encoded(image.convert("RGB").resize((1440, 960)), quality=92)
        fast, exact = (technical_quality(read_picture(data, 100, side).luma_HW) for side in (448, None))
        compared.append(np.abs(np.array(fast) - exact) / (np.array([8, exact.sharpness, 255, 1, 1])))
    assert len(compared) >= 12
    assert np.max(compared, axis=0)[[0, 2, 3, 4]].max() < 0.01
    assert np.median(compared, axis=0)[1] < 0.2  # a reduced decode keeps more of the finest detail
