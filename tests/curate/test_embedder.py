from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from curate.config import ClipSpec, EmbedConfig
from curate.embedder import Embedder, device_of, middle, middle_square, normalised
from curate.image import decode
from curate.picture import from_pixels, read_picture
from tests.conftest import encoded, picture

SMALL = str(Path(__file__).resolve().parents[2] / "pipelines/demo_models/clip_score.json")


def embedder(**settings: object) -> Embedder:
    spec = ClipSpec(architecture=SMALL, weights=None, allow_untrained=True)
    return Embedder(EmbedConfig(clip=spec, device="cpu", **settings))


def open_clip_s(image: Image.Image) -> torch.Tensor:
    """Return open_clip's tensor for 224 px, in 0..255."""
    transform = open_clip.image_transform(224, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    return transform(image) * 255


@pytest.mark.shared
def test_the_exact_transform_has_the_golden_pixels(shared):
    folder = shared / "clip_b32_golden"
    paths = sorted((folder / "images").iterdir())
    assert len(paths) == 7
    for path in paths:
        golden = np.asarray(Image.open(folder / "preprocessed_224" / f"{path.stem}.png").convert("RGB"))
        exact = open_clip_s(decode(path.read_bytes(), 100)).permute(1, 2, 0).numpy()
        assert np.array_equal(exact.round().astype(np.uint8), golden), path.name
        found = middle_square(read_picture(path.read_bytes(), 100, 448), 224).permute(1, 2, 0).numpy()
        assert np.abs(found.astype(float) - golden).mean() < 1, path.name


@pytest.mark.shared
def test_the_short_way_is_within_one_level_of_open_clip_on_photographs(shared):
    away = []
    for path in sorted((shared / "photos_hires" / "images").glob("*.jpg"))[::3]:
        data = path.read_bytes()
        found = middle_square(read_picture(data, 100, 448), 224)
        away.append(float((found - open_clip_s(decode(data, 100))).abs().mean()))
    assert len(away) >= 15
    assert max(away) < 1


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (200, 300), (60, 40), (225, 1000), (640, 481)])
def test_unreduced_pictures_have_open_clip_s_pixels_but_for_rounding(size):
    image = picture(1, *size)
    found = middle_square(from_pixels(image), 224)
    assert found.shape == (3, 224, 224)
    difference = (found.float() - open_clip_s(image)).abs()
    assert difference.max() <= 2.01  # uint8 between the two directions, in either library
    assert difference.mean() < 0.05


@pytest.mark.parametrize("size", [(1001, 1451), (1451, 1001)])
def test_a_reduced_picture_is_scaled_by_its_own_extent(size):
    """By the array's size, rounded up, the far edge would be off."""
    image = picture(2, *size)
    data = encoded(image, quality=98, subsampling=0)
    reduced = read_picture(data, 100, 448)
    assert reduced.reduced_by == 2
    expected = open_clip_s(decode(data, 100))
    assert (middle_square(reduced, 224) - expected).abs().mean() < 0.4


def test_the_middle_of_a_strip_is_bounded():
    def size_of(width, height):
        return middle(np.zeros((height, width, 3), np.uint8)).shape[1::-1]

    assert size_of(6000, 1) == (8, 1)
    assert size_of(10, 300) == (10, 80)
    assert size_of(300, 200) == (300, 200)
    assert middle_square(from_pixels(picture(1, 6000, 3)), 224).shape == (3, 224, 224)


def test_exact_preprocessing_is_open_clip_s_own():
    exact, fast = embedder(decode="exact", precision="fp32"), embedder(precision="fp32")
    image = picture(3, 301, 222)
    side_px = exact.preprocess(from_pixels(image)).shape[-1]
    config = open_clip.get_model_preprocess_cfg(exact._model)
    transform = open_clip.image_transform(side_px, is_train=False, mean=config["mean"], std=config["std"])
    assert torch.equal(exact.preprocess(from_pixels(image)), transform(image))
    assert exact.min_side_px is None
    assert fast.min_side_px == max(256, 2 * side_px)
    pixels = fast.preprocess(from_pixels(image))
    assert pixels.dtype == torch.uint8
    assert torch.allclose(
        normalised(pixels[None], fast._fast)[0], transform(image), atol=1.1 / 255 / min(config["std"])
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embeddings_are_unit_float16_and_nearly_the_same_both_ways(precision):
    images = [picture(seed, 320, 240) for seed in range(3)]
    found = []
    for how in ("fast", "exact"):
        model = embedder(decode=how, precision=precision)
        rows = [{"tensor": model.preprocess(from_pixels(image)), "text": "a picture"} for image in images]
        rows = model.complete([*rows, {"text": None}])
        assert "embedding" not in rows.pop()
        found.append(np.stack([row["embedding"] for row in rows]))
        assert all(-1 <= row["clip_similarity"] <= 1 for row in rows)
    fast, exact = found
    assert fast.dtype == np.float16
    assert np.allclose(np.linalg.norm(fast.astype(np.float32), axis=1), 1, atol=2e-3)
    assert ((fast.astype(np.float32) * exact).sum(axis=1) > 0.999).all()


def test_a_gpu_that_torch_does_not_find_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_of(EmbedConfig()).type == "cpu"
    with pytest.raises(ValueError, match="embed.device = 'gpu'.*torch finds none"):
        device_of(EmbedConfig(device="gpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ValueError, match="embed.device = 'auto'.*was given the GPUs '1'"):
        device_of(EmbedConfig())
    assert device_of(EmbedConfig(device="cpu")).type == "cpu"
