from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from curate import heads
from curate.config import HeadSpec, ScoreConfig
from curate.weights import FORMATS, registry

V1 = [-2.4579, -0.1379, 1.8951, 3.5849, 5.0997, 6.4701, 7.787, 9.048, 10.2264, 11.3044]
V2 = [1.6555, 2.3593, 3.0698, 3.6725, 4.238, 4.701, 5.0731, 5.3654, 5.5767, 5.7468]
HEADS = sorted(name for name, weight in registry().items() if weight.kind == "head")


def published_file(shared: Path, name: str) -> Path:
    """Return the file of a registered head, by its checksum."""
    from hashlib import sha256

    wanted = registry()[name].sha256
    found = [path for path in (shared / "heads").rglob("*.*") if sha256(path.read_bytes()).hexdigest() == wanted]
    assert found, name
    return found[0]


def published(shared: Path, name: str) -> heads.Head:
    network = heads.network_of(name)
    return heads.read_head(published_file(shared, name), network, "score", network.layers[0])


def rated(shared: Path, width: int = 768) -> np.ndarray:
    return np.load(shared / "heads" / "aesthetic_v1" / f"rating0-9_vit_{'l_14' if width == 768 else 'b_32'}.npy")


def score(head: heads.Head, embeddings_BD: np.ndarray) -> np.ndarray:
    return heads.Scorer([head]).score(embeddings_BD)[head.column]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "golden"), [("aesthetic_v1", V1), ("aesthetic_v2", V2)])
def test_aesthetic_golden_values(shared, name, golden):
    np.testing.assert_allclose(score(published(shared, name), rated(shared)), golden, atol=1e-3)
    np.testing.assert_allclose(score(published(shared, name), rated(shared).astype(np.float16)), golden, atol=5e-3)


@pytest.mark.shared
def test_v2_folds_to_the_known_affine_map(shared):
    (layer,) = published(shared, "aesthetic_v2").layers
    assert layer.bias[0] == pytest.approx(5.23665, abs=1e-4)
    assert np.linalg.norm(layer.weight) == pytest.approx(17.9956, abs=1e-3)


def spread_out(width: int, count: int = 500) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "layers"), [("nsfw_vit_l14", 4), ("nsfw_vit_b32", 3)])
def test_nsfw_heads_equal_torch_modules_and_their_keras_files(shared, name, layers):
    state = torch.load(published_file(shared, name), weights_only=True)
    width = heads.network_of(name).layers[0]
    seen = np.concatenate([rated(shared, width), spread_out(width)])
    x = (torch.from_numpy(seen) - state["norm.mean"]) / state["norm.variance"].sqrt()
    for layer in range(1, layers):
        x = torch.relu(torch.nn.functional.linear(x, state[f"linear_{layer}.weight"], state[f"linear_{layer}.bias"]))
    last = torch.nn.functional.linear(x, state[f"linear_{layers}.weight"], state[f"linear_{layers}.bias"])
    expected = torch.sigmoid(last)[:, 0].numpy()
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(score(published(shared, name), seen), expected, atol=1e-4)
    keras = published(shared, f"{name}_keras")
    assert all(
        (a.weight == b.weight).all() and (a.bias == b.bias).all()
        for a, b in zip(keras.layers, published(shared, name).layers, strict=True)
    )


@pytest.mark.shared
@pytest.mark.parametrize(("name", "file"), [("watermark_vit_l14", "w_head_v1"), ("porn_vit_l14", "p_head_v1")])
def test_detectors_are_a_sigmoid_of_one_product(shared, name, file):
    saved = np.load(shared / "heads" / "stability_detection" / f"{file}.npz")
    expected = 1 / (1 + np.exp(-(rated(shared) @ saved["weights"] + saved["biases"])))
    np.testing.assert_allclose(score(published(shared, name), rated(shared)), expected, atol=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "width"), [("violence_vit_l14", 768), ("violence_vit_b32", 512)])
