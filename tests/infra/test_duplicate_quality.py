"""The benchmark's arithmetic: pairs, truth, precision and recall, against counts made pair by pair."""

import importlib.util
import itertools
import sys
from math import comb
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "bench" / "duplicate_quality.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("duplicate_quality", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_scores_of_a_small_example(bench: ModuleType) -> None:
    """Pairs: right plain, right geometric, missed plain, missed geometric, wrong, rightly apart."""
    near = np.array([True, True, False, False, True, False])
    same = np.array([True, True, True, True, False, False])
    geometric = np.array([False, True, False, True, False, True])
    assert bench.scores(near, same, geometric) == {
        "pairs": 6,
        "duplicates": 4,
        "right": 2,
        "wrong": 1,
        "precision": round(2 / 3, 4),
        "recall": 0.5,
        "f1": round(4 / 7, 4),
        "recall_plain": 0.5,
        "recall_geometric": 0.5,
    }


def test_a_share_of_nothing_is_none(bench: ModuleType) -> None:
    none = np.zeros(3, bool)
    found = bench.scores(none, none, none)
    assert (found["precision"], found["recall"], found["f1"], found["recall_geometric"]) == (None, None, None, None)


@pytest.mark.parametrize("radius", [0, 4, 9])
def test_measured_rows_equal_a_count_pair_by_pair(bench: ModuleType, radius: int) -> None:
    rng = np.random.default_rng(0)
    distance = np.triu(rng.integers(0, 12, (9, 9)), 1)
    distance += distance.T
    pictures = [
        bench.Listed(path=Path(), name=str(at), set_name=name, group=f"{name}{at % 2}", is_geometric=at in (2, 3))
        for at, name in enumerate(["dup_pdq"] * 5 + ["dup_history"] * 2 + ["photos_coco"] * 2)
    ]
    rows = {(row["set"], row["radius_bits"]): row for row in bench.measured(pictures, {"phash64": distance})}
    for name, members in (("dup_pdq", range(5)), ("all", range(9))):
        pairs = list(itertools.combinations(members, 2))
        same = [pair for pair in pairs if pictures[pair[0]].group == pictures[pair[1]].group]
        near = [pair for pair in pairs if distance[pair] <= radius]
        turned = [pair for pair in same if pictures[pair[0]].is_geometric or pictures[pair[1]].is_geometric]
        row = rows[name, radius]
        right = len(set(near) & set(same))
        assert (row["pairs"], row["duplicates"], row["right"]) == (len(pairs), len(same), right)
        assert row["wrong"] == len(near) - right
        assert row["recall_geometric"] == round(len(set(near) & set(turned)) / len(turned), 4)


def test_a_pair_is_geometric_by_either_picture(bench: ModuleType) -> None:
    pictures = [
        bench.Listed(path=Path(), name="", set_name="", group=group, is_geometric=geometric)
        for group, geometric in (("a", False), ("a", True), ("b", False))
    ]
    same, geometric = bench.truth(pictures, np.array([[0, 1, 0], [1, 2, 2]]))
    assert (same.tolist(), geometric.tolist()) == ([True, False, False], [True, True, False])


def test_hamming_counts_differing_bits(bench: ModuleType) -> None:
    hashes = np.array([[0b1011, 0], [0b0010, 2**63]], np.uint64)
    assert bench.hamming(hashes, hashes).tolist() == [[0, 3], [3, 0]]


def test_a_flat_picture_is_near_to_none(bench: ModuleType) -> None:
    eight = np.zeros((3, 8), np.uint64)
    found = bench.Hashed(
        phash64_N8=eight,
        left_out=np.array([False, False, True]),
        pdq_N84=np.repeat(eight[:, None, :4], 8, axis=1),
        pdq_usable=np.array([True, False, True]),
        imagehash_N=eight[:, 0],
        imagededup_N=eight[:, 0],
        imagededup_usable=np.ones(3, bool),
    )
    distances = bench.distances_of(found)
    never = bench.NEVER
    assert distances["phash64"].tolist() == [[0, 0, never], [0, 0, never], [never, never, never]]
    assert distances["phash64 and PDQ"][0].tolist() == [0, never, never]
    assert distances["imagehash"].max() == 0


def test_a_turned_picture_is_found_in_either_order(bench: ModuleType) -> None:
    eight = np.array([[1, 2, 4, 8, 16, 32, 64, 128], [2, 3, 3, 3, 3, 3, 3, 3]], np.uint64)
    pdq = np.zeros((2, 8, 4), np.uint64)
    pdq[1], pdq[0, 2] = 2**64 - 1, 2**64 - 1  # only the second turn, 2 bits away, has the PDQ of the other picture
    found = bench.Hashed(
        phash64_N8=eight,
        left_out=np.zeros(2, bool),
        pdq_N84=pdq,
        pdq_usable=np.ones(2, bool),
        imagehash_N=eight[:, 0],
        imagededup_N=eight[:, 0],
        imagededup_usable=np.ones(2, bool),
    )
    distances = bench.distances_of(found)
    assert distances["phash64"].tolist() == [[0, 2], [2, 0]]
    assert distances["phash64, flips and turns"].tolist() == [[0, 0], [0, 0]]
    assert distances["phash64 and PDQ, flips and turns"].tolist() == [[0, 2], [2, 0]]


def test_chance_share_is_that_of_all_hashes_of_32_ones(bench: ModuleType) -> None:
    assert bench.chance_share(64) == 1.0
    assert bench.chance_share(3) == bench.chance_share(2) == (1 + 32 * 32) / comb(64, 32)


def test_without_the_peers_it_says_how_to_make_them(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PEERS_PYTHON", bench.PROJECT / ".venv-absent" / "bin" / "python")
    monkeypatch.setattr(sys, "argv", ["duplicate_quality.py"])
    with pytest.raises(SystemExit) as left:
        bench.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == ".venv-absent/bin/python is missing: make it with `make peers`\n"
