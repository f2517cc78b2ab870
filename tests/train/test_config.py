"""Settings: recipes, batch arithmetic, refused keys, and which modules may import what."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from curate.bad_input import BadInput
from tests.train.synthetic_root import Tiny
from train.config import BatchConfig, ObjectiveConfig, OptimizerConfig, OrderConfig, TrainConfig
from train.recipes import RECIPES, base, refiner, staged
from train.run import main
from train.settings import read_train_settings, section
from train.watch import WatchConfig

TRAIN = Path(__file__).parents[2] / "train"


def test_full_networks_have_the_published_sizes() -> None:
    from train.dry_run import parameters_by_part

    assert parameters_by_part(base())["all"] == 2_567_463_684
    assert parameters_by_part(refiner())["all"] == 2_259_526_660


PUBLISHED = {
    "base": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [4, 4, 4, 4],
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}
"""What unet/config.json of the original models says beside diffusers' defaults."""
PUBLISHED_BOTH = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "norm_num_groups": 32,
}


@pytest.mark.parametrize("model", ["base", "refiner"])
def test_networks_are_built_with_the_published_arguments(model: str) -> None:
    from train.model import unet_arguments

    assert unet_arguments(RECIPES[model]()) == PUBLISHED[model] | PUBLISHED_BOTH


def test_recipes_draw_their_noise_scales_and_ask_for_the_requested_schedule() -> None:
    ranges = {m: (r().objective.timestep_low, r().objective.timestep_high) for m, r in RECIPES.items()}
    assert ranges == {"base": (0, 999), "refiner": (0, 199)}
    for recipe in RECIPES.values():
        assert (recipe().optimizer.warmup_steps, recipe().optimizer.lr_final) == (10_000, 1e-6)
        assert (recipe().batch.global_batch, recipe().ema_decay, recipe().precision) == (2048, 0.9999, "bf16")


@pytest.mark.parametrize("model", ["base", "refiner"])
def test_three_stages_are_ready(model: str) -> None:
    def stage(px: int, *said: str) -> TrainConfig:
        flags = ["--root", "r", *(said or ("--stage", str(px))), "--optimizer.lr_peak", "5e-5"]
        return read_train_settings(model, flags, prog="test", description="")[0]

    assert stage(512, "--stage=512") == stage(512)
    stages = [stage(px) for px in (256, 512, 1024)]
    assert [config.unet.sample_size for config in stages] == [32, 64, 128]
    assert [config.objective.offset_noise for config in stages] == [0.0, 0.0, 0.05]
    assert [config.steps for config in stages] == [600_000, 200_000, 200_000]
    plain = RECIPES[model]()
    assert {config.objective.timestep_high for config in stages} == {plain.objective.timestep_high}
    assert {config.optimizer.lr_peak for config in stages} == {5e-5}
    with pytest.raises(ValueError, match="stage = 768: must be one of 256, 512, 1024"):
        staged(plain, 768)


def test_impossible_objectives_are_refused() -> None:
    for settings, told in (
        ({"zero_terminal_snr": True}, "set objective.prediction to v"),
        ({"min_snr_gamma": 0.0}, "objective.min_snr_gamma = 0.0: must be above 0"),
        ({"timestep_bias": 2.0, "timestep_high": 199, "timestep_bias_high": 500}, r"must lie in 0..199"),
        ({"caption_dropout": 1.0}, "objective.caption_dropout"),
    ):
        with pytest.raises(ValueError, match=told):
            ObjectiveConfig(**settings)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (OptimizerConfig, {"beta1": 1.5}, "optimizer.beta1 = 1.5: must be 0 or more and below 1"),
        (OptimizerConfig, {"beta2": -0.1}, "optimizer.beta2 = -0.1: must be 0 or more and below 1"),
        (OptimizerConfig, {"epsilon": 0.0}, "optimizer.epsilon = 0.0: must be above 0"),
        (OptimizerConfig, {"weight_decay": -1.0}, "optimizer.weight_decay = -1.0: must be 0 or more"),
        (ObjectiveConfig, {"beta_start": -0.1}, "objective.beta_start, beta_end = (-0.1, 0.012): must satisfy 0 < "),
        (ObjectiveConfig, {"beta_end": 1.5}, "objective.beta_start, beta_end = (0.00085, 1.5): must satisfy 0 < "),
        (OrderConfig, {"mixing": {"web": math.inf}}, "order.mixing = {'web': inf}: each share must be above 0 and fin"),
        (WatchConfig, {"hang_s": 1e20}, "watch.hang_s = 1e+20: must be above 0 and at most 31536000, or null"),
    ],
)
def test_numbers_that_would_fail_on_the_ranks_are_refused_before(kind: type, changes: dict, told: str) -> None:
    with pytest.raises(BadInput) as refused:
        kind(**changes)
    assert str(refused.value).startswith(told)


