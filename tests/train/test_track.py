"""Curves, pictures, and what is counted for them: TensorBoard, W&B, timestep bins, MFU, the clock."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from curate.bad_input import BadInput
from tests.train.synthetic_root import Tiny
from tests.train.test_data import settings_of
from train import flops, track
from train.clock import Clock
from train.config import ObjectiveConfig
from train.flops import Utilisation, peak_flops
from train.plan.network import count_unet
from train.recipes import RECIPES
from train.report import Report
from train.validation import BINS, bin_names, bin_of

BLOCK = 32 * 1024  # bytes


def picture() -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), (255, 0, 10), np.uint8))


def wandb_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of an offline log: LevelDB's format, whose blocks of 32 KiB split a record at will."""
    at, record = 7, b""  # after the header of the file
    while at < len(log):
        left = -at % BLOCK
        if 0 < left < 7:  # too little for the header of a piece: zeros up to the next block
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, at)
        record += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, last; 2 and 3 go on
            yield record
            record = b""


def logged_losses(log: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of each row of history that has one."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in wandb_records(log.read_bytes()):
        items = Record.FromString(data).history.item
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
        if "loss" in row:
            found.append((row["step"], row["loss"]))
    return found


def test_tensorboard_has_curves_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path, active=True, steps=10, track="tensorboard")
    report.metrics(3, {"loss": 0.5, "mfu": 0.25})
    report.picture(3, "grid", picture())
    report.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (loss,) = events.Scalars("loss")
    assert (loss.step, loss.value) == (3, 0.5)
    (drawn,) = events.Images("grid")
    assert (drawn.step, drawn.width, drawn.height) == (3, 6, 4)


def test_wandb_keeps_curves_and_a_continued_run_goes_on_in_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    ids = []
    for step in (3, 4):
        report = Report(tmp_path, active=True, steps=10, track="wandb")
        report.metrics(step, {"loss": 0.5})
        report.picture(step, "grid", picture())
        report.close()
        wandb.teardown()  # as at exit: its service has written the log whole only then
        ids.append((tmp_path / "wandb_run.json").read_text())
    assert ids[0] == ids[1]
    logs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    assert [logged_losses(log) for log in logs] == [[(3, 0.5)], [(4, 0.5)]]
    assert not (tmp_path / "tensorboard").exists()


def test_a_missing_tracker_is_one_line(tmp_path: Path) -> None:
    with mock.patch.object(track, "find_spec", return_value=None), pytest.raises(BadInput) as raised:
        track.start_tracker("wandb", tmp_path)
    assert str(raised.value) == (
        "track = 'wandb': the package is not installed; pip install wandb, or set track to tensorboard"
    )


@pytest.mark.parametrize(("low", "high"), [(0, 999), (0, 199), (3, 12)])
def test_bins_part_the_drawn_timesteps_evenly(low: int, high: int) -> None:
    objective = ObjectiveConfig(timestep_low=low, timestep_high=high)
    timesteps = torch.arange(low, high + 1)
    bins = bin_of(objective, timesteps)
    names = bin_names(objective)
    assert len(names) == BINS == 8
    sizes = torch.bincount(bins, minlength=BINS)
    assert int(sizes.max() - sizes.min()) <= 1
    for number, name in enumerate(names):
        first, last = map(int, name.split("/")[1].split("-"))
        assert timesteps[bins == number].tolist() == list(range(first, last + 1))


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("a CPU", "bf16", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, precision: str, tflops: float | None) -> None:
    assert peak_flops(name, precision) == (None if tflops is None else tflops * 1e12)


def test_mfu_is_useful_work_over_the_peak_of_all_devices(tiny: Tiny) -> None:
    config = dataclasses.replace(settings_of(tiny), precision="bf16")
    on_cpu = Utilisation(config, torch.device("cpu"), 2)
    assert on_cpu.values(10.0) == {}
    assert "no peak is known for a CPU" in on_cpu.told
    with mock.patch.object(flops.torch.cuda, "get_device_name", return_value="NVIDIA H100 80GB HBM3"):
        utilisation = Utilisation(config, torch.device("cuda"), 2)
    work = 3 * count_unet(config, "none").forward_flops
    assert utilisation.values(100.0)["mfu"] == pytest.approx(100.0 * work / (2 * 989.4e12))


@pytest.mark.parametrize(("model", "tflop"), [("base", 20.28), ("refiner", 21.86)])
def test_work_of_the_published_networks_is_that_of_their_layers_products(model: str, tflop: float) -> None:
    """Twice the multiply-adds, forward and backward; what attention's kernels do again is not counted."""
    with mock.patch.object(flops.torch.cuda, "get_device_name", return_value="NVIDIA H100 80GB HBM3"):
        utilisation = Utilisation(RECIPES[model](), torch.device("cuda"), 1)
    assert utilisation.values(1.0)["mfu"] == pytest.approx(tflop / 989.4, rel=5e-4)


@pytest.mark.parametrize(
    ("seconds", "left"), [(3_661.0, "01:01:01"), (86_399.9, "23:59:59"), (280_920.0, "78:02:00"), (4e7, "11111:06:40")]
)
def test_the_time_left_is_told_beyond_a_day(
    seconds: float, left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, active=True, steps=9, track="tensorboard")
    report.progress(1, {"loss": 0.5, "lr": 1e-4, "images_per_s": 8.0, "grad_norm": 1.0}, seconds)
    report.close()
    assert capsys.readouterr().out.endswith(f"  {left} left\n")


def test_a_line_that_a_full_disk_cut_off_is_removed_at_the_next_start(tmp_path: Path) -> None:
    whole = b'{"step": 1, "loss": 0.5}\n'
    for before, after in ((b"", b""), (whole, whole), (whole + b'{"step": 2, "lo', whole), (b'{"step": 1, "lo', b"")):
        (tmp_path / "metrics.jsonl").write_bytes(before)
        report = Report(tmp_path, active=True, steps=9, track="tensorboard")
        report.metrics(3, {"loss": 0.25})
        report.close()
        lines = (tmp_path / "metrics.jsonl").read_bytes()
        assert lines.startswith(after) and json.loads(lines.removeprefix(after))["step"] == 3


def test_pauses_are_not_counted(tiny: Tiny) -> None:
    clock = Clock(0, settings_of(tiny))
    time.sleep(0.05)
    before = clock.images_per_s(1)
    with clock.paused():
        time.sleep(0.5)
    assert clock.images_per_s(1) == pytest.approx(before, rel=0.5)
