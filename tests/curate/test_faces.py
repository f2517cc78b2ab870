"""Faces: found in photographs, blurred as img2dataset's golden files are."""

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from curate import faces
from curate.config import CurationConfig, ExportConfig
from curate.weights import MissingWeights, WrongChecksum, default_weights_dir
from pipelines.preflight import check_faces
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
    assert len(faces.find(pixels, 0.04, "cascades")) == 0


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_face_is_found_where_it_is(factor, mirrored):
    image = Image.fromarray(photographs.astronaut())  # her face: x 170..275, y 60..190 of 512
    pixels = np.asarray(image.resize((512 // factor, 512 // factor)))[:, :: -1 if mirrored else 1]
    found = faces.find(pixels, 0.04, "cascades")
    centre = np.array([(512 - 222 if mirrored else 222) / 512, 125 / 512])
    inside = [(box[:2] < centre).all() and (centre < box[2:]).all() for box in found]
    assert any(inside)
    np.testing.assert_array_equal(found, faces.find(pixels, 0.04, "cascades"))


class Network:
    """Stands for OpenCV's network: the bluest pixel is the middle of a face of 20 x 30."""

    size: tuple[int, int] = (0, 0)

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802 - OpenCV's name
        self.size = size

    def detect(self, bgr_HWC: np.ndarray) -> tuple[int, np.ndarray | None]:
        assert self.size == bgr_HWC.shape[1::-1]
        blue_HW = bgr_HWC[..., 0]
        if not blue_HW.any():
            return 1, None
        y, x = np.unravel_index(blue_HW.argmax(), blue_HW.shape)
        return 1, np.array([[x - 10, y - 15, 20, 30, *[0] * 10, 0.9]], np.float32)


def test_boxes_of_the_network_are_shares_of_the_picture(monkeypatch):
    monkeypatch.setattr(faces, "_yunet", Network)
    rgb_HWC = np.zeros((100, 400, 3), np.uint8)
    assert faces.find(rgb_HWC, 0.04, "yunet").shape == (0, 4)
    rgb_HWC[10, 300, 0] = 255  # red
    assert faces.find(rgb_HWC, 0.04, "yunet").shape == (0, 4)
    rgb_HWC[10, 300, 2] = 255
    np.testing.assert_allclose(faces.find(rgb_HWC, 0.04, "yunet"), [[290 / 400, 0, 310 / 400, 25 / 100]])
    np.testing.assert_allclose(faces.find(rgb_HWC, 0.30, "yunet"), [[290 / 400, 0, 310 / 400, 25 / 100]])
    assert faces.find(rgb_HWC, 0.31, "yunet").shape == (0, 4)
    large_HWC = np.zeros((1024, 4096, 3), np.uint8)
    large_HWC[400:404, 2000:2004, 2] = 255
    np.testing.assert_allclose(faces.find(large_HWC, 0.04, "yunet"), [[490 / 1024, 85 / 256, 510 / 1024, 115 / 256]])


def test_the_network_is_the_registered_file_or_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_WEIGHTS", str(tmp_path))
    faces._yunet.cache_clear()
    with pytest.raises(MissingWeights, match="python -m curate.weights fetch face_yunet"):
        faces.find(np.asarray(picture(1)), 0.04, "yunet")
    config = CurationConfig(root="x", export=ExportConfig(faces="blur", face_detector="yunet"))
    with pytest.raises(MissingWeights, match="face_yunet"):
        check_faces(config)
    (tmp_path / "face_yunet.onnx").write_bytes(b"another network")
    with pytest.raises(WrongChecksum, match="face_yunet"):
        faces.find(np.asarray(picture(1)), 0.04, "yunet")
    check_faces(CurationConfig(root="x", export=ExportConfig(face_detector="yunet")))


def test_the_network_finds_a_face_where_it_is():
    if not (default_weights_dir() / "face_yunet.onnx").is_file():
        pytest.skip("python -m curate.weights fetch face_yunet has not been run")
    faces._yunet.cache_clear()
    (box,) = faces.find(np.asarray(photographs.astronaut()), 0.04, "yunet")
    assert (box[:2] < np.array([222, 125]) / 512).all() and (np.array([222, 125]) / 512 < box[2:]).all()
