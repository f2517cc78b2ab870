from pathlib import Path

import numpy as np
import pytest
import torch

from curate import heads
from curate.config import HeadSpec

V1 = [-2.4579, -0.1379, 1.8951, 3.5849, 5.0997, 6.4701, 7.787, 9.048, 10.2264, 11.3044]
V2 = [1.6555, 2.3593, 3.0698, 3.6725, 4.238, 4.701, 5.0731, 5.3654, 5.5767, 5.7468]


@pytest.fixture
def published(shared, monkeypatch) -> Path:
    monkeypatch.setattr(heads, "path_of", lambda name: shared / "heads" / name)
    return shared / "heads"


def rated(folder: Path) -> np.ndarray:
    embeddings_BD = np.load(folder / "aesthetic_v1" / "rating0-9_vit_l_14.npy").astype(np.float32)
    return embeddings_BD / np.linalg.norm(embeddings_BD, axis=1, keepdims=True)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "golden"),
    [
        ("aesthetic_v1/sa_0_4_vit_l_14_linear.pth", V1),
        ("aesthetic_v2/sac+logos+ava1-l14-linearMSE.pth", V2),
    ],
)
def test_aesthetic_golden_values(published, file, golden):
    head = heads.load_head(HeadSpec(column="aesthetic", weights=file), 768)
    np.testing.assert_allclose(head(rated(published)), golden, atol=1e-3)


@pytest.mark.shared
def test_v2_folds_to_the_known_affine_map(published):
    layers = heads.read_layers(published / "aesthetic_v2/sac+logos+ava1-l14-linearMSE.pth", 768)
    folded = heads.fold(layers)
    assert folded.bias[0] == pytest.approx(5.23665, abs=1e-4)
    assert np.linalg.norm(folded.weight) == pytest.approx(17.9956, abs=1e-3)


@pytest.mark.shared
def test_nsfw_head_equals_torch_modules(published):
    name = "nsfw/clip_ViT-L-14_openai_binary_nsfw_head.pth"
    state = torch.load(published / name, weights_only=True)
    x = torch.from_numpy(rated(published))
    x = (x - state["norm.mean"]) / state["norm.variance"].sqrt()
    for layer in (1, 2, 3):
        x = torch.relu(torch.nn.functional.linear(x, state[f"linear_{layer}.weight"], state[f"linear_{layer}.bias"]))
    expected = torch.sigmoid(torch.nn.functional.linear(x, state["linear_4.weight"], state["linear_4.bias"]))[:, 0]
    head = heads.load_head(HeadSpec(column="nsfw_prob", weights=name, hidden="relu", output="sigmoid"), 768)
    np.testing.assert_allclose(head(rated(published)), expected.numpy(), atol=1e-5)


def save_layers(path: Path, widths: list[int]) -> torch.nn.Sequential:
    torch.manual_seed(0)
    module = torch.nn.Sequential(*[torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)])
    torch.save(module.state_dict(), path)
    return module


def test_layers_with_and_without_activation_are_told_apart(tmp_path, monkeypatch):
    module = save_layers(tmp_path / "head.pth", [16, 8, 1])
    monkeypatch.setattr(heads, "path_of", lambda name: tmp_path / name)
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    plain = heads.load_head(HeadSpec(column="a", weights="head.pth"), 16)(x)
    relu = heads.load_head(HeadSpec(column="a", weights="head.pth", hidden="relu"), 16)(x)
    with torch.no_grad():
        np.testing.assert_allclose(plain, module(torch.from_numpy(x))[:, 0].numpy(), atol=1e-5)
        hidden = torch.relu(module[0](torch.from_numpy(x)))
        np.testing.assert_allclose(relu, module[1](hidden)[:, 0].numpy(), atol=1e-5)
    assert np.abs(plain - relu).max() > 0.01


def test_a_misfit_is_an_error(tmp_path):
    save_layers(tmp_path / "head.pth", [16, 8, 1])
    with pytest.raises(ValueError, match="takes 16 values and gets 768"):
        heads.read_layers(tmp_path / "head.pth", 768)
    save_layers(tmp_path / "wide.pth", [16, 2])
    with pytest.raises(ValueError, match="gives 2 values"):
        heads.read_layers(tmp_path / "wide.pth", 16)


def test_a_score_far_outside_its_range_is_an_error():
    spec = HeadSpec(column="aesthetic", weights="any", low=1, high=10)
    with pytest.raises(heads.ScoreOutOfRange, match="L2-normalised"):
        heads.scores(lambda x: x[:, 0] * 100, spec, np.ones((2, 4), np.float32))


def test_an_untrained_head_must_be_declared_and_stays_in_range():
    with pytest.raises(ValueError, match="allow_untrained"):
        HeadSpec(column="aesthetic", weights=None)
    spec = HeadSpec(column="aesthetic", weights=None, allow_untrained=True, low=1, high=10)
    x = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    values = heads.scores(heads.load_head(spec, 32), spec, x)
    assert values.min() >= 1 and values.max() <= 10
    assert np.ptp(values) > 1
