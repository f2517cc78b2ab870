"""Drawing against diffusers' pipelines, distances against their definitions, and scores by one rank and by two."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from diffusers import EulerDiscreteScheduler
from PIL import Image

from curate.bad_input import BadInput
from curate.config import ClipSpec
from tests.train.exported import trained
from tests.train.synthetic_root import Tiny, write_clip
from tests.train.test_data import index_of, settings_of
from train.config import TrainConfig
from train.config_evaluation import DrawConfig, EvaluateConfig, GridsConfig
from train.evaluate import distances, features
from train.evaluate.cases import Case, batches, cases_of_samples, grid_cases
from train.evaluate.denoise import Painter
from train.export.exported import load_pipeline
from train.export.write import export
from train.index.reader import Index
from train.model import predict, start_from
from train.objective import Frozen

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")
HOW = DrawConfig(sampler_steps=5, guidance=4.0, seed=3, batch_size=2)


def painter_of(config: TrainConfig, index: Index) -> Painter:
    unet = start_from(config, f"{config.out_folder}/unet_ema").eval()
    frozen = Frozen(config, CPU)
    return Painter(config, frozen, index, functools.partial(predict, unet, torch.float32))


def made(tiny: Tiny, folder: Path, model: str, **objective: object) -> tuple[TrainConfig, Painter, list[Case]]:
    """A network with random weights whose data is the synthetic root's."""
    config, _ = trained(tiny, folder, model, **objective)
    index = index_of(tiny.root)
    here = dataclasses.replace(config, root=str(tiny.root), out=config.out_folder)
    return config, painter_of(here, index), cases_of_samples(index, 5)


def pictures(painter: Painter, cases: list[Case], how: DrawConfig = HOW) -> dict[int, np.ndarray]:
    drawn = [pair for some, pixels in painter.pictures(cases, how) for pair in zip(some, pixels, strict=True)]
    return {case.number: pixels for case, pixels in drawn}


@pytest.mark.parametrize("objective", [{}, {"prediction": "v", "zero_terminal_snr": True}, {"dropped_text": "empty"}])
def test_the_base_draws_what_diffusers_pipeline_draws(tiny: Tiny, tmp_path: Path, objective: dict[str, object]) -> None:
    config, painter, cases = made(tiny, tmp_path, "base", **objective)
    assert export(config, "none")
    pipeline = load_pipeline("base", tmp_path / "export/base")
    mine = pictures(painter, cases)
    assert {picture.shape for picture in mine.values()} == {(32, 32, 3), (32, 64, 3)}
    for case in cases:
        height, width = case.bucket_hw
        expected = pipeline(
            prompt=case.caption,
            generator=torch.Generator().manual_seed(3 + case.number),
            num_inference_steps=5,
            guidance_scale=4.0,
            height=height,
            width=width,
            output_type="np",
        ).images[0]
        assert np.abs(mine[case.number] / 255.0 - expected).max() < 0.01


def test_the_refiner_draws_what_diffusers_pipeline_draws(tiny: Tiny, tmp_path: Path) -> None:
    config, painter, cases = made(tiny, tmp_path, "refiner", timestep_high=199)
    assert export(config, "none")
    pipeline = load_pipeline("refiner", tmp_path / "export/refiner")
    mine = pictures(painter, cases)
    for case in cases:
        expected = pipeline(
            prompt=case.caption,
            image=painter._real([case]),
            strength=0.2,
            generator=torch.Generator().manual_seed(3 + case.number),
            num_inference_steps=25,
            guidance_scale=4.0,
            original_size=case.bucket_hw,
            target_size=case.bucket_hw,
            output_type="np",
        ).images[0]
        assert np.abs(mine[case.number] / 255.0 - expected).max() < 0.01


