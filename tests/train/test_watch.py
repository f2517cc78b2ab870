"""The watchdog on two ranks of which one hangs, and the detector of loss spikes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.watch import SpikeDetector, WatchConfig, Watchdog

REPOSITORY = Path(__file__).parents[2]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_rank_prints_its_stack_where_one_hangs(tmp_path: Path) -> None:
    ranks = f"run_ranks('tests.train.rank_that_hangs', [{str(tmp_path)!r}], 2)"
    done = python("-c", f"from train.launch import run_ranks; raise SystemExit({ranks})")
    assert done.returncode == 0, done.stderr[-2000:]
    waiting, late = ((tmp_path / f"rank-{rank}").read_text() for rank in range(2))
    assert "in barrier" in waiting and "in comes_late" in late
    assert waiting.count("Timeout (0:00:01)!") >= 2 and late.count("Timeout (0:00:01)!") >= 2  # again and again


def test_a_dog_that_stops_ends_the_process() -> None:
    hangs = """if True:
        import time
        from train.watch import Watchdog, WatchConfig
        Watchdog(WatchConfig(hang_s=0.2, on_hang="stop")).fed()
        time.sleep(60)
    """
    done = python("-c", hangs)
    assert done.returncode == 1 and "Timeout" in done.stderr


def test_a_fed_dog_is_silent_and_a_hungry_one_barks_again() -> None:
    hungry = """if True:
        import time
        from train.watch import Watchdog, WatchConfig
        dog = Watchdog(WatchConfig(hang_s=0.5))
        for _ in range(5):
            dog.fed()
            time.sleep(0.2)
        print("fed", flush=True)
        time.sleep({hang_s})
        dog.off()
        time.sleep(0.7)
    """
    assert python("-c", hungry.format(hang_s=0.1)).stderr == ""
    barked = python("-c", hungry.format(hang_s=1.4))
    assert barked.returncode == 0 and barked.stderr.count("Timeout (0:00:00.500000)!") >= 2


def test_no_time_means_no_dog() -> None:
    Watchdog(WatchConfig(hang_s=None)).fed()  # would need a file for its bark


def test_a_jump_is_a_spike_and_does_not_move_the_median() -> None:
    rng = np.random.default_rng(0)
    detector = SpikeDetector(WatchConfig(spike_window_steps=100))
    losses = 0.1 + 0.01 * rng.standard_normal(400)
    assert not any(detector.spikes(float(loss)) for loss in losses)
    last = losses[-100:]
    spread = np.median(np.abs(last - np.median(last))) / 0.6745
    for _ in range(200):
        assert detector.spikes(1.0)
    assert detector.deviations(1.0) == pytest.approx((1.0 - np.median(last)) / spread)
    assert not detector.spikes(0.1)


def test_none_is_judged_before_enough_is_known_and_null_looks_for_none() -> None:
    detector = SpikeDetector(WatchConfig(spike_window_steps=8))
    assert [detector.spikes(loss) for loss in (1.0, 50.0)] == [False, False]
    assert not any(SpikeDetector(WatchConfig(spike_deviations=None)).spikes(10.0**n) for n in range(20))


@pytest.mark.parametrize("wrong", [{"hang_s": 0.0}, {"spike_deviations": -1.0}, {"spike_window_steps": 2}])
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"watch.{next(iter(wrong))}"):
        WatchConfig(**wrong)  # type: ignore[arg-type]
