"""Export, latents and takedown over a finished run: other readers, equal bytes, nothing left, nothing else touched."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from curate.buckets import ladder
from curate.config import CurationConfig, DedupConfig, DumpSource, EncodeConfig, ExportConfig
from curate.takedown import TakenDown, asked_for
from curate.tar import TarShard
from curate.weights import MissingWeights, registered
from pipelines import encode, export, ingest, takedown
from pipelines.dashboard_server.index import Index
from pipelines.dedup_index import earlier_entries, own_entry, publish_entry, read_index
from pipelines.runner import Runner
from pipelines.selection import _aligned, domains
from pipelines.store import Root, commit, digest, fragments, manifest, publish, read_receipt, table_file
from pipelines.taken_down import read_taken_down
from tests.conftest import encoded, picture
from tests.pipelines.dedup_corpus import PlainPool
from tests.pipelines.small_run import origin, run, settings, write_sources
from train.autoencoder import fingerprint


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """A finished run with latents of a small autoencoder; returns the folder with config.yaml and out/."""
    folder = tmp_path_factory.mktemp("exported")
    with origin() as address:
        write_sources(folder, address)
        run("pipelines/run.py", "--config", str(settings(folder)))
    write_latents(config_of(folder), folder / "vae")
    return folder


def config_of(folder: Path, **export_settings: object) -> CurationConfig:
    said = yaml.safe_load((folder / "config.yaml").read_text())
    return CurationConfig(
        root=str(folder / "out"),
        dumps=tuple(DumpSource(**one) for one in said["dumps"]),
        export=ExportConfig(**said["export"] | export_settings),
        encode=EncodeConfig(vae=str(folder / "vae")),
    )


def write_latents(config: CurationConfig, vae_folder: Path) -> None:
    """Write the latents table as the step does, without Ray."""
    torch.manual_seed(0)
    kind = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=8, latent_channels=4, **kind)
    vae.save_pretrained(vae_folder)
    root, build = Root(config.root), encode._build(config)
    receipts = []
    for name, receipt in fragments(root, "shards").items():
        made = build(name, fingerprint(vae))
        files = dict(made.files) | {table_file("latents", name): parquet(made.rows)}
        receipts.append(commit(root, "latents", name, receipt, files, len(made.rows), {}))
    publish(root, "latents", receipts, {"models": []})
    root.write_json("latents/shards.json", fragments(root, "shards"))
    root.write_json("latents/run.json", {"vae_fingerprint": fingerprint(vae), "variants": 2, "rows": 0})


def parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "out/tables" / name)


def tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "out/shards").rglob("*.tar"))


def test_five_readers_agree(curated, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = table(curated, "shards").set_index("uid")
    pattern = f"{curated}/out/tables/shards/*.parquet"
    assert set(pl.read_parquet(pattern)["uid"]) == set(rows.index)
    assert duckdb.sql(f"SELECT sum(num_bytes), min(weight) FROM '{pattern}'").fetchall() == [
        (rows.num_bytes.sum(), 1.0)
    ]
    by_webdataset = {one["__key__"]: one for one in webdataset.WebDataset(tars(curated), shardshuffle=False)}
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": tars(curated)}, split="train", cache_dir=str(curated / "cache")
    )
    assert set(by_webdataset) == set(loaded["__key__"]) == set(rows.index)
    for one in loaded:
        row = rows.loc[one["__key__"]]
        assert one["jpg"].size == (row.bucket_width_px, row.bucket_height_px)
        assert one["txt"] == row.caption == by_webdataset[one["__key__"]]["txt"].decode()
        assert one["json"]["crop_left_px"] == row.crop_left_px


def test_every_run_writes_the_same_bytes(curated):
    config = config_of(curated)
    names = list(fragments(Root(config.root), "samples"))
    plan = export._build_plan(config)(names)
    assert plan.rows.to_pylist() == pq.read_table(curated / "out/tables/plan/all.parquet").to_pylist()
    for shard in plan.rows["shard"].to_pylist():
        for name, path in export._build(config)(shard).files.items():
            assert path.read_bytes() == (curated / "out" / name).read_bytes()
            path.unlink()


def test_shards_are_bounded_by_samples_and_by_bytes(curated):
    config = config_of(curated, max_shard_mb=0.012)
    split = 0
    for row in pd.read_parquet(curated / "out/tables/plan/all.parquet").itertuples():
        assert 0 < row.rows <= 4
        made = export._build(config)(row.shard)
        uids = made.rows["uid"].to_pylist()
        assert uids == sorted(uids) and made.rows["shard"].to_pylist() == sorted(made.rows["shard"].to_pylist())
        for name, path in made.files.items():
            held = made.rows.filter(pa.compute.equal(made.rows["shard"], name)).to_pylist()
            assert path.stat().st_size <= 12_000 or len(held) == 1
            for one in held:
                data = path.read_bytes()[one["offset"] : one["offset"] + one["num_bytes"]]
                assert Image.open(io.BytesIO(data)).size == (one["bucket_width_px"], one["bucket_height_px"])
            path.unlink()
        split += len(made.files) > 1
    assert split > 0


def test_the_dashboard_opens_a_finished_run_with_the_buckets_of_its_export(curated):
    config = config_of(curated)
    index = Index(Root(config.root), file=None, memory_mb=200, unchecked=False)
    index.look()
    index.close()
    assert index.buckets == ladder(config.export.resolution_px, config.export.multiple_px) != ladder(1024, 64)


def test_one_sample_less_changes_one_shard(curated):
    config = config_of(curated)
    names = list(fragments(Root(config.root), "samples"))
    kept = pa.concat_tables([export._kept(Root(config.root), name, config.export) for name in names])
    many = pa.table({"uid": [f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}{n:016x}" for n in range(1000)]})

    def parts(rows):
        with duckdb.connect() as database:
            database.register("kept_rows", rows.append_column("place", pa.array(["train-64x64"] * len(rows))))
            database.execute("CREATE TABLE kept AS SELECT * FROM kept_rows")
            return {name: part["uid"].to_pylist() for name, part in export._parts(database, "train-64x64", 40)}

    before, after = parts(many), parts(many.slice(1))
    assert max(map(len, before.values())) <= 40 and sum(map(len, before.values())) == 1000
    changed = [name for name in before if before[name] != after.get(name)]
    assert len(changed) == 1 and before.keys() >= after.keys()
    assert len(kept) == len(table(curated, "shards"))


def test_an_original_that_fits_is_passed_through_and_exif_is_not():
    gps = Image.Exif()
    gps[0x010E] = "a place"
    config = CurationConfig(root="")
    fits = encoded(picture(1, 64, 64), quality=90)
    image, said = export.render(fits, (64, 64), config)
    assert (image, said["is_original"]) == (fits, True)
    for data in (encoded(picture(1, 64, 64), quality=90, exif=gps), encoded(picture(1, 64, 64), "PNG")):
        image, said = export.render(data, (64, 64), config)
        assert said["is_original"] is False and b"a place" not in image and image.startswith(b"\xff\xd8")
    image, said = export.render(fits, (64, 64), replace(config, export=ExportConfig(pass_through=False)))
    assert image != fits and said["is_original"] is False
    image, said = export.render(fits, (64, 64), replace(config, export=ExportConfig(faces="blur")))
    assert (image, said["faces_blurred"]) == (fits, 0)


def test_faces_are_blurred_in_what_is_exported():
    from skimage import data as photographs

    original = encoded(Image.fromarray(photographs.astronaut()), quality=95)
    plain, _ = export.render(original, (512, 512), CurationConfig(root="", export=ExportConfig(pass_through=False)))
    blurred, said = export.render(original, (512, 512), CurationConfig(root="", export=ExportConfig(faces="blur")))
    assert said["faces_blurred"] >= 1
    one, other = (np.asarray(Image.open(io.BytesIO(data)).convert("L"), float) for data in (plain, blurred))
    assert np.abs(np.diff(other[70:180, 180:265])).mean() < 0.6 * np.abs(np.diff(one[70:180, 180:265])).mean()
    assert np.abs(one[300:, :150] - other[300:, :150]).mean() < 1


def test_latents_are_moments_of_each_variant(curated):
    rows, shards = table(curated, "latents"), table(curated, "shards").set_index("uid")
    assert sorted(rows.groupby("uid").variant.apply(tuple).unique()) == [(0, 1)]
    assert set(rows.uid) == set(shards.index)
    vae = fingerprint(AutoencoderKL.from_pretrained(curated / "vae"))
    schema = pq.read_schema(next((curated / "out/tables/latents").glob("*.parquet")))
    assert schema.field("offset").metadata[b"revision"].decode() == vae
    for row in rows.itertuples():
        data = (curated / "out" / row.shard).read_bytes()[row.offset : row.offset + row.num_bytes]
        of = shards.loc[row.uid]
        moments = np.load(io.BytesIO(data))
        assert moments.shape == (8, of.bucket_height_px // 2, of.bucket_width_px // 2) and moments.dtype == np.float16


def test_tables_in_another_order_are_brought_in_line(tmp_path):
    root, uids = Root(str(tmp_path)), ["a", "b", "c"]
    root.write(table_file("samples", "x"), parquet(pa.table({"uid": uids})))
    root.write(table_file("scores", "x"), parquet(pa.table({"uid": ["c", "a"], "aesthetic": [3.0, 1.0]})))
    found = _aligned(root, "x", {"samples": ["uid"], "scores": ["uid", "aesthetic"]})
    assert found["scores"]["aesthetic"].to_pylist() == [1.0, None, 3.0]


def test_domains_are_hosts():
    urls = ["http://WWW.A.org:80/x", "a/b.jpg", None, "https://u:p@b.com?x", "https://c.d", "https://[::1]:8/x"]
    assert domains(pa.array(urls)).to_pylist() == ["a.org", None, None, "b.com", "c.d", "[::1]"]


class Killed(Exception):
    """Stands for a process that ends between two writes."""


def copy_of(curated: Path, folder: Path) -> Path:
    shutil.copytree(curated / "out", folder / "out")
    return folder


def contents(folder: Path) -> dict[str, str]:
    found = {str(p.relative_to(folder)): p for p in (folder / "out").rglob("*") if p.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def kept_ones(curated: Path) -> pd.DataFrame:
    return table(curated, "samples").merge(table(curated, "shards")[["uid"]], on="uid").sort_values("uid")


def victims(curated: Path) -> tuple[TakenDown, set[str], list[bytes]]:
    """Return what is asked for (one by uid, one by URL, one by bytes), their uids, and their original bytes."""
    rows = kept_ones(curated)
    rows = rows[~rows.sha256.isin(table(curated, "samples").sha256.value_counts().loc[lambda count: count > 1].index)]
    web, dump = rows[rows.source == "web"], rows[rows.source == "dump"]
    asked = asked_for([web.iloc[0].uid], [web.iloc[1].url], [dump.iloc[0].sha256.upper()])
    chosen = [web.iloc[0], web.iloc[1], dump.iloc[0]]
    originals = [(curated / "out" / one.shard).read_bytes()[int(one.offset) :][: int(one.num_bytes)] for one in chosen]
    return asked, {one.uid for one in chosen}, originals


def test_a_takedown_removes_the_sample_and_leaves_the_rest(curated, tmp_path):
    folder, (asked, uids, originals) = copy_of(curated, tmp_path), victims(curated)
    config = CurationConfig(root=str(folder / "out"))
    told = list(takedown.take_down(config, asked, with_duplicates=False))
    assert told and not any("http" in line for line in told)
    for name in (
        "samples",
        "features",
        "texts",
        "caption_counts",
        "captions",
        "scores",
        "duplicates",
        "selection",
        "shards",
        "latents",
        "fetches",
    ):
        before, after = table(curated, name), table(folder, name)
        assert not uids & set(after.uid), name
        stays = before[~before.uid.isin(uids)].drop(columns=["offset"], errors="ignore").reset_index(drop=True)
        pd.testing.assert_frame_equal(stays, after.drop(columns=["offset"], errors="ignore"))
        path = next((folder / "out/tables" / name).glob("*.parquet"))
        assert pq.read_schema(path).equals(pq.read_schema(curated / path.relative_to(folder)), check_metadata=True)
    for name in ("samples", "shards", "latents"):
        before = table(curated, name).set_index(["uid", *(["variant"] if name == "latents" else [])])
        for key, row in table(folder, name).set_index(before.index.names).iterrows():
            if row.shard is not None:
                old = before.loc[key]
                one = (curated / "out" / old.shard).read_bytes()[int(old.offset) :][: int(old.num_bytes)]
                assert one == (folder / "out" / row.shard).read_bytes()[int(row.offset) :][: int(row.num_bytes)]
    files = [path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()]
    assert not any(original in data for original in originals for data in files)
    seen = {one["__key__"] for one in webdataset.WebDataset(tars(folder), shardshuffle=False, empty_check=False)}
    assert seen == set(table(folder, "shards").uid)
    said = json.loads((folder / "out/takedowns.json").read_text())
    assert set(said["uids"]) == uids and [len(value) for value in said["urls_sha256"] + said["sha256"]] == [64, 64]
    assert json.loads((folder / "out/latents/run.json").read_text())["rows"] == len(table(folder, "latents"))
    assert json.loads((folder / "out/latents/shards.json").read_text()) == fragments(Root(f"{folder}/out"), "shards")
    again = takedown.take_down(config, TakenDown(), with_duplicates=False)
    assert [line for line in again if "--with_duplicates" not in line] == []


def test_a_takedown_reaches_what_an_unfinished_run_has_made_so_far(curated, tmp_path):
    folder, (asked, uids, _) = copy_of(curated, tmp_path), victims(curated)
    root = Root(str(folder / "out"))
    unfinished = ("features", "scores")
    made_before = {name: fragments(root, name) for name in unfinished}
    for name in unfinished:
        root.remove(f"tables/{name}/_run.json")
    list(takedown.take_down(CurationConfig(root=root.url), asked, with_duplicates=False))
    for name in unfinished:
        assert not uids & set(table(folder, name).uid), name
        receipts = {fragment: read_receipt(root, name, fragment) for fragment in made_before[name]}
        assert {fragment: one and one.digest for fragment, one in receipts.items()} == made_before[name]
        assert all(
            root.size(file) == said["num_bytes"] for one in receipts.values() for file, said in one.files.items()
        )


def test_a_takedown_finds_a_url_among_samples_that_no_table_names_yet(curated, tmp_path):
    folder, url = copy_of(curated, tmp_path), kept_ones(curated).query("source == 'web'").iloc[0].url
    root = Root(str(folder / "out"))
    said = manifest(root, "samples")
    hit = {name for name in said["fragments"] if url in root.read_table(table_file("samples", name))["url"].to_pylist()}
    said["fragments"] = {name: one for name, one in said["fragments"].items() if name not in hit}
    root.write_json("tables/samples/_run.json", said)  # as before the source was added
    list(takedown.take_down(CurationConfig(root=root.url), asked_for(urls=[url]), with_duplicates=False))
    assert hit and url not in set(table(folder, "samples").url)


def test_a_killed_takedown_is_run_again_to_the_same_end(curated, tmp_path, monkeypatch):
    asked, _, _ = victims(curated)
    whole = copy_of(curated, tmp_path / "whole")
    writes = 0

    def counted(write, limit):
        def counting(*arguments, **named):
            nonlocal writes
            writes += 1
            if writes > limit:
                raise Killed
            return write(*arguments, **named)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(Root, "write", counted(Root.write, 10**9))
        patch.setattr(Root, "write_file", counted(Root.write_file, 10**9))
        list(takedown.take_down(CurationConfig(root=str(whole / "out")), asked, with_duplicates=False))
    total, expected = writes, contents(whole)
    assert total > 40
    for limit in range(1, total, 7):
        folder, writes = copy_of(curated, tmp_path / str(limit)), 0
        with monkeypatch.context() as patch:
            patch.setattr(Root, "write", counted(Root.write, limit))
            patch.setattr(Root, "write_file", counted(Root.write_file, limit))
            with pytest.raises(Killed):
                list(takedown.take_down(CurationConfig(root=str(folder / "out")), asked, with_duplicates=False))
        list(takedown.take_down(CurationConfig(root=str(folder / "out")), asked, with_duplicates=False))
        assert contents(folder) == expected, limit
        shutil.rmtree(folder)


def test_duplicates_are_told_and_go_with_the_flag(curated, tmp_path):
    copies = table(curated, "duplicates")
    copies = copies[copies.kind == "exact"]
    config = CurationConfig(root=str(copy_of(curated, tmp_path) / "out"))
    survivor = copies.iloc[0].survivor_uid
    assert "1 more samples are duplicates" in list(takedown.take_down(config, asked_for([survivor]), False))[-1]
    assert list(takedown.take_down(config, asked_for([survivor]), True))
    assert not {survivor, copies.iloc[0].uid} & set(table(tmp_path, "samples").uid)


def test_a_later_run_does_not_bring_it_back(curated, tmp_path):
    folder, (_, uids, _) = copy_of(curated, tmp_path), victims(curated)
    words = ("--config", str(curated / "config.yaml"), "--root", str(folder / "out"))
    told = run("pipelines/takedown.py", *words, "--uid", *sorted(uids)).stdout
    assert "raw/" in told and "they stay away from later runs" in told
    after = contents(folder)
    run("pipelines/captions.py", *words)
    again = contents(folder)
    assert [name for name in after if "/_run.json" not in name and after[name] != again.get(name)] == []
    receipts = sorted((folder / "out/tables/samples/_receipts").glob("dump*.json"))
    receipts[0].unlink()  # as if the dump's chunk had to be read again
    said = run("pipelines/ingest.py", *words).stdout
    assert not uids & set(table(folder, "samples").uid)
    again = contents(folder)
    changed = {name for name in after if after[name] != again.get(name)}
    assert changed and all("dump" in name or name.endswith("_run.json") for name in changed), (changed, said)
    assert read_taken_down(Root(str(folder / "out"))).uids >= uids


def kept_anywhere(folder: Path, text: str) -> list[str]:
    """Return the parquet files under the folder that say the text, as text or as bytes."""
    found = []
    for path in (folder / "out").rglob("*.parquet"):
        listed = pq.read_table(path).to_pylist()
        if text in str(listed):
            found.append(str(path.relative_to(folder / "out")))
    return found


def test_nothing_is_left_of_its_caption_and_path(curated, tmp_path):
    folder, rows = copy_of(curated, tmp_path), kept_ones(curated)
    web, dump = rows[rows.source == "web"].iloc[0], rows[rows.source == "dump"].iloc[0]
    config = CurationConfig(root=str(folder / "out"))
    root = Root(config.root)
    receipts = []
    for name in fragments(root, "samples"):
        uid = root.read_table(table_file("samples", name), ["uid"])["uid"]
        made = pa.table({"uid": uid, "caption_generated": [f"generated for {one}" for one in uid.to_pylist()]})
        receipts.append(
            commit(root, "recaptions", name, "test", {table_file("recaptions", name): parquet(made)}, 1, {})
        )
    publish(root, "recaptions", receipts, {})
    for row in (web, dump):
        assert len(kept_anywhere(folder, row.caption)) >= 4 and kept_anywhere(folder, f"generated for {row.uid}")
    list(takedown.take_down(config, asked_for([web.uid, dump.uid]), with_duplicates=False))
    for row in (web, dump):
        said = [row.caption, f"'{row.url}'", f"generated for {row.uid}"]
        assert [kept_anywhere(folder, text) for text in said] == [[], [], []]
    before = sum(len(pq.read_table(path)) for path in (curated / "out/raw/listings").glob("*.parquet"))
    assert sum(len(pq.read_table(path)) for path in (folder / "out/raw/listings").glob("*.parquet")) == before - 1
    assert table(folder, "listings").rows.sum() == before - 1


def test_the_url_that_redirects_led_to_is_one_of_its_urls(curated, tmp_path):
    folder, uid = copy_of(curated, tmp_path), kept_ones(curated).iloc[0].uid
    root, final_url = Root(str(folder / "out")), "https://mirror.example/a.jpg"
    for name in fragments(root, "samples"):
        rows = root.read_table(table_file("samples", name))
        urls = [final_url if one == uid else None for one in rows["uid"].to_pylist()]
        at = rows.schema.get_field_index("final_url")
        root.write(table_file("samples", name), parquet(rows.set_column(at, "final_url", pa.array(urls, pa.string()))))
    list(takedown.take_down(CurationConfig(root=root.url), asked_for(urls=[final_url]), with_duplicates=False))
    assert uid not in set(table(folder, "samples").uid)
    assert len(table(folder, "samples")) == len(table(curated, "samples")) - 1


def test_bytes_from_a_url_that_was_taken_down_are_not_stored():
    taken_down = asked_for(urls=["https://mirror.example/a.jpg"])
    for final_url, status in (("https://mirror.example/a.jpg", "taken_down"), ("https://mirror.example/b.jpg", "ok")):
        with io.BytesIO() as file:
            row = {"uid": "a" * 32, "final_url": final_url}
            found = ingest._stored(row, encoded(picture(1)), TarShard(file), "raw/a.tar", taken_down)
            assert found["status"] == status and (file.tell() == 0) == (status != "ok")
            assert status == "ok" or found["final_url"] is None


def in_index(folder: Path, recorded: bool) -> tuple[CurationConfig, Path]:
    """Publish the run's survivors in an index, as dedup does; returns the settings and the entry's folder."""
    dedup = DedupConfig(index=str(folder / "index"), semantic_eps=None)
    config = CurationConfig(root=str(folder / "out"), dedup=dedup)
    root = Root(config.root)
    if recorded:
        ran = manifest(root, "duplicates")
        settings = ran["settings"] | {"index": dedup.index}
        root.write_json("tables/duplicates/_run.json", ran | {"settings": settings})
    publish_entry(config, list(fragments(root, "features")), PlainPool)
    return config, folder / "index" / own_entry(config)


@pytest.mark.parametrize("recorded", [True, False])
def test_an_index_of_corpora_lets_go_of_it(curated, tmp_path, recorded):
    """It is found by what dedup recorded, or by the settings; to corpora that come after, the entry stays the same."""
    config, own = in_index(copy_of(curated, tmp_path), recorded)
    later = CurationConfig(root=str(tmp_path / "later"), dedup=config.dedup)
    entries, said = earlier_entries(later), (own / "_entry.json").read_bytes()
    before = pd.read_parquet(own).set_index("uid").drop(columns=["embedding", "phash64_turned"])
    assert set(before.index) == set(table(curated, "duplicates").query("is_survivor").uid)
    uid = before.index[0]
    asking = CurationConfig(root=config.root) if recorded else config
    told = list(takedown.take_down(asking, asked_for([uid]), with_duplicates=False))
    assert f"dedup.index, {own.name}/" in told[0] and told[0].endswith(": 1 rows")
    after = pd.read_parquet(own).set_index("uid").drop(columns=["embedding", "phash64_turned"])
    pd.testing.assert_frame_equal(after, before.drop(index=uid))
    assert (own / "_entry.json").read_bytes() == said
    assert earlier_entries(later) == entries and len(entries) == 1
    kept = [kept for file in entries[0].files for kept in read_index(file, ["uid"])["uid"].to_pylist()]
    assert sorted(kept) == sorted(after.index)
    publish_entry(config, list(fragments(Root(config.root), "features")), PlainPool)
    assert uid not in set(pd.read_parquet(own).uid)


def test_an_entry_that_is_nowhere_is_told(curated, tmp_path, capsys):
    config, own = in_index(copy_of(curated, tmp_path), recorded=True)
    uid = pd.read_parquet(own).uid[0]
    own.parent.rename(tmp_path / "moved")
    list(takedown.take_down(config, asked_for([uid]), with_duplicates=False))
    told = capsys.readouterr().err
    assert f"warning: corpus_id.json tells of an entry in dedup.index, and {own.parent} has none" in told
    moved = replace(config, dedup=replace(config.dedup, index=str(tmp_path / "moved")))
    assert "dedup.index, " in list(takedown.take_down(moved, TakenDown(), with_duplicates=False))[0]
    assert capsys.readouterr().err == ""


def test_settings_of_faces_shape_shards_only_where_faces_are_blurred(monkeypatch):
    def key(**said: object) -> str:
        return digest(export._writing(CurationConfig(root="", export=ExportConfig(**said))))

    assert key() == key(face_detector="yunet", min_face_share=0.5)
    blurred = [key(faces="blur", **said) for said in ({}, {"min_face_share": 0.5}, {"face_detector": "yunet"})]
    changed = replace(registered("face_yunet"), sha256="0" * 64)
    monkeypatch.setattr(export, "registered", {"face_yunet": changed}.__getitem__)
    assert key(faces="blur") == blurred[0]
    assert len({key(), *blurred, key(faces="blur", face_detector="yunet")}) == 5


def test_missing_weights_are_told_before_the_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_WEIGHTS", str(tmp_path))
    config = CurationConfig(root=str(tmp_path), export=ExportConfig(faces="blur", face_detector="yunet"))
    with pytest.raises(MissingWeights, match="face_yunet"):
        export.export(Runner(config))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to take down: give --uid, --url or --sha256"),
        (("--uid", "xyz"), "uids = 'xyz': must be 32 hex digits"),
        (("--sha256", "00"), "sha256 = '00': must be 64 hex digits"),
    ],
)
def test_a_wrong_request_is_one_line(curated, words, told):
    done = run("pipelines/takedown.py", "--config", str(curated / "config.yaml"), *words, check=False)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