def test_a_seed_that_torch_does_not_take_is_refused() -> None:
    torch.Generator().manual_seed(2**63 - 1)
    with pytest.raises(BadInput, match=r"seed = 9223372036854775808: must be 0 or more and below 2\^63"):
        dataclasses.replace(base(), seed=2**63)


@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (4, 2), (2, 4)])
def test_batch_arithmetic_of_256_gpus_holds(micro: int, accumulation: int) -> None:
    BatchConfig(global_batch=2048, micro_batch=micro, grad_accumulation=accumulation).check(256)


def test_impossible_batch_arithmetic_names_values_and_fix() -> None:
    with pytest.raises(ValueError, match=r"3 ranks x micro_batch 8 x .* = 24, but global_batch = 2048"):
        BatchConfig().check(3)
    with pytest.raises(ValueError, match=r"set batch.grad_accumulation to 2"):
        BatchConfig().check(128)


@pytest.mark.parametrize(
    ("flags", "code", "printed", "told"),
    [
        (["--ranks", "auto"], 0, "2 ranks x micro-batch 2 x accumulation 1 = 4: adds up", ""),
        (["--ranks", "auto", "--batch.global_batch", "5"], 2, "2 ranks x micro-batch 2 x accumulation 1 = 4: not", ""),
        (["--ranks", "2"], 0, "2 ranks x micro-batch 2 x accumulation 1 = 4: adds up", ""),
        (["--ranks", "3"], 2, "3 ranks x micro-batch 2 x accumulation 1 = 6: not the global batch 4;", "--ranks"),
        (
            ["--ranks", "4", "--batch.micro_batch", "null"],
            0,
            "4 ranks x micro-batch 1 x accumulation 1 = 4: adds up",
            "",
        ),
    ],
)
def test_a_dry_run_of_a_batch_that_does_not_fit_prints_the_plan_and_ends_with_2(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, printed: str, told: str
) -> None:
    try:
        ended = main(["base", "--config", str(tiny.config), "--dry-run", *flags])
    except SystemExit as stopped:
        ended = stopped.code
    shown = capsys.readouterr()
    assert ended == code
    assert printed in shown.out and told in shown.err
    assert shown.err.count("\n") == (1 if code else 0)


def test_misspelt_keys_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown key dedupe: did you mean dedup\?"):
        section({"root": "r", "dedupe": {}}, "base")
    with pytest.raises(ValueError, match=r"unknown key train.bass: did you mean train.base\?"):
        section({"train": {"bass": {}}}, "base")
    with pytest.raises(
        ValueError,
        match=r"unknown key train.base.lr; --help-all",
    ):
        section({"train": {"base": {"lr": 1}}}, "base")
    assert section({"root": "r", "train": {"base": {"steps": 3}}}, "base") == {"root": "r", "steps": 3}


def test_bad_input_is_one_line_and_code_2(tiny: Tiny, tmp_path: Path) -> None:
    wrong_batch = tiny.variant(tmp_path / "wrong", batch={"global_batch": 5, "micro_batch": 2, "grad_accumulation": 1})
    for arguments, word in (
        (["base"], "--init"),
        (["both"], "base or refiner"),
        (["base", "--config", str(tiny.config), "--unet.block_chanels", "[8]"], "block_chanels"),
        (["base", "--config", str(wrong_batch)], "global_batch = 5"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "train.run", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(TRAIN.parent), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert word in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_settings_import_neither_torch_nor_ray() -> None:
    code = "import sys, train.run, train.recipes; print({'torch', 'ray', 'deepspeed', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TRAIN.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
