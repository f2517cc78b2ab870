"""The whole curation on a small crawl and dump, read back by other readers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml

from curate.hashes import phash64_and_turned
from curate.image import decode
from schemas import captions, duplicates, features, fetches, samples, scores, selection, shards
from tests.pipelines.small_run import origin, run, settings, write_sources

COLUMNS = {
    "fetches": fetches.SCHEMA.names,
    "samples": samples.SCHEMA.names,
    "features": features.schema(128).names,
    "captions": captions.SCHEMA.names,
    "scores": scores.SCHEMA.names,
    "duplicates": duplicates.SCHEMA.names,
    "selection": selection.SCHEMA.names,
    "shards": shards.SCHEMA.names,
}


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """A finished run; returns the folder with config.yaml and out/."""
    folder = tmp_path_factory.mktemp("curated")
    with origin() as address:
        write_sources(folder, address)
        done = run("pipelines/run.py", "--config", str(settings(folder)))
    (folder / "said.txt").write_text(done.stdout)
    return folder


def read(folder: Path, table: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "out" / "tables" / table)


def test_every_row_has_one_verdict(curated):
    rows = read(curated, "samples").merge(read(curated, "selection"), on="uid", validate="one_to_one")
    assert len(rows) == 19 + 7
    dropped = rows[~rows.keep]
    assert dropped.reject_reason.notna().all() and dropped.reject_stage.notna().all()
    assert rows[rows.keep].reject_reason.isna().all()
    by_path = {
        str(url).split("/", 3)[-1] if "//" in str(url) else url: reason
        for url, reason in zip(rows.url, rows.reject_reason, strict=True)
    }
    expected = {
        "small.png": "too_small",
        "opted-out.jpg": "opt_out_x_robots_tag",
        "cut.jpg": "truncated",
        "page.jpg": "not_an_image",
        "nowhere.jpg": "http_gone",
        "lost.png": "missing_file",
        "45.png": "caption_missing",
        None: "missing_url",
        **{f"gone/{n}.jpg": "duplicate_error_image" for n in range(4)},
    }
    assert {path: by_path[path] for path in expected} == expected
    assert {by_path["good/0.jpg"], by_path["copy/0.jpg"]} == {None, "duplicate_exact"}
    assert {by_path["good/1.jpg"], by_path["near/1.jpg"]} == {None, "duplicate_perceptual"}


def test_each_dropped_duplicate_names_a_survivor(curated):
    rows = read(curated, "duplicates")
    survivors = set(rows[rows.is_survivor].uid)
    named = rows[rows.kind.notna() & (rows.kind != "error_image")]
    assert len(named) == 2
    assert set(named.survivor_uid) <= survivors
    assert named.won_by.notna().all()
    by_kind = rows.kind.value_counts().to_dict()
    counts = json.loads((curated / "out" / "tables" / "duplicates" / "_run.json").read_text())["counts"]
    assert {kind: count for kind, count in counts.items() if count} == by_kind | {"survivors": len(survivors)}
    drops = json.loads((curated / "out" / "run.json").read_text())["funnel"]["drops"]["dedup"]
    assert drops == {f"duplicate_{kind}": count for kind, count in by_kind.items()}


@pytest.mark.parametrize("table", COLUMNS)
def test_duckdb_and_pandas_read_each_table(curated, table):
    found = duckdb.sql(f"SELECT * FROM '{curated}/out/tables/{table}/*.parquet'")
    assert set(COLUMNS[table]) <= set(found.columns)
    assert len(read(curated, table)) == len(found.fetchall()) > 0
    for path in (curated / "out" / "tables" / table).glob("*.parquet"):
        assert pq.read_schema(path).metadata[b"darkroom_table"] == table.encode()


def test_embeddings_are_unit_length(curated):
    rows = read(curated, "features").dropna(subset=["embedding"])
    norms = [np.linalg.norm(embedding.astype(np.float32)) for embedding in rows.embedding]
    np.testing.assert_allclose(norms, 1.0, atol=2e-3)


def test_hashes_of_turned_pictures_lie_beside_their_own(curated):
    tables = [pq.read_table(curated / "out" / "tables" / name) for name in ("samples", "features")]
    decoded = 0
    for place, found in zip(*(table.sort_by("uid").to_pylist() for table in tables), strict=True):
        if found["status"] != "ok":
            assert found["phash64_turned"] is None
            continue
        data = (curated / "out" / place["shard"]).read_bytes()[place["offset"] :][: place["num_bytes"]]
        assert (found["phash64"], found["phash64_turned"]) == phash64_and_turned(decode(data, 1))
        decoded += 1
    assert 0 < decoded < len(tables[0])


def test_plain_webdataset_reads_the_shards(curated):
    table = read(curated, "shards").set_index("uid")
    paths = sorted(str(path) for path in (curated / "out" / "shards").rglob("*.tar"))
    seen = 0
    for item in webdataset.WebDataset(paths, shardshuffle=False).decode("pil"):
        row = table.loc[item["__key__"]]
        assert item["jpg"].size == (row.bucket_width_px, row.bucket_height_px)
        assert item["txt"] == row.caption
        assert item["json"]["original_width_px"] == row.original_width_px
        seen += 1
    assert seen == len(table) == read(curated, "selection").keep.sum()


def test_offsets_lead_to_the_pictures(curated):
    for row in read(curated, "shards").itertuples():
        data = (curated / "out" / row.shard).read_bytes()[row.offset : row.offset + row.num_bytes]
        assert data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")


def test_raw_shards_hold_the_original_bytes(curated):
    rows = read(curated, "samples")
    for row in rows[rows.shard.notna()].itertuples():
        data = (curated / "out" / row.shard).read_bytes()[int(row.offset) : int(row.offset + row.num_bytes)]
        assert hashlib.sha256(data).hexdigest() == row.sha256


def test_run_json_tells_what_happened(curated):
    said = json.loads((curated / "out" / "run.json").read_text())
    rows = read(curated, "selection")
    assert said["funnel"]["rows_in"] == len(rows)
    assert said["funnel"]["rows_kept"] == rows.keep.sum()
    assert sum(sum(reasons.values()) for reasons in said["funnel"]["drops"].values()) == (~rows.keep).sum()
    assert said["config"]["embed"]["clip"]["allow_untrained"] is True
    assert said["versions"]["ray"]
    assert said["crawl"]["statuses"] == {"ok": 14, "http_gone": 2, "missing_url": 1, "not_an_image": 1} | {
        "opt_out_x_robots_tag": 1
    }
    assert [sum(counts.values()) for counts in said["crawl"]["hosts"].values()] == [18]
    told = (curated / "said.txt").read_text()
    assert "UNTRAINED" in told and "duplicate_error_image" in told


def test_untrained_scores_say_so_in_their_schema(curated):
    path = next((curated / "out" / "tables" / "scores").glob("*.parquet"))
    assert b"UNTRAINED" in pq.read_schema(path).field("aesthetic").metadata[b"revision"]


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every table and shard."""
    files = [*(folder / "out").rglob("*.parquet"), *(folder / "out").rglob("*.tar")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in (folder / "out").rglob("*")
        if p.suffix in (".parquet", ".tar")
    }


