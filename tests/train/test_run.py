"""Whole runs on two CPU ranks: training, SIGTERM, checkpoints in S3 and errors there, export and sampling."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.train.synthetic_root import Tiny
from train.checkpoint.files import read_range, read_state, verify
from train.launch import adopt_launcher, run_ranks

REPOSITORY = Path(__file__).parents[2]


def command(config: Path, *flags: str, model: str = "base") -> list[str]:
    return [sys.executable, "-m", "train.run", model, "--config", str(config), *flags]


def losses(out: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    limit = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"the run ended before {path.name}"
        assert time.monotonic() < limit, f"no {path.name} after {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(tiny: Tiny) -> Path:
    """The base, six steps without interruption, in the root itself."""
    subprocess.run(command(tiny.config), cwd=REPOSITORY, check=True, capture_output=True)
    return tiny.root / "train/base"


def test_a_run_leaves_what_it_promises(whole_run: Path) -> None:
    record = json.loads((whole_run / "run.json").read_text())
    assert record["steps_done"] == 6
    assert record["dropped"] == 0
    assert record["text_towers_untrained"] is True
    assert record["val_loss_after"] < record["val_loss_before"]
    assert record["parameters"] == read_state(whole_run / "checkpoints/step-00000006").num_elements
    assert [step for step, _ in losses(whole_run)] == [1, 2, 3, 4, 5, 6]
    assert (whole_run / "checkpoints/latest").read_text() == "step-00000006"
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["data_wait_share"] <= 1 and line["memory_gb"] > 0.1 for line in lines if "lr" in line)
    assert (whole_run / "unet_ema/config.json").exists()


def test_bf16_trains_too(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.variant(tmp_path, precision="bf16")
    subprocess.run(command(config), cwd=REPOSITORY, check=True, capture_output=True)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["precision"] == "bf16"
    assert record["val_loss_after"] < record["val_loss_before"]


def test_ctrl_c_saves_and_ends_with_130(tiny: Tiny, tmp_path: Path) -> None:
    """As a terminal sends it: to every process of the group at once, loader processes among them."""
    config = tiny.variant(tmp_path, steps=10_000, keep_checkpoints=1, loader={"workers": 1})
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(config),
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(out / "run.json", process)
    os.killpg(process.pid, signal.SIGINT)
    printed, said = (text.decode() for text in process.communicate(timeout=60))
    assert process.returncode == 130
    assert "train.run: saving after this step; Ctrl-C again ends it without" in said
    assert "Traceback" not in said
    assert "stopped after step" in printed and "the same command continues from" in printed
    (saved,) = (out / "checkpoints").glob("step-*")
    verify(saved)


def test_any_stretch_of_the_flat_vector_is_read_across_parts(whole_run: Path) -> None:
    checkpoint = whole_run / "checkpoints/step-00000006"
    assert len(list(checkpoint.glob("part-*"))) == 2
    size = read_state(checkpoint).num_elements
    whole = read_range(checkpoint, "master", 0, size)
    third = -(-size // 3)
    pieces = torch.cat([read_range(checkpoint, "master", rank * third, third) for rank in range(3)])
    assert torch.equal(pieces[:size], whole)
    assert float(whole.abs().sum()) > 0.0


@pytest.mark.parametrize(("stage", "ranks"), [("1", 2), ("2", 1), ("2", 2), ("2", 4)])
def test_zero_and_partitioned_ema_equal_plain_ones(
    stage: str, ranks: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    words = ["--config", str(tiny.config), "--zero.stage", stage, "--batch.micro_batch", str(4 // ranks)]
    assert run_ranks("tests.train.zero_against_plain", words, ranks) == 0


def test_sigterm_waits_for_the_checkpoint_in_s3_and_another_world_size_continues(
    tiny: Tiny, tmp_path: Path, s3
) -> None:
    place = {"checkpoints": "s3://bucket/run"}
    config = tiny.variant(tmp_path, steps=10_000, checkpoint_every_steps=2, keep_checkpoints=1, **place)
    process = subprocess.Popen(command(config), cwd=REPOSITORY, stdout=subprocess.PIPE)
    wait_for(tmp_path / "out/run.json", process)
    process.terminate()
    printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0
    said = re.search(r"stopped after step (\d+); the same command continues from (s3://bucket/run/step-\d+)", printed)
    assert said is not None, printed
    assert "the first epoch carries" in printed and " 0 dropped; 0 of weight 0" in printed
    step, saved = int(said[1]), said[2]
    verify(saved)
    assert read_state(saved).step == step
    assert sorted(s3.ls("bucket/run")) == ["bucket/run/latest", saved.removeprefix("s3://")]
    assert not (tmp_path / "out/checkpoints").exists()
    alone = {"global_batch": 4, "micro_batch": 4, "grad_accumulation": 1}
    again = tiny.variant(tmp_path, steps=step + 1, batch=alone, ranks=1, **place)
    done = subprocess.run(command(again), cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert f"continuing after step {step} from {saved}" in done.stdout
    assert losses(tmp_path / "out")[-1][0] == step + 1


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.variant(tmp_path, steps=10_000, checkpoint_every_steps=2)
    place = tmp_path / "out/checkpoints/step-00000004"
    place.parent.mkdir(parents=True)
    place.write_text("a file where a folder should be")
    done = subprocess.run(command(config), cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = f"{place.parent}: a checkpoint could not be written: rank 0: FileExistsError: "
    assert f"train.run: {told}" in done.stderr and "rank 1: FileExistsError" in done.stderr
    verify(place.parent / "step-00000002")


def test_what_all_ranks_find_wrong_is_told_once(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.variant(tmp_path, speed={"attention": "cudnn"})
    done = subprocess.run(command(config), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("speed.attention = 'cudnn': needs a GPU") == 1
    assert "train.run: speed.attention" in done.stderr and "rank 1" not in done.stderr


def test_a_loss_spike_ends_the_run_where_it_should(tiny: Tiny, tmp_path: Path) -> None:
    watch = {"spike_deviations": 1e-3, "spike_window_steps": 8, "on_spike": "stop"}
    config = tiny.variant(tmp_path, watch=watch)  # any loss above the median is called a spike
    done = subprocess.run(command(config), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    named = re.search(r"step (\d): loss [\d.]+ is [\d.]+ deviations above the last ones; samples (.*)", done.stderr)
    assert named is not None, done.stderr[-2000:]
    assert int(named[1]) >= 3  # two losses are known before one is judged
    assert len(set(re.findall(r"\b[0-9a-f]{32}\b", named[2]))) == 4  # the global batch, of both ranks


def test_export_loads_back_equal_and_samples_are_drawn(whole_run: Path, tiny: Tiny, tmp_path: Path) -> None:
    from train import sample
    from train.export.__main__ import main as export

    online = tiny.variant(tmp_path, "refiner", source="images", steps=2, ranks=1, out=None)
    online_batch = ["--batch.micro_batch", "4"]
    subprocess.run(command(online, *online_batch, model="refiner"), cwd=REPOSITORY, check=True, capture_output=True)
    assert export(["--config", str(tiny.config)]) == 0
    assert sorted(path.name for path in (tiny.root / "export").iterdir()) == ["base", "refiner"]
    index = json.loads((tiny.root / "export/refiner/model_index.json").read_text())
    assert (index["_class_name"], index["requires_aesthetics_score"]) == ("StableDiffusionXLImg2ImgPipeline", True)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n\na red chair\n")
    assert sample.main(["--config", str(tiny.config), "--prompts", str(prompts), "--steps", "4"]) == 0
    first = Image.open(tiny.root / "samples.png").copy()
    assert first.size[0] == 2 * 192
    assert sample.main(["--config", str(tiny.config), "--prompts", str(prompts), "--steps", "4"]) == 0
    assert first.tobytes() == Image.open(tiny.root / "samples.png").tobytes()


def test_slurm_names_become_torchs() -> None:
    environ = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    environ |= {"SLURM_STEP_NODELIST": "node7", "SLURM_JOB_ID": "12"}
    assert adopt_launcher(environ)
    assert {name: environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node7",
    }
    assert not adopt_launcher({})


@pytest.mark.parametrize(
    ("launcher", "ranks_here"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x31),4", "SLURM_NODEID": "30"}, "8"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x31),4", "SLURM_NODEID": "31"}, "4"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x32)", "SLURM_NODEID": "0", "LOCAL_WORLD_SIZE": "8"}, "8"),  # torchrun's
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x32)", "SLURM_NODEID": "0", "LOCAL_SIZE": "6"}, "6"),  # deepspeed's
    ],
)
def test_a_rank_knows_how_many_share_its_machine(launcher: dict[str, str], ranks_here: str) -> None:
    """They share its memory: an error where that is too little would come too late, as a killed process."""
    environ = {name: "0" for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")} | launcher
    assert adopt_launcher(environ)
    assert environ["LOCAL_WORLD_SIZE"] == ranks_here


def test_own_ranks_know_how_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []

    class Child:
        returncode = 0

        def __init__(self, _words: list[str], env: dict[str, str]) -> None:
            told.append({name: env[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")})

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("train.launch.subprocess.Popen", Child)
    monkeypatch.setattr("train.launch.signal.signal", lambda *_: None)
    assert run_ranks("any", [], 2) == 0
    assert told == [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for rank in range(2)]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["0", "0"], 0),
        (["hang", "1"], 1),  # not -9, with which the other one is ended
        (["late1", "2"], 2),  # bad input of one rank; the other one lost its connection to it
        (["2", "late1"], 2),
        (["late3", "late3"], 3),
        (["killed", "hang"], 137),
        (["late1", "killed"], 137),
    ],
)
def test_the_code_is_that_of_the_rank_that_failed(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("train.launch.signal.signal", lambda *_: None)
    began = time.monotonic()
    assert run_ranks("tests.train.ranks_that_end", words, 2) == code
    assert time.monotonic() - began < 30.0  # and nobody waits for a rank that hangs


def test_half_a_launcher_is_one_line(tiny: Tiny) -> None:
    environ = os.environ | {"RANK": "0", "LOCAL_RANK": "0"}
    done = subprocess.run(
        command(tiny.config), cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    told = "RANK is set, as a launcher does, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT: set them, too, or unset RANK"
    assert done.stderr.splitlines()[-1] == f"train.run: {told}"


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    from train.loop import learning_rate
    from train.recipes import base

    optimizer = dataclasses.replace(base().optimizer, warmup_steps=10)
    module = torch.nn.Linear(1, 1)
    oracle_optimizer = torch.optim.SGD(module.parameters(), lr=optimizer.lr_peak)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(oracle_optimizer, T_max=89, eta_min=optimizer.lr_final)
    assert [learning_rate(optimizer, step, 100) for step in (0, 4, 9)] == pytest.approx([1e-5, 5e-5, 1e-4])
    for step in range(10, 100):
        assert learning_rate(optimizer, step, 100) == pytest.approx(cosine.get_last_lr()[0], rel=1e-5)
        oracle_optimizer.step()
        cosine.step()
    assert learning_rate(optimizer, 99, 100) == pytest.approx(1e-6)
