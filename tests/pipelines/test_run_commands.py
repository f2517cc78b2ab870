"""run.py as typed: dry run, Ctrl-C, stats of an unfinished run, one step, stories; metadata and tables of others."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest
import yaml

from curate.bad_input import BadInput
from pipelines.explain import lines, story
from pipelines.stats import lines as stats_lines
from pipelines.stats import stats
from pipelines.store import Root
from schemas.tables import TABLES, version_of
from tests.conftest import encoded, picture
from tests.pipelines.small_run import PROJECT, origin, pages, run, settings

SCRIPT = "pipelines/run.py"
HOSTILE = "A red \x1b[31mpicture of many shapes"
LAION = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
"""The columns of laion2B-en's metadata."""
DATACOMP = ["uid", "url", "text", "original_width", "original_height", "clip_b32_similarity_score"]
DATACOMP += ["clip_l14_similarity_score", "face_bboxes", "sha256"]
"""The columns of DataComp's metadata."""


def write_metadata(folder: Path, address: str) -> list[dict[str, object]]:
    """Write lists as LAION and DataComp publish them; return the sources that read them."""
    laion = [[n, f"{address}/good/{n}.jpg", f"A picture of hills, {n}", 240, 320, "?", "UNLIKELY", 0.3] for n in (0, 1)]
    laion.append([2, f"{address}/near/1.jpg", "The same picture of hills once more", 240, 320, "?", "UNSURE", 0.25])
    (folder / "laion").mkdir()
    pd.DataFrame(laion, columns=LAION).to_parquet(folder / "laion" / "part-00000.snappy.parquet")
    hashes = {n: hashlib.sha256(pages()[f"/good/{n}.jpg"][2]).hexdigest() for n in (3, 4)} | {5: "0" * 64}
    rows = [
        [f"{n:032x}", f"{address}/good/{n}.jpg", f"A photo of clouds, {n}", 320, 240, 0.2, 0.25, [[0.1, 0.2, 0.3, 0.4]]]
        for n in hashes
    ]
    rows = [[*row, sha256] for row, sha256 in zip(rows, hashes.values(), strict=True)]
    (folder / "datacomp").mkdir()
    pd.DataFrame(rows, columns=DATACOMP).to_parquet(folder / "datacomp" / "0.parquet")
    return [
        {
            "name": "laion",
            "url_list": str(folder / "laion/*.parquet"),
            "url_column": "URL",
            "caption_column": "TEXT",
            "license_column": "LICENSE",
            "extra_columns": ["similarity", "NSFW"],
        },
        {
            "name": "datacomp",
            "url_list": str(folder / "datacomp/*.parquet"),
            "caption_column": "text",
            "sha256_column": "sha256",
            "extra_columns": ["uid", "clip_l14_similarity_score"],
        },
    ]


def write_dump(folder: Path) -> Path:
    """Write pictures that end in different ways; return the blocklist with one of them."""
    (folder / "dump").mkdir()
    kept = {"hostile": (40, HOSTILE, 320), "blocked": (41, "A picture that nobody may see", 320)}
    for name, (seed, caption, side) in (kept | {"short": (42, "Hi", 320), "small": (43, "A small sun", 100)}).items():
        (folder / "dump" / f"{name}.jpg").write_bytes(encoded(picture(seed, side, side), quality=90))
        (folder / "dump" / f"{name}.txt").write_text(caption)
    blocked = hashlib.sha256((folder / "dump" / "blocked.jpg").read_bytes()).hexdigest()
    (folder / "blocked.txt").write_text(blocked + "\n")
    return folder / "blocked.txt"


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, object]:
    """A run that Ctrl-C stopped and the same command ended; what was said on the way, and the folder."""
    folder = tmp_path_factory.mktemp("commands")
    with origin() as address:
        web, blocklist = write_metadata(folder, address), write_dump(folder)
        dumps = [{"name": "dump", "folder": str(folder / "dump")}]
        heads = [{"column": "aesthetic", "weights": None, "allow_untrained": True, "low": 1.0, "high": 10.0}]
        score = {"heads": heads, "blocklists_sha256": [str(blocklist)]}
        config = settings(folder, web=web, dumps=dumps, score=score)
        dry = run(SCRIPT, "--config", str(config), "--dry-run")
        untouched = not (folder / "out").exists()
        stopped = stop_after_captions(folder, config)
        unfinished = run(SCRIPT, "--config", str(config), "--stats", "--json")
        run(SCRIPT, "--config", str(config))
    return locals()


