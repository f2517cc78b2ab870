"""DeepSpeed's dictionary, its gradients beside plain torch's, and what it reduces."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.synthetic_root import Tiny
from train.config import BatchConfig
from train.launch import run_ranks
from train.recipes import base
from train.self_test import WrongGradient, check
from train.zero_settings import check_understood, deepspeed_settings

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    batch = BatchConfig(global_batch=8, micro_batch=4, grad_accumulation=2)
    return deepspeed_settings(dataclasses.replace(base(), batch=batch), on_gpu=False)


def understood(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    from train.engine import parse

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return parse(settings)


def test_deepspeed_understands_every_setting(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read = understood(settings, monkeypatch)
    check_understood(settings, read)
    assert (read.zero_config.stage, read.gradient_clipping, read.grad_accum_dtype) == (2, 1.0, "fp32")
    assert (read.bfloat16_config.enabled, read.bfloat16_config.bf16_master_weights_and_grads) == (True, False)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("gradient_clipping",), "gradient_cliping"),
        (("data_types", "grad_accum_dtype"), "gradient_accumulation_dtype"),
        (("optimizer", "params", "betas"), "beta"),
        (("communication_data_type",), "comm_data_type"),
    ],
)
def test_a_key_that_deepspeed_would_pass_over_is_refused_by_name(
    path: tuple[str, ...], wrong: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = copy.deepcopy(settings)
    section = settings
    for key in path[:-1]:
        section = section[key]
    section[wrong] = section.pop(path[-1])
    read = understood(settings, monkeypatch)  # without a word
    with pytest.raises(ValueError, match=rf"{'.'.join([*path[:-1], wrong])}: DeepSpeed knows no such key"):
        check_understood(settings, read)


def test_deepspeeds_own_models_refuse_theirs(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    zero = settings["zero_optimization"] | {"overlap_com": True}
    with pytest.raises(ValueError, match="overlap_com"):
        understood(settings | {"zero_optimization": zero}, monkeypatch)


def test_a_value_that_deepspeed_reads_otherwise_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = understood(settings | {"gradient_clipping": 2.0}, monkeypatch)
    with pytest.raises(ValueError, match=r"gradient_clipping = 1.0: DeepSpeed read 2.0"):
        check_understood(settings, read)


def test_wrong_gradients_are_named_with_both_norms() -> None:
    check("bf16", 2.01, 2.0, 0.1)
    with pytest.raises(WrongGradient, match=r"has norm 4, plain torch's 2, their difference 2"):
        check("bf16", 4.0, 2.0, 2.0)
    with pytest.raises(WrongGradient, match=r"has norm 2, plain torch's 2, their difference 0.5"):
        check("bf16", 2.0, 2.0, 0.5)
    with pytest.raises(WrongGradient, match="norm nan"):
        check("fp32", float("nan"), 2.0, 0.0)


def test_two_ranks_pass_the_self_test_catch_wrong_gradients_and_reduce_once_a_pass(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert run_ranks("tests.train.zero_on_two_ranks", ["--config", str(tiny.config)], 2) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_and_fused_kernels_hand_deepspeed_the_right_gradient() -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    command = [sys.executable, "-m", "tests.train.zero_on_a_gpu"]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("passed with") == 4