def test_more_steps_than_trained_timesteps_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    """diffusers asks for the last timestep again and again: the refiner would begin with pure noise."""
    _, painter, _ = made(tiny, tmp_path, "refiner", timestep_high=199)
    assert painter._schedule(199)[2] > 0
    config, too_many = painter._config, dataclasses.replace(HOW, sampler_steps=200)
    for name in ("grids", "evaluate"):
        told = f"{name}.draw.sampler_steps = 200: must be below 200, the timesteps that are trained"
        with pytest.raises(BadInput, match=told):
            dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), draw=too_many)})


def test_without_guidance_one_network_pass_is_made_for_a_step(tiny: Tiny, tmp_path: Path) -> None:
    _, painter, cases = made(tiny, tmp_path, "base")
    with mock.patch.object(painter, "_predict", wraps=painter._predict) as passes:
        plain = painter.latents(cases[:1], dataclasses.replace(HOW, guidance=1.0))
        assert [call.args[0].shape[0] for call in passes.call_args_list] == [1] * 5
        guided = painter.latents(cases[:1], HOW)
        assert [call.args[0].shape[0] for call in passes.call_args_list][5:] == [2] * 5
    assert (plain - guided).abs().max() > 1e-3


def test_a_picture_depends_on_its_number_alone(tiny: Tiny, tmp_path: Path) -> None:
    _, painter, cases = made(tiny, tmp_path, "base")
    together = pictures(painter, cases, dataclasses.replace(HOW, batch_size=4))
    alone = pictures(painter, cases[3:4], dataclasses.replace(HOW, batch_size=1))
    assert np.abs(together[3].astype(int) - alone[3]).max() <= 1
    assert np.abs(together[0].astype(int)[:32, :32] - together[1].astype(int)[:32, :32]).max() > 1


def test_drawing_leaves_the_random_state_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    _, painter, cases = made(tiny, tmp_path, "base")
    before = torch.random.get_rng_state()
    pictures(painter, cases)
    assert torch.equal(before, torch.random.get_rng_state())


def test_grid_cases_come_from_samples_or_from_a_file(tiny: Tiny, tmp_path: Path) -> None:
    config, index = settings_of(tiny), index_of(tiny.root)
    config = dataclasses.replace(config, grids=GridsConfig(count=4))
    assert [case.caption for case in grid_cases(config, index, 4)] == [
        index.sample(row).caption for row in (0, 7, 15, 22)
    ]
    (tmp_path / "prompts.txt").write_text("a cat\n\n a dog \n")
    config = dataclasses.replace(config, grids=GridsConfig(prompts=str(tmp_path / "prompts.txt")))
    assert [(case.caption, case.bucket_hw) for case in grid_cases(config, index, 4)] == [
        ("a cat", (32, 32)),
        ("a dog", (32, 32)),
    ]
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(BadInput, match=r"grids.prompts = .*: no prompts in it"):
        grid_cases(config, index, 4)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfea cat")
    with pytest.raises(BadInput, match=r"grids.prompts = .*: is no UTF-8 text"):
        grid_cases(config, index, 4)
    with pytest.raises(BadInput, match=r"grids.prompts = nowhere.txt: no such file"):
        grid_cases(dataclasses.replace(config, grids=GridsConfig(prompts="nowhere.txt")), index, 4)
    refiner = dataclasses.replace(settings_of(tiny, "refiner"), grids=GridsConfig(prompts="prompts.txt"))
    with pytest.raises(BadInput, match="refiner's grids start from real pictures"):
        grid_cases(refiner, index, 4)


def test_batches_have_one_size_each_and_every_case() -> None:
    cases = [Case(number=n, caption="", bucket_hw=(32, 32 + 32 * (n % 2)), row=None) for n in range(7)]
    found = list(batches(cases, 2))
    assert sorted(case.number for some in found for case in some) == list(range(7))
    assert all(len(some) <= 2 and len({case.bucket_hw for case in some}) == 1 for some in found)


def features_of(seed: int, rows: int, width: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, width)) @ np.diag(rng.uniform(0.5, 2.0, width)) + shift
    return mixed.astype(np.float32)


