"""train.plan: what is counted against torch and real steps, the simulated step against sums by hand, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.train.synthetic_root import Tiny
from train.config import TrainConfig
from train.launch import run_ranks
from train.plan.__main__ import main
from train.plan.gpus import Assumptions, Gpu
from train.plan.memory import Frozen, memory_gb, needed_gb
from train.plan.network import build, count, count_unet, inputs
from train.plan.step import bars, collective_s, simulate
from train.recipes import RECIPES
from train.settings import read_train_settings
from train.speed import SpeedConfig, ZeroConfig

REPOSITORY = Path(__file__).parents[2]
GPU = Gpu(memory_gb=80.0, peak_tflops=1.0, intra_gb_s=100.0, price=2.0)
ASSUMED = Assumptions(mfu=1.0, inter_gb_s=5.0, link_efficiency=0.5, hop_us=0.0, node_read_gb_s=8.0)


@pytest.fixture
def config(tiny: Tiny) -> TrainConfig:
    read: TrainConfig = read_train_settings("base", ["--config", str(tiny.config)], prog="test", description="")[0]
    return replace(read, zero=ZeroConfig(stage=2, reduce_bucket_elements=500, reduce_dtype="fp32"))


def test_planned_memory_is_what_real_steps_on_two_ranks_hold(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert run_ranks("tests.train.plan_on_two_ranks", ["--config", str(tiny.config)], 2) == 0


def test_operations_are_those_of_torchs_counter(config: TrainConfig) -> None:
    unet, batch = build(config, "none"), inputs(config, 2)
    counted = count(unet, batch)
    with FlopCounterMode(display=False) as flops:
        loss = unet(**batch, return_dict=False)[0].square().mean()
        forward = flops.get_total_flops()
        loss.backward()
    assert (counted.forward_flops, counted.all_flops) == (forward, flops.get_total_flops())


def test_recomputing_saves_less_and_computes_more(config: TrainConfig) -> None:
    none, every = count_unet(config, "none"), count_unet(config, "all")
    assert every.saved_bytes < none.saved_bytes
    assert every.peak_bytes < none.peak_bytes
    assert every.forward_flops == none.forward_flops
    assert none.all_flops < every.all_flops <= none.all_flops + none.forward_flops


def test_what_is_held_grows_with_the_batch(config: TrainConfig) -> None:
    one, four = (count(build(config, "all"), inputs(config, images)) for images in (1, 4))
    assert four.saved_bytes == pytest.approx(4 * one.saved_bytes, rel=0.01)
    assert four.peak_bytes == pytest.approx(4 * one.peak_bytes, rel=0.1)


@pytest.mark.parametrize(("model", "tflop"), [("base", 6.761), ("refiner", 7.286)])
def test_the_published_networks_cost_what_summing_their_layers_gives(model: str, tflop: float) -> None:
    """2 x multiply-adds of convolutions, linear layers and attention, summed by hand for 1024 x 1024."""
    counted = count_unet(RECIPES[model](), "none")
    assert counted.forward_flops / 1e12 == pytest.approx(tflop, rel=2e-3)
    assert 3.0 * counted.forward_flops == pytest.approx(counted.all_flops, rel=0.03)


def test_fused_kernels_keep_what_a_gpu_was_seen_to_keep() -> None:
    """Most was allocated where the passes were captured, before AdamW had moments; docs/training_speed.md has both."""
    fast = SpeedConfig(channels_last=True, fused_kernels=True, cuda_graphs=True)
    config = replace(RECIPES["base"](), speed=fast, zero=ZeroConfig(stage=1))
    counted = count_unet(config, "none")
    nothing = Frozen(parameters=0, flops_an_image=0.0, peak_bytes=0)
    for micro_batch, measured_gb in ((8, 78.14), (16, 124.67)):
        items = memory_gb(config, 2_567_463_684, counted, nothing, ranks=1, micro_batch=micro_batch)
        moments_gb = items["fp32 masters and two moments"] * 2 / 3
        assert needed_gb(items) - items["EMA"] - moments_gb == pytest.approx(measured_gb, rel=0.01)
    assert counted.forward_flops / 1e12 == pytest.approx(6.761, rel=2e-3)


def test_a_ring_moves_its_bytes_over_the_slower_link() -> None:
    # 50 GB/s reached in a node; 5 GB/s x 8 adapters x 0.5 between nodes
    assert collective_s(100e9, 1.0, 1, GPU, ASSUMED) == 0.0
    assert collective_s(100e9, 1.0, 4, GPU, ASSUMED) == pytest.approx(75 / 50)
    assert collective_s(100e9, 2.0, 16, GPU, ASSUMED) == pytest.approx(2 * 93.75 / 20)
    hops = replace(ASSUMED, hop_us=1e6)
    assert collective_s(0.0, 2.0, 16, GPU, hops) == pytest.approx(8.0)


def step_of(config: TrainConfig, **changes: object) -> dict[str, float]:
    arguments = {
        "parameters": 1000,
        "pass_flops": 3e12,
        "accumulation": 2,
        "ranks": 2,
        "read_bytes": 1e9,
        "gpu": replace(GPU, intra_gb_s=2000e-9),  # 1,000 bytes a second are reached
        "assumed": ASSUMED,
        "speed_flops": 1e12,
    }
    step = simulate(config, **{**arguments, **changes})  # type: ignore[arg-type]
    return {name: getattr(step, name) for name in vars(step) if name != "spans"}


def test_buckets_are_reduced_beside_the_backward_pass(config: TrainConfig) -> None:
    """Two buckets of 500 x 4 bytes take 2 s each; they are ready at 2 and 3 s of each pass of 3 s."""
    step = step_of(config)
    # 2..4, 4..6, 6..8 (ready at 5), 8..10 (ready at 6); the gather takes 2 x 500 x 4 / 2 / 1,000 s
    assert step["compute_s"] == pytest.approx(6.0)
    assert step["reduce_s"] == pytest.approx(8.0)
    assert step["reduce_exposed_s"] == pytest.approx(4.0)
    assert step["gather_s"] == pytest.approx(2.0)
    assert step["step_s"] == pytest.approx(12.0)


def test_without_overlap_each_pass_waits_for_its_reduction(config: TrainConfig) -> None:
    step = step_of(replace(config, zero=replace(config.zero, overlap_comm=False)))
    assert step["step_s"] == pytest.approx(3.0 + 4.0 + 3.0 + 4.0 + 2.0)


def test_zero_1_reduces_in_the_last_pass_only(config: TrainConfig) -> None:
    step = step_of(replace(config, zero=replace(config.zero, stage=1)))
    assert step["reduce_s"] == pytest.approx(4.0)
    assert step["step_s"] == pytest.approx(5.0 + 4.0 + 2.0)


def test_one_gpu_has_no_network_and_slow_reading_sets_the_step(config: TrainConfig) -> None:
    assert step_of(config, ranks=1)["step_s"] == pytest.approx(6.0)
    assert step_of(config, ranks=1, read_bytes=30e9)["step_s"] == pytest.approx(30.0)


def test_bars_show_who_works_when(config: TrainConfig) -> None:
    step = simulate(
        config,
        parameters=1000,
        pass_flops=3e12,
        accumulation=1,
        ranks=2,
        read_bytes=4e9,
        gpu=replace(GPU, intra_gb_s=2000e-9),
        assumed=ASSUMED,
        speed_flops=1e12,
    )
    # reduced 2..4 and 4..6, gathered 6..8
    assert bars(step, width=8) == ["compute |FBB.....|", "network |..RRRRGG|", "data    |DDDD....|"]


def test_plan_recommends_what_fits_and_is_fastest(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["base", "--config", str(tiny.config), "--batch.global_batch", "64", "--gpus", "8"]
    assert main([*flags, "--json", "--svg", f"{tmp_path}/step.svg"]) == 0
    told = json.loads(capsys.readouterr().out)
    fitting = [shape for shape in told["shapes"] if shape["fits"]]
    assert told["recommended"]["step_s"] == min(shape["step_s"] for shape in fitting)
    assert {(shape["micro_batch"] * shape["accumulation"]) for shape in told["shapes"]} == {8}
    chosen = told["recommended"]
    at_the_peak = [chosen["memory_gb"][name] for name in chosen["held_at_the_peak"]]
    assert sum(at_the_peak) == pytest.approx(chosen["memory_gb_needed"])
    assert [*told["by_gpus"]] == ["8", "16", "32", "64"]
    assert told["money"] == pytest.approx(told["gpu_hours"] * told["gpu"]["price"])
    bands = ElementTree.parse(f"{tmp_path}/step.svg").getroot().findall("{http://www.w3.org/2000/svg}rect")
    assert len(bands) == 5 + sum(len(step["spans"]) for step in told["by_gpus"].values())


def test_plan_for_people_names_settings(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base", "--config", str(tiny.config), "--gpus", "2", "--gpu", "l40s", "--price", "1.5"]) == 0
    printed = capsys.readouterr().out
    assert "recommended: batch.micro_batch 2, batch.grad_accumulation 1, speed.activation_checkpointing none" in printed
    assert " US dollars at 1.5 an hour" in printed


def test_a_network_that_does_not_fit_is_said(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["base", "--config", str(tiny.config), "--gpus", "2", "--reserved_gb", "80"])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "gpu = h100: nothing fits into its 80 GB, the least is 1.6; take more GPUs" in printed.err
    assert "no  " in printed.out  # the table comes all the same


def test_a_drawing_of_no_number_of_gpus_is_one_line(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["base", "--config", str(tiny.config), "--gpus", "4", "--svg", str(tmp_path / "steps.svg")])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    numbers = "8, 16, 32, 64, 128, 256, 512, 1024"
    assert f"nothing to draw: none of {numbers} GPUs make up global_batch 4 within their memory" in printed.err
    assert "images/s" in printed.out  # the plan comes all the same


def test_the_configured_shape_is_marked_or_said_not_to_fit(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["base", "--config", str(tiny.config), "--batch.global_batch", "12", "--gpus", "2"]
    assert main([*flags, "--batch.micro_batch", "3", "--batch.grad_accumulation", "2"]) == 0
    marked = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("as configured")]
    assert [line[:3] for line in marked] == [["3", "2", "none"]]
    assert main([*flags, "--batch.micro_batch", "null", "--batch.grad_accumulation", "2"]) == 0
    assert "      3      2          none" in capsys.readouterr().out
    assert main([*flags, "--batch.micro_batch", "3", "--batch.grad_accumulation", "1"]) == 0
    assert "the settings' own batch is none of these: batch: 2 ranks x micro_batch 3 x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpus", "0"], "gpus = 0: must be at least 1"),
        (["--gpus", "3"], "gpus = 3: batch.global_batch 4 of the settings is no multiple; take 2 or 4"),
        (
            ["--gpus", "100", "--batch.global_batch", "2048"],
            "global_batch 2048 of the settings is no multiple; take 64 or 128",
        ),
        (["--gpus", "5"], "gpus = 5: batch.global_batch 4 of the settings is no multiple; take 4\n"),
        (["--gpus", "2", "--mfu", "1.5"], "mfu = 1.5: must be above 0"),
        (["--link_efficiency", "0"], "link_efficiency = 0.0: must be above 0 and at most 1"),
        (["--gpus_per_node", "0"], "gpus_per_node = 0: must be above 0"),
        (["--node_read_gb_s", "-1"], "node_read_gb_s = -1.0: must be above 0"),
        (["--hop_us", "-3"], "hop_us = -3.0: must be 0 or more"),
        (["--fragmentation", "1"], "fragmentation = 1.0: must be 0 or more and below 1"),
        (["--price", "-1"], "price = -1.0: must be 0 or more"),
    ],
)
def test_bad_flags_are_one_line(tiny: Tiny, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["base", "--config", str(tiny.config), *flags])
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_saved_bytes_are_those_that_autograd_packs(config: TrainConfig) -> None:
    """An oracle of its own: every storage that autograd keeps for the backward pass, weights left out."""
    unet, batch = build(config, "none"), inputs(config, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = unet(**batch, return_dict=False)[0].float().square().mean()
    assert loss.requires_grad
    held = sum(storage.nbytes() for storage in kept.values())
    assert count_unet(config, "none").saved_bytes == pytest.approx(held, rel=0.05)