def stop_after_captions(folder: Path, config: Path) -> tuple[int, str]:
    """Press Ctrl-C where captions are done; return the exit code and what was said."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--config", str(config)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (folder / "out/tables/captions/_run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.fixture(scope="module")
def root(told) -> Root:
    return Root(str(told["folder"] / "out"))


def uid_of(root: Root, url: str) -> str:
    rows = pd.read_parquet(root.path("tables/samples"))
    (found,) = rows[rows.url.str.endswith(url)].uid
    return str(found)


def test_a_dry_run_makes_nothing(told):
    assert told["dry"].stdout == (
        "listings       would make 1 of 1 fragments; what follows it can be told once they are there\n"
    )
    assert told["untouched"]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(told):
    code, said = told["stopped"]
    assert code == 130
    assert said.splitlines()[-1] == (
        "pipelines/run.py: stopped; what is finished is kept: run the same command to go on"
    )
    assert "Traceback" not in said


def test_stats_of_an_unfinished_run(told):
    figures = json.loads(told["unfinished"].stdout)
    assert figures["funnel"] is None
    assert figures["tables"]["samples"] == {"state": "complete", "rows": 10}
    assert figures["tables"]["selection"] == {"state": "missing", "rows": 0}
    assert figures["findings"]["captions"] == {"caption_too_short": 1}
    assert figures["findings"]["ingest"] == {"hash_mismatch": 1}


def test_stats_of_a_finished_run_are_run_jsons(root):
    record = root.read_json("run.json")
    assert stats(root)["funnel"] == record["funnel"]
    assert record["funnel"]["rows_in"] == 10
    assert record["models"] == {}


@pytest.mark.parametrize("table", ["features", "duplicates", "scores"])
def test_stats_while_a_table_before_the_selection_is_made_anew(root, table):
    kept = Path(root.path(f"tables/{table}/_run.json"))
    kept.rename(kept.with_suffix(".away"))
    try:
        found = stats(root)
        assert found["funnel"] is None and found["tables"][table]["state"] == "being made"
        assert any(line.startswith(table) for line in stats_lines(root, found))
    finally:
        kept.with_suffix(".away").rename(kept)


def test_receipts_say_the_version_of_their_table(root):
    for table in ("samples", "features", "selection", "shards"):
        for path in root.glob(f"tables/{table}/_receipts/*.json"):
            assert json.loads(Path(path).read_text())["version"] == version_of(table) is not None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/good/0.jpg", ["source      laion, licence ?", "HTTP 200", "duplicates  none", "verdict     kept, weight 1"]),
        ("/near/1.jpg", ["perceptual duplicate of {survivor} at distance", "dropped at dedup: duplicate_perceptual"]),
        ("/good/5.jpg", ["came in     no: hash_mismatch (bytes differ from the list's sha256)"]),
        (
            "small.jpg",
            ["selection.min_side_px = 200: shorter_side_px 100, DROPS it", "dropped at selection: too_small"],
        ),
        ("short.jpg", ["caption_too_short: num_words 1, captions.min_words = 3", "dropped at captions"]),
        ("hostile.jpg", ["caption     A red \\u001b[31mpicture", "original    raw/dump-", "shards      shards/"]),
    ],
)
def test_a_story_has_every_verdict_with_its_value(root, url, expected):
    text = "\n".join(lines(story(root, uid_of(root, url))))
    for part in expected:
        assert part.format(survivor=uid_of(root, "/good/1.jpg")) in text, text
    assert "\x1b" not in text


def test_a_story_of_a_survivor_names_shard_and_offset(root):
    uid = uid_of(root, "/good/0.jpg")
    found = story(root, uid)
    rows = pd.read_parquet(root.path("tables/shards")).set_index("uid")
    assert found["shards"] == [{name: rows.loc[uid][name] for name in ("split", "shard", "offset", "num_bytes")}]
    assert json.loads(json.dumps(found))["samples"]["uid"] == uid


def test_of_a_blocklisted_sample_only_hashes_are_told(root):
    uid = uid_of(root, "blocked.jpg")
    found = story(root, uid)
    assert set(found) == {"uid", "sha256", "blocklist_match"}
    assert "nobody may see" not in "\n".join(lines(found))


def test_the_start_of_a_uid_is_enough_where_it_is_one(root, told):
    uids = pd.read_parquet(root.path("tables/samples")).uid
    short = next(uid[:n] for uid in uids for n in range(1, 32) if sum(uids.str.startswith(uid[:n])) == 1)
    (uid,) = [uid for uid in uids if uid.startswith(short)]
    done = run(SCRIPT, "--config", str(told["config"]), "--explain", short, "--json")
    assert json.loads(done.stdout)["uid"] == uid
    with pytest.raises(BadInput, match="10 samples begin so: give more of one of"):
        story(root, "")
    with pytest.raises(BadInput, match="no sample under .* begins so"):
        story(root, "x")


def test_only_and_from_run_what_they_name(told, root):
    before = root.read_json("run.json")
    alone = run(SCRIPT, "--config", str(told["config"]), "--only", "score", "--json")
    assert [report["table"] for report in json.loads(alone.stdout)] == ["scores"]
    assert root.read_json("run.json") == before
    later = run(SCRIPT, "--config", str(told["config"]), "--from", "export", "--json")
    assert [report["table"] for report in json.loads(later.stdout)] == ["plan", "shards"]
    assert [step["table"] for step in root.read_json("run.json")["steps"]] == ["plan", "shards"]
    both = run(SCRIPT, "--config", str(told["config"]), "--only", "score", "--from", "score", check=False)
    assert (both.returncode, both.stderr) == (2, "pipelines/run.py: --only and --from: give one of them\n")


def test_a_dry_run_names_the_first_step_with_work(told):
    words = (
        "--config",
        str(told["config"]),
        "--selection.min_side_px",
        "300",
        "--from",
        "score",
        "--dry-run",
        "--json",
    )
    assert json.loads(run(SCRIPT, *words).stdout) == {"table": "selection", "missing": 1, "wanted": 1}


def test_metadata_of_laion_and_datacomp_come_in_through_the_config(root):
    rows = pd.read_parquet(root.path("tables/samples"))
    laion = rows[rows.source == "laion"]
    assert sorted(laion.caption) == [
        "A picture of hills, 0",
        "A picture of hills, 1",
        "The same picture of hills once more",
    ]
    assert set(laion.license) == {"?"}
    assert json.loads(laion.set_index("caption").extra["A picture of hills, 1"]) == {
        "similarity": 0.3,
        "NSFW": "UNLIKELY",
    }
    datacomp = rows[rows.source == "datacomp"].set_index("caption")
    assert dict(datacomp.status) == {
        "A photo of clouds, 3": "ok",
        "A photo of clouds, 4": "ok",
        "A photo of clouds, 5": "hash_mismatch",
    }
    assert json.loads(datacomp.extra["A photo of clouds, 3"])["uid"] == f"{3:032x}"


OPTIONAL = {"latents", "recaptions"}
"""Tables that the settings of this root do not make."""


@pytest.mark.parametrize("table", sorted(set(TABLES) - OPTIONAL))
def test_four_readers_see_the_same_table(root, table, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = root.glob(f"tables/{table}/*.parquet")
    by_pandas = pd.concat([pd.read_parquet(file) for file in files])
    key = "uid" if "uid" in by_pandas else by_pandas.columns[0]
    keys = sorted(by_pandas[key])
    assert sorted(pl.read_parquet(files)[key].to_list()) == keys
    assert [one[0] for one in duckdb.sql(f"SELECT {key} FROM read_parquet({files}) ORDER BY 1").fetchall()] == keys
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert sorted(loaded[key]) == keys
    assert loaded.column_names == list(by_pandas.columns)


def test_a_story_of_a_root_without_tables_names_the_step(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"root": str(tmp_path / "none")}))
    done = run(SCRIPT, "--config", str(config), "--explain", "abc", check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "pipelines/run.py: --explain abc: table samples is not there yet: run python pipelines/ingest.py\n"
    )