def test_fid_is_the_frechet_distance_of_the_fitted_normals() -> None:
    real, drawn = features_of(0, 400, 12), features_of(1, 300, 12, shift=0.5)
    mean, other = real.astype(float).mean(0), drawn.astype(float).mean(0)
    spread, wide = np.cov(real.astype(float), rowvar=False), np.cov(drawn.astype(float), rowvar=False)
    root = scipy.linalg.sqrtm(spread @ wide).real
    expected = ((mean - other) ** 2).sum() + np.trace(spread + wide - 2 * root)
    assert distances.fid(real, drawn) == pytest.approx(expected, rel=1e-6)
    assert distances.fid(real, real) == pytest.approx(0.0, abs=1e-6)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    real, drawn = features_of(0, 40, 6), features_of(1, 40, 6, shift=0.5)
    x, y = drawn.astype(float), real.astype(float)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 6 + 1) ** 3

    off = ~np.eye(40, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    mean, deviation = distances.kid(real, drawn, subsets=3, subset_size=1000, seed=0)
    assert mean == pytest.approx(expected, rel=1e-6)
    assert deviation == pytest.approx(0.0, abs=1e-9)


def test_cmmd_is_the_biased_mmd_of_the_gaussian_kernel() -> None:
    real, drawn = (
        each / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (features_of(0, 30, 8), features_of(1, 20, 8, 1.0))
    )

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        pairs = [np.exp(-((p.astype(float) - q) ** 2).sum() / 200.0) for p in a for q in b]
        return float(np.mean(pairs))

    expected = 1000.0 * (kernel(real, real) + kernel(drawn, drawn) - 2 * kernel(real, drawn))
    assert distances.cmmd(real, drawn) == pytest.approx(expected, rel=1e-6)
    assert distances.cmmd(real, real) == pytest.approx(0.0, abs=1e-9)


@pytest.fixture(scope="module")
def clip_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"), "tiny_measure", 32)


def measure(clip_json: str, **changes: object) -> EvaluateConfig:
    clip = ClipSpec(architecture=clip_json, weights=None, allow_untrained=True)
    return EvaluateConfig(inception=None, clip=clip, draw=HOW, **changes)  # type: ignore[arg-type]


def test_clip_features_are_open_clips_and_the_score_their_cosine(clip_json: str) -> None:
    import open_clip

    pixels = np.random.default_rng(0).integers(0, 255, (3, 48, 40, 3), dtype=np.uint8)
    captions = ["a cat", "the sea", "two chairs"]
    extractor = features.Extractor(measure(clip_json), CPU)
    found = extractor(pixels, captions)
    model, name = extractor._clip, Path(clip_json).stem
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(Image.fromarray(each)) for each in pixels]))
        texts = model.encode_text(open_clip.get_tokenizer(name)(captions))
    cosines = torch.nn.functional.cosine_similarity(images, texts)
    assert np.allclose(found.clip_ND, torch.nn.functional.normalize(images, dim=-1).numpy(), atol=1e-5)
    assert np.allclose(found.clip_score_N, 100 * cosines.clamp(min=0).numpy(), atol=1e-3)
    assert found.inception_ND.shape == (3, 0)


def test_inception_features_are_torch_fidelitys_pooling_layer(
    clip_json: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file cannot be had here: random weights in the same format stand in for it."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"), mock.patch("torch.load"):
        torch.manual_seed(0)
        plain = FeatureExtractorInceptionV3("plain", ["2048"], feature_extractor_weights_path="nowhere")
    torch.save(plain.state_dict(), tmp_path / "inception.pth")
    monkeypatch.setattr(features, "checked_path_of", lambda name: {"mine": tmp_path / "inception.pth"}[name])
    extractor = features.Extractor(dataclasses.replace(measure(clip_json), inception="mine"), CPU)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 48, 3), dtype=np.uint8)
    found = extractor(pixels, ["a", "b"]).inception_ND
    expected = plain(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())[0]
    assert found.shape == (2, 2048)
    assert np.array_equal(found, expected.numpy())


