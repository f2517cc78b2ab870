"""Faces: found in photographs, blurred as img2dataset's golden files are."""

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from curate import faces
from tests.conftest import picture


@pytest.mark.shared
def test_the_blur_is_img2datasets(shared):
    folder = shared / "img2dataset_golden/blur_test_files"
    original = np.asarray(Image.open(folder / "original.png").convert("RGB"))
    golden = np.asarray(Image.open(folder / "blurred.png").convert("RGB")).astype(int)
    blurred = faces.blur(original, np.load(folder / "bbox.npy").reshape(-1, 4)).astype(int)
    assert np.abs(blurred - golden).max() <= 1
    assert np.abs(original.astype(int) - golden).max() > 50


def test_the_blur_is_that_of_the_installed_img2dataset(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    blurrer = pytest.importorskip("img2dataset.blurrer").BoundingBoxBlurrer()
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    for boxes in ([[0.1, 0.2, 0.4, 0.7]], [[0.0, 0.0, 0.2, 0.2], [0.5, 0.6, 1.0, 1.0]], [[0.5, 0.5, 0.52, 0.53]]):
        expected = blurrer(pixels, boxes).astype(int)
        assert np.abs(faces.blur(pixels, np.array(boxes)).astype(int) - expected).max() <= 1


def test_without_boxes_nothing_changes():
    pixels = np.asarray(picture(1))
    assert faces.blur(pixels, np.empty((0, 4))) is pixels
    assert len(faces.find(pixels, 0.04)) == 0


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_face_is_found_where_it_is(factor, mirrored):
    image = Image.fromarray(photographs.astronaut())  # her face: x 170..275, y 60..190 of 512
    pixels = np.asarray(image.resize((512 // factor, 512 // factor)))[:, :: -1 if mirrored else 1]
    found = faces.find(pixels, 0.04)
    centre = np.array([(512 - 222 if mirrored else 222) / 512, 125 / 512])
    inside = [(box[:2] < centre).all() and (centre < box[2:]).all() for box in found]
    assert any(inside)
    np.testing.assert_array_equal(found, faces.find(pixels, 0.04))
