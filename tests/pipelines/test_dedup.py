"""The whole of dedup, without Ray, against brute force."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curate.dedup.records import LEFT_OUT
from curate.dedup.relations import NearByHash
from pipelines import dedup, dedup_ranking, dedup_sources
from pipelines.dedup import compare
from pipelines.dedup_index import earlier_entries, publish_entry
from pipelines.dedup_sources import sources_of
from pipelines.store import Root, commit, publish, table_file
from tests.pipelines.dedup_corpus import (
    PlainPool,
    alike,
    bits_between,
    by_brute_force,
    is_shown,
    random_rows,
    row,
    write_tables,
)

SEMANTIC = {"semantic_eps": 0.1, "semantic_clusters": 4, "semantic_nearest": 4}


def run(config) -> dict[str, dict[str, Any]]:
    """Return the rows of the duplicates table by uid."""
    sources, rows = sources_of(config, earlier_entries(config))
    made = compare(config, PlainPool(), sources, rows)
    tables = [Root(config.root).read_table(path) for path in made.files]
    found = {one["uid"]: one for table in tables for one in table.to_pylist()}
    assert sum(len(table) for table in tables) == len(found) == made.num_rows
    assert sum(count for name, count in made.counts.items() if name not in LEFT_OUT) == len(found)
    return found


def survivors_of(found: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {uid: one["survivor_uid"] for uid, one in found.items()}


CASES = {
    "by hash": {},
    "seven blocks": {"rows_per_block": 40},
    "no pairs at a time": {"max_pairs": 0},
    "wide radius": {"radius_bits": 10, "max_pairs": 500},
    "with embeddings": SEMANTIC,
    "embeddings in groups": SEMANTIC | {"rows_per_group": 50, "rows_per_block": 70},
    "embeddings, few pairs": SEMANTIC | {"max_pairs": 3},
    "confirmed": {"confirm_pdq_bits": 31},
    "equal hashes, confirmed": {"radius_bits": 0, "confirm_pdq_bits": 31},
    "turned": {"turns": "all", "rows_per_block": 90},
    "turned, confirmed": {"turns": "all", "confirm_pdq_bits": 31, "rows_per_block": 90},
    "flipped, confirmed": {"turns": "flips", "confirm_pdq_bits": 31},
    "error images": {"error_image_captions": 2},
    "error images by URL": {"error_image_captions": 99, "error_image_urls": 3},
    "shown in an evaluation": {"rows_per_block": 50},
    "shown, with embeddings": SEMANTIC | {"rows_per_block": 50},
    "shown, error images": {"error_image_captions": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_survivors_are_those_of_brute_force(case, tmp_path):
    rows = random_rows(len(case), 240)
    for at in range(0, 60, 3):  # a turn of the one after it, the half of them by PDQ, too; and a confirmed pair
        turn = (5, 1)[at % 2]
        rows[at]["phash64_turned"][turn] = rows[at + 1]["phash64"]
        rows[at]["pdq256_turned"][turn] = rows[at + 1 + at // 3 % 4 // 2]["pdq256"]
        confirming = rows[at + 2]["pdq256"]
        rows[at]["pdq256"] = confirming[:31] + bytes([confirming[31] ^ 7])
        rows[at]["pdq_quality"] = 100 if at % 2 else 49
        rows[at]["phash64"] = rows[at + 2]["phash64"] ^ at // 6 % 2
        rows[at]["phash64_turned"][2] = rows[at + 2]["phash64"]  # nearer, but not by PDQ
    for one in rows[::7] if case.startswith("shown") else ():
        one["source"] = "benchmark"
    alike(rows)
    config = write_tables(tmp_path, [rows[:100], [], rows[100:]], **CASES[case])
    found = run(config)
    assert survivors_of(found) == by_brute_force(rows, config.dedup)
    of_uid = {one["uid"]: one for one in rows}
    for uid, one in found.items():
        if one["kind"] == "perceptual":
            assert one["distance"] == bits_between(of_uid[uid], of_uid[one["survivor_uid"]], config.dedup)
    shown = {one["uid"] for one in rows if is_shown(one)}
    named = [one["survivor_uid"] for one in found.values() if one["survivor_uid"]]
    assert all(found[uid]["is_survivor"] != (uid in shown) for uid in named)
    of_shown = {uid for uid, one in found.items() if one["survivor_uid"] in shown}
    assert {uid for uid, one in found.items() if one["kind"] == "eval_set"} == of_shown >= shown


def test_no_order_of_files_and_no_size_of_blocks_changes_anything(tmp_path):
    rows = random_rows(3, 200)
    shuffled = [rows[at] for at in np.random.default_rng(0).permutation(200)]
    expected = run(write_tables(tmp_path / "a", [rows], **SEMANTIC))
    config = write_tables(tmp_path / "b", [shuffled[:30], shuffled[30:]], **SEMANTIC, rows_per_block=33, max_pairs=9)
    assert run(config) == expected


def test_kinds_distances_and_what_decided(tmp_path):
    large = row(1, width_px=200)
    rows = [
        large,
        large | {"uid": "f" * 32, "caption_reason": "too few words"},
        row(3, phash64=large["phash64"] ^ 3),
        row(4, embedding=large["embedding"], width_px=200, sharpness=1.0),
        row(5),
    ]
    found = run(write_tables(tmp_path, [rows], **SEMANTIC))
    told = [(one["kind"], one["distance"], one["won_by"]) for one in (found[each["uid"]] for each in rows)]
    assert told[:3] == [(None, None, None), ("exact", 0.0, "caption"), ("perceptual", 2.0, "resolution")]
    assert told[3][0::2] == ("semantic", "technical quality") and abs(told[3][1]) < 1e-3
    assert told[4] == (None, None, None)
    assert {one["cluster_id"] for one in found.values()} == {large["uid"], rows[4]["uid"]}
    assert [found[one["uid"]]["semantic_cluster"] is None for one in rows] == [False, True, False, False, False]


def test_an_error_image_has_no_survivor_and_stands_for_nobody(tmp_path):
    gone = row(0, width_px=999)
    rows = [row(at, sha256=gone["sha256"], phash64=gone["phash64"], width_px=999) for at in range(3)]
    rows.append(row(9, phash64=gone["phash64"]))
    found = run(write_tables(tmp_path, [rows[:2], rows[2:]]))
    assert [found[one["uid"]]["kind"] for one in rows] == ["error_image"] * 3 + [None]
    assert [found[one["uid"]]["survivor_uid"] for one in rows[:3]] == [None] * 3
    assert {found[one["uid"]]["cluster_id"] for one in rows[:3]} == {min(one["uid"] for one in rows[:3])}


LEFT = {"flat": {"entropy_bits": 0.5}, "text": {"text_share": 0.9}, "pdq_quality": {"pdq_quality": 49}}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_looks_like_everything_matches_by_bytes_only(reason, tmp_path):
    rows = [row(at, phash64=0, pdq256=bytes(32), **LEFT[reason]) for at in range(4)]
    rows += [rows[0] | {"uid": "f" * 32}, row(9, phash64=0, pdq256=bytes(32))]
    found = run(write_tables(tmp_path, [rows], confirm_pdq_bits=31))
    assert [found[one["uid"]]["left_out"] for one in rows] == [reason] * 5 + [None]
    assert sorted(str(one["kind"]) for one in found.values()) == ["None"] * 5 + ["exact"]


def test_copies_go_where_their_picture_goes(tmp_path):
    """Of an evaluation picture, of a survivor, and of what is near one."""
    shown, best = row(1, source="benchmark", width_px=1), row(2, width_px=900)
    near = row(3, phash64=best["phash64"] ^ 1)
    of_copy = {"source": "crawl", "caption_reason": "short"}
    copies = [one | of_copy | {"uid": f"{at:032x}"} for at, one in enumerate((shown, best, near))]
    found = run(write_tables(tmp_path, [[shown, *copies], [best, near]], rows_per_block=2))
    told = [[found[one["uid"]][name] for name in ("kind", "survivor_uid", "distance", "won_by")] for one in copies]
    assert told == [
        ["eval_set", shown["uid"], 0.0, "earlier"],
        ["exact", best["uid"], 0.0, "caption"],
        ["perceptual", best["uid"], 1.0, "resolution"],
    ]


def test_what_evaluation_has_training_does_not_get(tmp_path):
    shown = row(1, source="benchmark", width_px=1)
    other = row(2, source="benchmark", phash64=shown["phash64"], width_px=1)
    rows = [shown, other, row(3, phash64=shown["phash64"] ^ 1, width_px=900), row(4)]
    found = run(write_tables(tmp_path, [rows], rows_per_block=2))
    assert [found[one["uid"]]["kind"] for one in rows] == ["eval_set"] * 3 + [None]
    assert [found[one["uid"]]["survivor_uid"] for one in rows] == [
        shown["uid"],
        other["uid"],
        min(shown["uid"], other["uid"]),
        rows[3]["uid"],
    ]
    assert found[rows[2]["uid"]]["won_by"] == "earlier"
    assert [found[one["uid"]]["is_survivor"] for one in rows] == [False] * 3 + [True]


def published(config) -> dict[str, dict[str, Any]]:
    """Run, publish the table and the entry of the index."""
    found = run(config)
    root, name = Root(config.root), "all"
    files = {table_file("duplicates", "crawl-00000"): root.read(table_file("duplicates", "crawl-00000"))}
    receipt = commit(root, "duplicates", name, "tested", files, len(found), {})
    counts = {"survivors": sum(one["is_survivor"] for one in found.values())}
    publish(root, "duplicates", [receipt], {"counts": counts})
    publish_entry(config, ["crawl-00000"], PlainPool)
    return found


def test_a_second_crawl_is_compared_with_the_first_and_not_the_other_way_round(tmp_path):
    first, second = random_rows(1, 80), random_rows(2, 80)
    for at in range(0, 40, 2):
        second[at]["phash64"], second[at]["width_px"] = first[at]["phash64"] ^ 1, 999
        second[at + 1]["embedding"] = first[at + 1]["embedding"]
    alike(second)
    index = {"index": str(tmp_path / "index"), **SEMANTIC, "error_image_captions": 99}
    one, two = (write_tables(tmp_path / name, [rows], **index) for name, rows in (("a", first), ("b", second)))
    before = published(one)
    after = published(two)
    kept = [each for each in first if before[each["uid"]]["is_survivor"]]
    ahead = [each | {"width_px": 10**5} for each in kept]
    expected = by_brute_force(ahead + second, two.dedup)
    assert survivors_of(after) == {each["uid"]: expected[each["uid"]] for each in second}
    assert sum(one["won_by"] == "earlier" for one in after.values()) > 20
    assert earlier_entries(one) == [] and len(earlier_entries(two)) == 1
    assert published(one) == before


def test_a_lost_index_is_made_again(tmp_path, capsys):
    index = {"index": str(tmp_path / "index"), **SEMANTIC}
    one, two = (write_tables(tmp_path / name, [random_rows(1, 60)], **index) for name in "ab")
    published(one)
    expected = run(two)
    capsys.readouterr()
    assert sum(each["survivor_uid"] is not None for each in expected.values()) > 20
    for lost in ("*/*.parquet", "*"):
        for path in (tmp_path / "index").glob(lost):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        publish_entry(one, ["crawl-00000"], PlainPool)
        assert "dedup.index    1/1 fragments, 1 made" in capsys.readouterr().err
        assert run(two) == expected


def test_looking_for_earlier_corpora_writes_nothing(tmp_path):
    config = write_tables(tmp_path / "a", [random_rows(1, 5)], index=str(tmp_path / "index"))
    before = sorted(tmp_path.rglob("*"))
    assert earlier_entries(config) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_bytes_of_an_earlier_corpus(tmp_path):
    """A sample with them is a copy, one with the same uid as well; under too many captions they are an error image."""
    index = {"index": str(tmp_path / "index")}
    kept, again, seen = row(1), row(2), row(3)
    published(write_tables(tmp_path / "a", [[kept, again, seen]], **index))
    copy = kept | {"uid": "c" * 32, "width_px": 9000}
    many = [seen | {"uid": f"{at:032x}", "caption": f"another {at}"} for at in range(3)]
    found = run(write_tables(tmp_path / "b", [[copy, again, *many]], **index))
    told = {uid: (one["kind"], one["survivor_uid"], one["is_survivor"]) for uid, one in found.items()}
    assert told[copy["uid"]] == ("exact", kept["uid"], False)
    assert told[again["uid"]] == ("exact", again["uid"], False)
    assert [told[one["uid"]] for one in many] == [("error_image", None, False)] * 3
    assert {found[one["uid"]]["cluster_id"] for one in many} == {many[0]["uid"]}


def test_many_small_files_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup_sources, "MIN_BATCHES", 5)
    written, write = [], dedup_ranking.write_parts
    monkeypatch.setattr(
        dedup_ranking, "write_parts", lambda root, path, *more: written.append(path) or write(root, path, *more)
    )
    rows = random_rows(5, 120)
    parts = [rows[at : at + 4] for at in range(0, 120, 4)]
    config = write_tables(tmp_path, [*parts, []], **SEMANTIC, rows_per_block=50)
    monkeypatch.setattr(PlainPool, "cpus", 1)
    assert survivors_of(run(config)) == by_brute_force(rows, config.dedup)
    assert sum("/bytes/" in path for path in written) == 5


def test_an_index_of_another_model_is_refused(tmp_path):
    index = {"index": str(tmp_path / "index"), **SEMANTIC}
    published(write_tables(tmp_path / "a", [random_rows(1, 5)], **index))
    config = write_tables(tmp_path / "b", [random_rows(2, 5)], **index)
    Root(config.root).write_json("tables/features/_run.json", {"models": ["another"], "fragments": {}, "rows": 0})
    with pytest.raises(ValueError, match=r"has embeddings by \['a model'\], this corpus by \['another'\]"):
        earlier_entries(config)


NOT_DECODED = ("width_px", "height_px", "sharpness", "entropy_bits", "phash64", "pdq_quality", "jpeg_quality")


@pytest.mark.parametrize("settings", [{}, SEMANTIC, {"confirm_pdq_bits": 31}, {"turns": "flips"}])
def test_nothing_to_compare_is_no_error(settings, tmp_path):
    broken = [row(at, status="truncated", **dict.fromkeys(NOT_DECODED)) for at in range(3)]
    gone = [row(at, sha256=row(0)["sha256"]) for at in range(4)]
    cases = {"no rows": [[]], "none decoded": [broken, []], "all error images": [gone], "one": [broken, [row(9)]]}
    for name, parts in cases.items():
        for rows_per_block in (1, 100):
            config = write_tables(
                tmp_path / f"{name} {rows_per_block}", parts, **settings, rows_per_block=rows_per_block
            )
            rows = [one for part in parts for one in part if one["status"] == "ok"]
            assert survivors_of(run(config)) == by_brute_force(rows, config.dedup)


def test_blocks_are_of_about_equal_size(tmp_path, monkeypatch):
    """However unequal the files are: one of 900 rows, and nine of 20."""
    monkeypatch.setattr(dedup_ranking, "KEYS_A_BLOCK", 20)
    made = []
    make_block = dedup_ranking.make_block
    monkeypatch.setattr(dedup_ranking, "make_block", lambda *call: made.append(make_block(*call)) or made[-1])
    rows = [row(at, width_px=1 + at % 300) for at in range(1080)]
    parts = [rows[:900], *(rows[at : at + 20] for at in range(900, 1080, 20))]
    run(write_tables(tmp_path, parts, rows_per_block=270))
    sizes = [block.rows for block in made]
    assert len(sizes) == 4 and sum(sizes) == 1080 and max(sizes) < 400


def test_copies_in_the_index_cost_no_square(tmp_path):
    relation = NearByHash(words_WN=np.zeros((1, 400_000), np.uint64), radius=4)
    near, best = relation.near_fixed(200_000, 400_000)
    assert len(near) == 200_000 and not best.any()


def test_the_spelling_of_a_root_does_not_make_it_another_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_tables(tmp_path / "a", [random_rows(1, 30)], index=str(tmp_path / "in[d]ex*"))
    before = published(config)
    again = replace(config, root="./a")
    assert earlier_entries(again) == []
    assert published(again) == before


def test_too_few_clusters_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dedup, "ROWS_PER_CLUSTER", 40)
    for clusters, told in ((4, True), (10, False)):
        settings = {"semantic_eps": 0.1, "semantic_clusters": clusters, "semantic_nearest": 3}
        run(write_tables(tmp_path / str(clusters), [[row(at) for at in range(100)]], **settings))
        warning = "warning: 4 semantic clusters are few: 75 samples are searched in each; raise dedup.semantic_sample"
        assert (warning in "".join(capsys.readouterr())) == told


def test_features_of_other_samples_are_told(tmp_path):
    config = write_tables(tmp_path / "a", [[row(1), row(2)]])
    write_tables(tmp_path / "b", [[row(1), row(3)]])
    file = table_file("features", "crawl-00000")
    shutil.copyfile(tmp_path / "b" / file, tmp_path / "a" / file)
    with pytest.raises(ValueError, match=f"{file}: samples changed since: run python pipelines/embed.py first"):
        run(config)


def test_a_sample_for_the_clusters_of_nothing_is_told(tmp_path):
    rows = [row(at, uid=f"{at:016x}{'f' * 16}") for at in range(9)]
    with pytest.raises(ValueError, match="dedup.semantic_sample = 1: none of 9 embeddings was drawn: raise it"):
        run(write_tables(tmp_path, [rows], **SEMANTIC, semantic_sample=1))


def test_an_embedding_that_is_no_number_is_named(tmp_path):
    rows = random_rows(1, 5)
    rows[3]["embedding"] = np.full_like(rows[3]["embedding"], np.nan)
    with pytest.raises(ValueError, match=f"crawl-00000: the embedding of {rows[3]['uid']} is not finite"):
        run(write_tables(tmp_path, [rows], **SEMANTIC))