class Command:
    """A pickle that runs a command when it is read freely."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return Path.touch, (self.made,)


def test_inceptions_file_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": Command(tmp_path / "ran")}, tmp_path / "inception.pth")
    monkeypatch.setattr(features, "checked_path_of", lambda _: tmp_path / "inception.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        features._inception("mine")
    assert not (tmp_path / "ran").exists()


def evaluate(config: Path, ranks: int) -> dict[str, object]:
    words = ["base", "--config", str(config), "--ranks", str(ranks)]
    command = [sys.executable, "-m", "train.evaluate", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    out = yaml.safe_load(config.read_text())["train"]["base"]["out"]
    return json.loads((Path(out) / "evaluations.jsonl").read_text().splitlines()[-1])


def test_one_rank_and_two_give_the_same_scores_and_real_features_are_kept(
    tiny: Tiny, tmp_path: Path, clip_json: str
) -> None:
    trained(tiny, tmp_path, "base")
    how = dataclasses.asdict(measure(clip_json, samples=3))
    config = tiny.variant(tmp_path, out=str(tmp_path / "train/base"), evaluate=how)
    one = evaluate(config, 1)
    (kept,) = (tmp_path / "train/base/features").iterdir()
    written = kept.stat().st_mtime_ns
    two = evaluate(config, 2)
    assert kept.stat().st_mtime_ns == written
    assert one["samples"] == two["samples"] == 3
    for name in ("cmmd", "clip_score", "clip_score_real"):
        assert one[name] == pytest.approx(two[name], rel=1e-3)
    assert one["clip_weights"] == "UNTRAINED random weights, seed 0"
    assert one["clip_resizer"] == "open_clip's own: bicubic, shortest, to (32, 32) px"
    assert one["begins_with"] == "noise"


def test_a_missing_network_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.variant(tmp_path)
    command = [sys.executable, "-m", "train.evaluate", "base", "--config", str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("unet_ema: no U-Net there; train first, or name a diffusers U-Net folder")
    assert "Traceback" not in done.stderr


def test_a_run_measures_and_draws_between_its_steps_and_learns_the_same(
    tiny: Tiny, tmp_path: Path, clip_json: str
) -> None:
    how = dataclasses.asdict(measure(clip_json, samples=4)) | {"every_steps": 2}
    grids = {"every_steps": 2, "count": 3, "draw": dataclasses.asdict(HOW)}
    plain = tiny.variant(tmp_path / "plain", steps=4)
    watched = tiny.variant(tmp_path / "watched", steps=4, evaluate=how, grids=grids, validate_every_steps=2)
    for config in (plain, watched):
        command = [sys.executable, "-m", "train.run", "base", "--config", str(config)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "watched/out/metrics.jsonl").read_text().splitlines()]
    of_plain = [json.loads(line) for line in (tmp_path / "plain/out/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [line["loss"] for line in of_plain if "loss" in line]
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 2, 4]
    assert [line["step"] for line in lines if "cmmd" in line] == [2, 4]
    bins = [name for name in lines[0] if name.startswith("val_loss_by_timestep/")]
    assert len(bins) == 8
    out = tmp_path / "watched/out"
    assert sorted(path.name for path in (out / "grids").glob("*.png")) == [f"step-0000000{n}.png" for n in (0, 2, 4)]
    first, last = (np.asarray(Image.open(out / f"grids/step-0000000{n}.png")) for n in (0, 4))
    assert first.shape == last.shape
    assert (first != last).any()
    assert [line["step"] for line in map(json.loads, (out / "evaluations.jsonl").read_text().splitlines())] == [2, 4]


def test_euler_is_the_sampler_of_the_export(tiny: Tiny) -> None:
    """The same schedule is drawn with while training and written into the export."""
    from train.diffusion import sampler_schedule

    schedule = EulerDiscreteScheduler(**sampler_schedule(settings_of(tiny).objective))
    assert schedule.config.prediction_type == "epsilon"
    assert schedule.config.timestep_spacing == "leading"
