"""Traps that others fell into, in bf16 under ZeRO-2 on two real ranks; docs/traps.md says which test holds which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.synthetic_root import Tiny
from train.launch import run_ranks

REPOSITORY = Path(__file__).parents[2]
Facts = list[dict[str, Any]]
"""What each rank saw."""


@pytest.fixture(scope="module")
def facts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("traps")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(REPOSITORY))
        assert run_ranks("tests.train.traps_on_two_ranks", [str(folder), "--config", str(tiny.config)], 2) == 0
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_sizes_are_fp32_up_to_the_sinusoid_inside_the_engine(facts: Facts) -> None:
    for fact in facts:
        assert fact["applied"] is True and fact["dtype"] == "torch.bfloat16"
        assert fact["sizes"] == [[1333.0, 513.0]] * 2  # bf16 has 1336 and 512
        assert fact["sinusoid"] == "torch.float32"


def test_the_engine_holds_the_unet_alone(facts: Facts) -> None:
    for fact in facts:
        assert fact["parameters_inside"] == fact["parameters"] > 0
        assert (fact["frozen_inside"], fact["frozen_changed"]) == (0, 0)


def test_updates_too_small_for_bf16_are_not_lost(facts: Facts) -> None:
    for fact in facts:
        assert fact["small_plain"] == [1.0] * 8  # what weights in bf16 alone come to
        assert fact["small_weights"] == [0.98828125] * 8  # 0.99, as bf16 has it
    masters = facts[0]["small_master"] + facts[1]["small_master"]
    assert masters[:8] == pytest.approx([0.99] * 8, abs=1e-5)


def test_masters_and_averages_are_shared_out_over_the_ranks(facts: Facts) -> None:
    for fact in facts:
        elements, dtype = fact["master"]
        assert dtype == "torch.float32" and fact["ema"] == [elements, dtype]
        assert 0 <= 2 * elements - fact["parameters"] < 16  # ZeRO's padding


def test_an_evaluation_is_shared_out_and_ranks_are_patient(facts: Facts) -> None:
    assert [fact["cases"] for fact in facts] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [fact["timeout_s"] for fact in facts] == [1800.0, 1800.0]
