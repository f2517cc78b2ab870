"""Sampling against a denoising loop written by hand, and what a picture may not depend on.

Shape legend: N pictures, C channels, H and W latent height and width, L tokens, D text width.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from curate.bad_input import BadInput
from tests.train.exported import trained
from tests.train.synthetic_root import Tiny
from train import draw, sample
from train.autoencoder import load_vae
from train.conditioning import TextEncoder
from train.config import TrainConfig
from train.draw import SAMPLERS, Drawing, draw_pixels, scheduler, steps_of_each
from train.export.exported import load_pipeline
from train.export.write import export
from train.model import start_from

PROMPTS = ["a cat", "a red chair in an empty room", "the sea"]
DRAWING = Drawing(sampler="euler", steps=5, guidance=4.0, split=0.6, seed=3, batch_size=2, side_px=32)
Exported = tuple[TrainConfig, TrainConfig]


def exported(tiny: Tiny, folder: Path, **objective: object) -> Exported:
    pair = []
    for model in ("base", "refiner"):
        config, file = trained(tiny, folder / model, model, **objective)
        assert export(config, "none")
        pair.append(config)
    return pair[0], pair[1]


@pytest.fixture(scope="module")
def epsilon(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tiny, tmp_path_factory.mktemp("epsilon"))


@pytest.fixture(scope="module")
def velocity(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tiny, tmp_path_factory.mktemp("velocity"), prediction="v", zero_terminal_snr=True)


def pixels(pair: Exported, drawing: Drawing = DRAWING, prompts: list[str] = PROMPTS) -> np.ndarray:
    folders = [Path(f"{config.root}/export/{config.model}") for config in pair]
    return draw_pixels(folders[0], folders[1], prompts, drawing)


@torch.no_grad()
def by_hand(pair: Exported, prompts: list[str], drawing: Drawing) -> np.ndarray:
    """Denoise with the networks and text towers of the training and one scheduler: no pipeline, no export."""
    base, refiner = pair
    objective = base.objective
    schedule = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if objective.prediction == "v" else "epsilon",
        rescale_betas_zero_snr=objective.zero_terminal_snr,
        timestep_spacing="trailing" if objective.zero_terminal_snr else "leading",
        steps_offset=1,
    )
    schedule.set_timesteps(drawing.steps)
    side_px, side = float(drawing.side_px), drawing.side_px // 4
    noise = [torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3 + n)) for n in range(len(prompts))]
    latents_NCHW = torch.cat(noise) * schedule.init_noise_sigma
    used = []
    encoders = {config.model: TextEncoder(config.text_towers, torch.device("cpu"), torch.float32) for config in pair}
    for timestep in schedule.timesteps:
        config = base if float(timestep) >= 400.0 else refiner  # the base takes 60 % of the noise scales
        used.append(config.model)
        unet = start_from(config, f"{config.out_folder}/unet_ema").eval()
        text_NLD, pooled_ND = encoders[config.model](prompts)
        size = [side_px, side_px, 0.0, 0.0]
        ends = ([side_px] * 2, [side_px] * 2) if config.model == "base" else ([2.5], [6.0])
        scaled_NCHW = schedule.scale_model_input(latents_NCHW, timestep)
        guessed = []
        for shown, end in zip((0.0, 1.0), ends, strict=True):
            added = {"text_embeds": shown * pooled_ND, "time_ids": torch.tensor([size + end] * len(prompts))}
            guessed.append(unet(scaled_NCHW, timestep, shown * text_NLD, added_cond_kwargs=added).sample)
        guided_NCHW = guessed[0] + drawing.guidance * (guessed[1] - guessed[0])
        latents_NCHW = schedule.step(guided_NCHW, timestep, latents_NCHW).prev_sample
    assert used == ["base"] * 3 + ["refiner"] * 2
    vae = load_vae(base.vae_folder)
    decoded = vae.decode(latents_NCHW / vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_base_then_refiner_equal_a_loop_by_hand(prediction: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(prediction)
    assert pair[0].objective.prediction == {"epsilon": "epsilon", "velocity": "v"}[prediction]
    drawn = pixels(pair)
    assert drawn.shape == (3, 32, 32, 3) and drawn.std() > 0.05
    np.testing.assert_allclose(drawn, by_hand(pair, PROMPTS, DRAWING), atol=2e-5)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_karras"])
def test_the_batch_size_changes_nothing_and_seeds_repeat(sampler: str, epsilon: Exported) -> None:
    drawing = dataclasses.replace(DRAWING, sampler=sampler, steps=4, split=0.5)
    prompts = ["a cat", "a cat", "the sea"]
    by_two = pixels(epsilon, drawing, prompts)
    np.testing.assert_allclose(pixels(epsilon, dataclasses.replace(drawing, batch_size=3), prompts), by_two, atol=1e-5)
    alone = pixels(epsilon, dataclasses.replace(drawing, seed=4), ["a cat"])
    np.testing.assert_allclose(alone[0], by_two[1], atol=1e-5)  # its seed is the first one's and one
    assert np.abs(by_two[0] - by_two[1]).max() > 1e-2  # one prompt, two seeds


def test_every_sampler_comes_near_the_same_picture(epsilon: Exported) -> None:
    """Without randomness of their own they solve one equation; heun with the base alone."""
    base = Path(f"{epsilon[0].root}/export/base")
    drawn = {
        name: draw_pixels(base, None, ["a cat"], dataclasses.replace(DRAWING, sampler=name, steps=25, guidance=1.5))
        for name in ("heun", "euler", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "unipc")
    }
    for name, picture in drawn.items():
        assert np.abs(picture - drawn["heun"]).mean() < 0.02, name
    assert all(not np.array_equal(picture, drawn["heun"]) for name, picture in drawn.items() if name != "heun")


def test_samplers_keep_the_noise_schedule_of_the_training(velocity: Exported) -> None:
    exported_one = load_pipeline("base", Path(f"{velocity[0].root}/export/base")).scheduler
    for name in SAMPLERS:
        if name == "heun":
            with pytest.raises(BadInput, match="sampler = heun: has no schedule with a terminal SNR of zero"):
                scheduler(exported_one, name)
            continue
        made = scheduler(exported_one, name)
        assert made.config.prediction_type == "v_prediction" and made.config.rescale_betas_zero_snr is True
        assert steps_of_each(made, 10, 0.8) == (8, 2), name
    assert tuple(SAMPLERS) == typing.get_args(typing.get_type_hints(sample.SampleConfig)["sampler"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampler": "heun"}, "sampler = heun: each of its steps asks twice"),
        ({"split": 0.001}, "split = 0.001: gives the base 5 and the refiner 0|gives the base 0 and the refiner 5"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(changes: dict, told: str, epsilon: Exported) -> None:
    with pytest.raises(BadInput, match=told):
        pixels(epsilon, dataclasses.replace(DRAWING, **changes))


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 1001), ("dpmpp_2m", 1000), ("ddim", 1000)])
def test_more_steps_than_the_noise_schedule_has_are_refused(sampler: str, steps: int, epsilon: Exported) -> None:
    """diffusers asks for the last timestep again and again, and draws noise, or fails after the last one."""
    told = f"steps = {steps}: the noise schedule has 1000 timesteps; take fewer steps than that"
    with pytest.raises(BadInput, match=told):
        pixels(epsilon, dataclasses.replace(DRAWING, sampler=sampler, steps=steps))


def test_prompts_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    settings = sample.SampleConfig(root=".", prompts=str(prompts))
    with pytest.raises(BadInput, match=r"^prompts = .*: no such file$"):
        sample.read_prompts(settings, "-")
    prompts.write_bytes("ein Café".encode("latin-1"))
    with pytest.raises(BadInput, match=r"^prompts = .*: is no UTF-8 text: .*0xe9"):
        sample.read_prompts(settings, "-")
    prompts.write_bytes(b"\xef\xbb\xbfa cat\r\n")  # as Windows' Notepad saves it
    assert sample.read_prompts(settings, "-") == ["a cat"]


def test_without_captions_a_file_of_prompts_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Index:
        def __len__(self) -> int:
            return 3

        def sample(self, row: int) -> SimpleNamespace:
            return SimpleNamespace(caption="")

    monkeypatch.setattr("train.index.reader.open_index", lambda folder: Index())
    with pytest.raises(BadInput, match="prompts = None: no caption in the index of train; name a file with prompts"):
        sample.read_prompts(sample.SampleConfig(root="."), "-")


def test_a_grid_that_could_not_be_written_is_refused_before_it_is_drawn() -> None:
    with pytest.raises(BadInput, match=r"out = 'grid.pgn': must end in .png"):
        sample.SampleConfig(root=".", out="grid.pgn")


def test_base_and_refiner_with_other_noise_are_refused(epsilon: Exported, velocity: Exported) -> None:
    with pytest.raises(BadInput, match="rescale_betas_zero_snr: False in the base's noise schedule, True"):
        pixels((epsilon[0], velocity[1]))


def test_the_command_writes_a_grid_and_single_pictures(
    epsilon: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Drawing] = []

    def drawn(base: Path, refiner: Path | None, prompts: list[str], drawing: Drawing) -> np.ndarray:
        seen.append(drawing)
        return np.stack([np.full((32, 32, 3), number / 10) for number in range(len(prompts))])

    monkeypatch.setattr(draw, "draw_pixels", drawn)
    (tmp_path / "prompts.txt").write_text("a cat\n\nÜber die See\n")
    config = str(Path(str(epsilon[0].root)) / "darkroom.yaml")
    words = ["--config", config, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "grid.png")]
    words += ["--pictures", str(tmp_path / "single"), "--seed", "7", "--sampler", "ddim", "--batch_size", "5"]
    assert sample.main(words) == 0
    assert (seen[0].sampler, seen[0].batch_size, seen[0].side_px) == ("ddim", 5, 32)
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert sheet.shape[1] == 2 * 192
    for left in (0, 192):  # under each picture its caption, dark on white
        assert sheet[192:, left : left + 192].min() < 64 and sheet[192:, left : left + 192].max() == 255
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == ["00000-seed7.png", "00001-seed8.png"]
    second = Image.open(tmp_path / "single/00001-seed8.png")
    assert second.getpixel((0, 0)) == (26, 26, 26)
    assert {"prompt": "Über die See", "seed": "8", "sampler": "ddim"}.items() <= second.text.items()


@pytest.mark.parametrize("size_px", [0, -8, 36])
def test_sides_that_diffusers_cannot_draw_are_refused(size_px: int) -> None:
    with pytest.raises(BadInput, match=f"size_px = {size_px}: must be a multiple of 8"):
        sample.SampleConfig(root=".", size_px=size_px)