def test_violence_above_one_half_is_the_published_verdict(shared, name, width):
    prompts = np.load(published_file(shared, name)).astype(np.float64)
    mixed = np.concatenate(
        [rated(shared, width), spread_out(width), prompts / np.linalg.norm(prompts, axis=1)[:, None]]
    )
    logits = 100 * mixed @ prompts.T
    found = score(published(shared, name), mixed.astype(np.float32))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), atol=1e-4)
    assert ((found > 0.5) == (logits.argmax(axis=1) == 1)).all()
    assert (found > 0.5).any() and (found < 0.5).any()


@pytest.mark.shared
def test_heads_at_once_equal_heads_one_by_one(shared):
    several = [
        heads.read_head(published_file(shared, name), heads.network_of(name), name, 768)
        for name in HEADS
        if heads.network_of(name).layers[0] == 768
    ]
    seen = np.concatenate([rated(shared), spread_out(768, 2000)]).astype(np.float16)
    together = heads.Scorer(several).score(seen)
    assert len(together) == 7
    for head in several:
        np.testing.assert_allclose(together[head.column], score(head, seen), atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_registered_head_says_what_it_is(name):
    network = heads.network_of(name)
    assert registry()[network.clip].kind == "open_clip"
    assert network.meaning and network.unit and network.direction


def network(*layers: int, **changes: object) -> heads.Network:
    said = {"clip": "clip", "hidden": "none", "output": "none", "meaning": "m", "unit": "u", "low": -1e3, "high": 1e3}
    return heads.Network(**said | {"layers": layers, "direction": "d"} | changes)


def save_layers(path: Path, widths: list[int]) -> torch.nn.Sequential:
    torch.manual_seed(0)
    module = torch.nn.Sequential(*[torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)])
    torch.save(module.state_dict(), path)
    return module


def test_layers_with_and_without_activation_are_told_apart(tmp_path):
    path = tmp_path / "head.pth"
    module = save_layers(path, [16, 8, 1])
    x = spread_out(16, 5)
    plain = score(heads.read_head(path, network(16, 8, 1), "a", 16), x)
    relu = score(heads.read_head(path, network(16, 8, 1, hidden="relu"), "a", 16), x)
    with torch.no_grad():
        np.testing.assert_allclose(plain, module(torch.from_numpy(x))[:, 0].numpy(), atol=1e-5)
        hidden = torch.relu(module[0](torch.from_numpy(x)))
        np.testing.assert_allclose(relu, module[1](hidden)[:, 0].numpy(), atol=1e-5)
    assert np.abs(plain - relu).max() > 0.01


def test_safetensors_hold_the_same(tmp_path):
    module = save_layers(tmp_path / "head.pth", [16, 8, 1])
    save_file({name: tensor.numpy() for name, tensor in module.state_dict().items()}, tmp_path / "head.safetensors")
    x = spread_out(16, 5)
    one, other = (score(heads.read_head(tmp_path / f"head.{e}", network(16, 8, 1), "a", 16), x) for e in FORMATS_READ)
    np.testing.assert_array_equal(one, other)


FORMATS_READ = ("pth", "safetensors")


def test_every_format_of_heads_has_a_reader():
    assert set(heads._READERS) == set(FORMATS) - {".onnx"}


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (network(16, 4, 1), "has layers 16x8, 8x1, and 16x4, 4x1 are stated"),
        (network(16, 1), "has layers 16x8, 8x1, and 16x1 are stated"),
        (network(16, 8, 1, normalisation=True), "holds no normalisation of its input"),
    ],
)
def test_a_misfit_is_an_error(tmp_path, stated, told):
    save_layers(tmp_path / "head.pth", [16, 8, 1])
    with pytest.raises(ValueError, match=told):
        heads.read_head(tmp_path / "head.pth", stated, "a", 16)