def test_a_rerun_does_nothing_and_starts_no_engine(curated):
    before = times(curated)
    done = run("pipelines/run.py", "--config", str(curated / "config.yaml"))
    assert times(curated) == before
    assert "0 already there" not in done.stderr
    assert "rows/s" not in done.stdout.split("funnel")[0]


def test_a_lost_fragment_and_what_depends_on_it_are_remade_equal(curated):
    before, old = hashes(curated), times(curated)
    lost = sorted((curated / "out" / "tables" / "scores").glob("*.parquet"))[0]
    lost.unlink()
    run("pipelines/run.py", "--config", str(curated / "config.yaml"))
    assert hashes(curated) == before
    remade = {path for path, time in times(curated).items() if old[path] != time}
    name = lost.name
    upstream = {f"out/tables/scores/{name}", f"out/tables/selection/{name}"}
    assert upstream <= remade
    for path in remade - upstream:
        assert path.startswith(("out/tables/selection/", "out/tables/plan/")), path


def test_a_cut_off_changes_nothing_upstream(curated):
    before = times(curated)
    run("pipelines/selection.py", "--config", str(curated / "config.yaml"), "--selection.min_side_px", "220")
    changed = {path for path, time in times(curated).items() if before.get(path) != time}
    assert changed and all(path.startswith("out/tables/selection/") for path in changed)
    rows = read(curated, "selection")
    assert (rows.reject_reason == "too_small").sum() > 1
    run("pipelines/run.py", "--config", str(curated / "config.yaml"))


def test_a_listed_picture_is_never_exported(curated):
    """Whatever else holds: every cut-off is off, and a duplicate of the listed bytes is dropped with them."""
    exported = read(curated, "samples").merge(read(curated, "shards")[["uid"]], on="uid")
    listed = exported[exported.url.str.endswith("good/0.jpg") | exported.url.str.endswith("copy/0.jpg")].iloc[0]
    (curated / "list.txt").write_text(f"{listed.sha256}\n")
    config = yaml.safe_load((curated / "config.yaml").read_text())
    config["score"]["blocklists_sha256"] = [str(curated / "list.txt")]
    config["selection"] |= {"min_side_px": None, "max_aspect": None, "min_entropy_bits": None}
    (curated / "listed.yaml").write_text(yaml.safe_dump(config))
    done = run("pipelines/run.py", "--config", str(curated / "listed.yaml"))
    samples, verdicts = read(curated, "samples"), read(curated, "selection")
    hits = set(samples[samples.sha256 == listed.sha256].uid)
    assert len(hits) == 2
    assert set(verdicts[verdicts.reasons.map(lambda reasons: "blocklist" in reasons)].uid) == hits
    left = read(curated, "shards")
    assert not hits & set(left.uid) and len(left) >= len(exported) - 1
    keys = {s["__key__"] for s in webdataset.WebDataset(tars(curated), shardshuffle=False, empty_check=False)}
    assert not any(uid in key for key in keys for uid in hits) and len(keys) == len(left)
    told = done.stdout + done.stderr + (curated / "out/run.json").read_text()
    assert listed.url not in told and not any(uid in told for uid in hits)
    run("pipelines/run.py", "--config", str(curated / "config.yaml"))


def tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "out/shards").rglob("*.tar"))