def test_tensors_that_are_no_layer_are_an_error(tmp_path):
    torch.save({"0.weight": torch.ones(1, 16), "0.bias": torch.ones(1), "gate": torch.ones(3)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"tensors \['gate.weight', 'gate.bias'\] are missing|unknown"):
        heads.read_layers(tmp_path / "head.pth", network(16, 1))
    np.savez(tmp_path / "head.npz", weights=np.ones(16), other=np.ones(1))
    with pytest.raises(ValueError, match="weights and biases are read"):
        heads.read_layers(tmp_path / "head.npz", network(16, 1))


def test_embeddings_of_another_width_are_refused(tmp_path):
    with pytest.raises(ValueError, match="takes embeddings of 16 values, of clip, and gets 768"):
        heads.read_head(tmp_path / "any.pth", network(16, 1), "a", 768)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden": "gelu"}, "head.hidden = 'gelu'"),
        ({"output": "sigmoid"}, "a probability has the range 0, 1"),
        ({"layers": [16]}, "must lead from the embedding's width to 1"),
        ({"low": 5.0, "high": 1.0}, "must be below high"),
        ({"layer": [16, 1]}, "the fields are"),
    ],
)
def test_a_registry_entry_is_checked(tmp_path, changes, told):
    head = {"clip": "c", "layers": [16, 1], "hidden": "none", "output": "none", "meaning": "m", "unit": "u"}
    head |= {"low": -1.0, "high": 12.0, "direction": "up"} | changes
    entry = {"kind": "head", "urls": ["file:///a.pth"], "sha256": None, "num_bytes": None, "licence": "MIT"}
    path = tmp_path / "weights.yaml"
    path.write_text(yaml.safe_dump({"weights": {"mine": entry | {"purpose": "p", "revision": "r", "head": head}}}))
    with pytest.raises(ValueError, match=f"weights 'mine': .*{told}"):
        heads.network_of("mine", path)


def linear(weight: float, low: float, high: float) -> heads.Head:
    layer = heads.Layer(weight=np.full((4, 1), weight, np.float32), bias=np.zeros(1, np.float32))
    return heads.Head(column="mine", layers=(layer,), probability=False, low=low, high=high)


def test_a_score_outside_its_range_is_an_error():
    unit = np.full((2, 4), 0.5, np.float32)
    with pytest.raises(heads.ScoreOutOfRange, match=r"score mine: 12..12 is outside 1..10.*L2-normalised"):
        score(linear(6, 1, 10), unit)
    assert score(linear(5, 1, 10), unit).tolist() == [10, 10]


@pytest.mark.parametrize("length", [0.0, 0.97, 1.03, 10.0, float("nan"), float("inf")])
def test_an_embedding_that_was_not_normalised_is_an_error(length):
    rows = np.full((3000, 4), 0.5, np.float16)
    rows[2999] *= np.float16(length)
    with pytest.raises(heads.ScoreOutOfRange, match="was not L2-normalised"):
        score(linear(0, -1e9, 1e9), rows)


def test_no_embeddings_and_no_heads_give_nothing():
    assert score(linear(1, 0, 1), np.empty((0, 4), np.float16)).shape == (0,)
    assert heads.Scorer([]).score(spread_out(4)) == {}


def test_an_untrained_head_must_be_declared_and_stays_in_range():
    with pytest.raises(ValueError, match="allow_untrained"):
        HeadSpec(column="aesthetic", weights=None)
    spec = HeadSpec(column="aesthetic", weights=None, allow_untrained=True, low=1, high=10)
    values = score(heads.load_head(spec, 32), spread_out(32))
    assert values.min() >= 1 and values.max() <= 10
    assert np.ptp(values) > 1


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"column": "uid"}, "score.heads.column = 'uid'"),
        ({"column": "NSFW prob"}, "score.heads.column = 'NSFW prob'"),
        ({"column": "a", "low": 2.0}, "score.heads.a.low = 2.0: must be below high = 1.0"),
        ({"column": "a", "high": 10.0, "weights": "aesthetic_v2"}, "stands in infra/weights.yaml"),
    ],
)
def test_head_settings_are_checked(spec, told):
    with pytest.raises(ValueError, match=told):
        HeadSpec(**{"weights": None, "allow_untrained": True} | spec)


def test_score_settings_are_checked():
    with pytest.raises(ValueError, match="a column of its own"):
        ScoreConfig(heads=(HeadSpec(column="a", weights="x"), HeadSpec(column="a", weights="y")))
    with pytest.raises(ValueError, match="score.blocklist_radius_bits = 32: must be in 0..31"):
        ScoreConfig(blocklist_radius_bits=32)
