"""Ingest of dumps into raw shards and the samples table: what is kept, what a rerun remakes, from where."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from curate.config import CurationConfig, DumpSource, IngestConfig
from curate.takedown import TakenDown, asked_for
from pipelines.ingest import ingest
from pipelines.runner import Fragment, Report, Runner, Step, make_fragment
from pipelines.store import Receipt, Root
from pipelines.takedown import take_down
from tests.conftest import encoded, picture
from tests.curate.dump_files import image_table, parquet_of, saved_to_disk, tar_of, write_folder, zip_of

PICTURES = {f"{n}.jpg": encoded(picture(n, 64, 48)) for n in range(7)}
CAPTIONS = {name: f"A picture of shapes, {name[0]}" for name in PICTURES}
SIDECARS = {name.replace(".jpg", ".txt"): caption for name, caption in CAPTIONS.items()}
PAIRS = [
    (name, data) for stem in PICTURES for name, data in ((stem, PICTURES[stem]), (stem[0] + ".txt", CAPTIONS[stem]))
]
TABLE = image_table((data, name, CAPTIONS[name]) for name, data in PICTURES.items())
ROWS = "".join(json.dumps({"file_name": name, "caption": caption}) + "\n" for name, caption in CAPTIONS.items())
KINDS: dict[str, dict[str, bytes | str]] = {
    "folder": PICTURES | SIDECARS,
    "imagefolder": PICTURES | {"metadata.jsonl": ROWS},
    "tar": {"x.tar": tar_of(PAIRS[:6]), "y.tar": tar_of(PAIRS[6:])},
    "zip": {"x.zip": zip_of(PAIRS)},
    "parquet": {"x.parquet": parquet_of(TABLE)},
    "arrow": saved_to_disk([TABLE]),
}


class Stopped(Exception):
    """What stands for a kill."""


class InProcess(Runner):
    """Runs the fragments one by one in this process, `most` of them."""

    def __init__(self, config: CurationConfig, most: int = 1000) -> None:
        super().__init__(config)
        self.most = most

    def _make(self, step: Step, missing: Sequence[Fragment], keys: dict[str, str]) -> Iterator[Receipt]:
        for fragment in missing:
            if not self.most:
                raise Stopped
            self.most -= 1
            yield make_fragment(step, self.config, step.build(self.config), (fragment, keys[fragment.name]))


def config_of(folder: Any, root: Any, rows_per_shard: int = 3, **said: Any) -> CurationConfig:
    source = DumpSource(name="d", folder=str(folder), **said)
    return CurationConfig(root=str(root), dumps=(source,), ingest=IngestConfig(rows_per_shard=rows_per_shard))


def bring_in(config: CurationConfig, most: int = 1000) -> dict[str, Report]:
    """Return the report of each table."""
    return {report.table: report for report in ingest(InProcess(config, most))}


def samples_of(root: Any) -> pd.DataFrame:
    """Return the table as its manifest names it, in order of uid."""
    store = Root(str(root))
    names = sorted(store.read_json("tables/samples/_run.json")["fragments"])
    found = [store.read_table(f"tables/samples/{name}.parquet").to_pandas() for name in names]
    return pd.concat(found).sort_values("uid", ignore_index=True)


def bytes_of(root: Any, row: Any) -> bytes:
    return Root(str(root)).read(row.shard, int(row.offset), int(row.num_bytes))


def of_kind(kind: str) -> dict[str, str]:
    return {"caption_column": "text"} if kind in ("parquet", "arrow") else {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_in_whole(tmp_path, kind):
    folder = write_folder(tmp_path / "dump", KINDS[kind])
    reports = bring_in(config_of(folder, tmp_path / "out", **of_kind(kind)))
    rows = samples_of(tmp_path / "out")
    assert list(rows.status) == ["ok"] * 7 and rows.uid.is_unique
    assert {row.caption: bytes_of(tmp_path / "out", row) for row in rows.itertuples()} == {
        CAPTIONS[name]: data for name, data in PICTURES.items()
    }
    assert reports["samples"].counts == {"ok": 7}
    assert reports["samples"].made >= 3
    for shard in set(rows["shard"]):
        with tarfile.open(tmp_path / "out" / shard) as archive:
            assert [f"{uid}.jpeg" for uid in rows[rows["shard"] == shard].uid] == sorted(archive.getnames())
    again = bring_in(config_of(folder, tmp_path / "out", **of_kind(kind)))
    assert {name: report.made for name, report in again.items()} == {"listings": 0, "samples": 0}


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of the samples, by path."""
    fragments = Root(str(root)).read_json("tables/samples/_run.json")["fragments"]
    return {path: said["sha256"] for fragment in fragments.values() for path, said in fragment["files"].items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_files(tmp_path, kind):
    folder = write_folder(tmp_path / "dump", KINDS[kind])
    bring_in(config_of(folder, tmp_path / "whole", **of_kind(kind)))
    config = config_of(folder, tmp_path / "stopped", **of_kind(kind))
    for most in (1, 2):
        with pytest.raises(Stopped):
            bring_in(config, most)
    bring_in(config)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_the_order_of_a_listing_does_not_matter(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "dump", KINDS["folder"] | KINDS["tar"])
    for kind in ("folder", "tar"):
        bring_in(config_of(folder, tmp_path / f"{kind}-there", kind=kind))
    local = type(fsspec.filesystem("file"))
    find = local.find
    monkeypatch.setattr(local, "find", lambda *a, **k: dict(reversed(list(find(*a, **k).items()))))
    for kind in ("folder", "tar"):
        bring_in(config_of(folder, tmp_path / f"{kind}-back", kind=kind))
        assert digests(tmp_path / f"{kind}-back") == digests(tmp_path / f"{kind}-there")
        again = bring_in(config_of(folder, tmp_path / f"{kind}-there", kind=kind))
        assert {name: report.made for name, report in again.items()} == {"listings": 0, "samples": 0}


def later(path: Path, data: bytes | str) -> None:
    """Replace a file's bytes as long as the old ones, at another time."""
    before = path.stat()
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    os.utime(path, ns=(0, before.st_mtime_ns + 1_000_000_000))


def test_a_replaced_image_and_an_edited_caption_remake_their_chunk_only(tmp_path):
    folder = write_folder(tmp_path / "dump", KINDS["folder"])
    config = config_of(folder, tmp_path / "out")
    bring_in(config)
    later(folder / "0.jpg", PICTURES["6.jpg"])
    assert bring_in(config)["samples"].made == 1
    rows = samples_of(tmp_path / "out").set_index("url")
    assert bytes_of(tmp_path / "out", rows.loc["0.jpg"]) == PICTURES["6.jpg"]
    later(folder / "6.txt", CAPTIONS["6.jpg"].replace("shapes", "SHAPES"))
    assert bring_in(config)["samples"].made == 1
    assert samples_of(tmp_path / "out").set_index("url").caption["6.jpg"] == "A picture of SHAPES, 6"
    (folder / "3.jpg").unlink()
    bring_in(config)
    assert samples_of(tmp_path / "out").set_index("url").status["3.txt"] == "missing_file"


def test_a_replaced_archive_with_the_same_offsets_is_read_again(tmp_path):
    folder = write_folder(tmp_path / "dump", {"x.tar": tar_of(PAIRS), "y.tar": tar_of(PAIRS)})
    config = config_of(folder, tmp_path / "out", rows_per_shard=100)
    bring_in(config)
    later(folder / "x.tar", tar_of((name, PICTURES["0.jpg"][:20] if name == "1.jpg" else data) for name, data in PAIRS))
    assert bring_in(config)["samples"].made == 1
    assert samples_of(tmp_path / "out").set_index("url").status["x.tar/1.jpg"] == "not_an_image"
    later(folder / "y.tar", (folder / "y.tar").read_bytes().replace(b"A picture", b"B picture"))
    assert bring_in(config)["samples"].made == 1
    assert set(samples_of(tmp_path / "out").caption.dropna().str[0]) == {"A", "B"}


def test_a_copy_of_a_dump_gives_the_same_files(tmp_path):
    for number in (1, 2):
        write_folder(tmp_path / f"dump{number}", KINDS["folder"])
        bring_in(config_of(tmp_path / f"dump{number}", tmp_path / f"out{number}"))
        os.utime(tmp_path / "dump1" / "0.jpg", (0, 0))
    listings = [
        {path.name: path.read_bytes() for path in (tmp_path / f"out{number}" / "raw" / "listings").glob("*.parquet")}
        for number in (1, 2)
    ]
    assert listings[0] == listings[1] and len(listings[0]) == 3
    assert digests(tmp_path / "out1") == digests(tmp_path / "out2")


def test_a_file_that_comes_or_goes_leaves_the_other_archives_alone(tmp_path):
    folder = write_folder(tmp_path / "dump", {f"{n}.tar": tar_of(PAIRS) for n in (1, 2)})
    config = config_of(folder, tmp_path / "out", rows_per_shard=100)
    bring_in(config)
    write_folder(folder, {"0.tar": tar_of(PAIRS[:2])})
    assert {name: report.made for name, report in bring_in(config).items()} == {"listings": 1, "samples": 1}
    (folder / "1.tar").unlink()
    assert {name: report.made for name, report in bring_in(config).items()} == {"listings": 0, "samples": 0}
    assert set(samples_of(tmp_path / "out").url.str[:5]) == {"0.tar", "2.tar"}
    assert len(list((tmp_path / "out" / "raw").glob("*.tar"))) == 2


def test_what_the_last_dump_brought_goes_with_it(tmp_path):
    config = config_of(write_folder(tmp_path / "dump", KINDS["folder"]), tmp_path / "out")
    bring_in(config)
    bring_in(replace(config, dumps=()))
    assert list((tmp_path / "out" / "raw").rglob("*.*")) == []
    assert Root(config.root).read_json("tables/listings/_run.json")["fragments"] == {}


def test_each_caption_of_a_file_has_its_own_bytes(tmp_path):
    lines = [{"file_name": "0.jpg", "caption": f"caption {n}", "terms": "CC0"} for n in (0, 1, 1)]
    lines += [{"file_name": name, "caption": "lost"} for name in ("../0.jpg", "lost.jpg")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    folder = write_folder(tmp_path / "dump", {"0.jpg": PICTURES["0.jpg"], "1.jpg": PICTURES["1.jpg"], "c.jsonl": text})
    said = {"captions": "c.jsonl", "license_column": "terms", "license": "mine"}
    counts = bring_in(config_of(folder, tmp_path / "out", 100, **said))["samples"].counts
    assert counts == {"ok": 3, "repeated": 1, "unsafe_path": 1, "missing_file": 1}
    rows = samples_of(tmp_path / "out")
    assert rows.uid.is_unique and len(rows) == len(lines) + 1
    same = rows[(rows.url == "0.jpg") & (rows.status == "ok")]
    assert sorted(same.caption) == ["caption 0", "caption 1"] and set(same.license) == {"CC0"}
    assert {bytes_of(tmp_path / "out", row) for row in same.itertuples()} == {PICTURES["0.jpg"]}
    assert set(rows[rows.url != "0.jpg"].license) == {"mine"}


def test_exif_stays_in_the_raw_bytes(tmp_path):
    exif = picture(1).getexif()
    exif[0x010E] = "taken at 47.3769 north"
    data = encoded(picture(1, 64, 48), exif=exif)
    record = json.dumps({"caption": "a picture", "exif": "taken at 47.3769 north"})
    folder = write_folder(tmp_path / "dump", {"x.tar": tar_of([("a.jpg", data), ("a.json", record)])})
    bring_in(config_of(folder, tmp_path / "out"))
    (row,) = samples_of(tmp_path / "out").itertuples()
    assert b"47.3769" in bytes_of(tmp_path / "out", row) == data
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert b"47.3769" not in path.read_bytes()
        assert "47.3769" not in str(Root(str(path.parent)).read_table(path.name).to_pylist())


def test_every_kind_from_s3(tmp_path, s3):
    for kind in KINDS:
        folder = write_folder(tmp_path / kind, KINDS[kind])
        s3.put(str(folder), f"bucket/{kind}", recursive=True)
        bring_in(config_of(folder, tmp_path / "local" / kind, **of_kind(kind)))
        config = config_of(f"s3://bucket/{kind}", f"s3://bucket/out/{kind}", **of_kind(kind))
        bring_in(config)
        here = samples_of(tmp_path / "local" / kind)
        pd.testing.assert_frame_equal(samples_of(f"s3://bucket/out/{kind}"), here)
        assert bring_in(config)["samples"].made == 0
    s3.pipe_file("bucket/folder/0.txt", b"Another caption of the picture")
    assert bring_in(config_of("s3://bucket/folder", "s3://bucket/out/folder"))["samples"].made == 1


def test_a_large_archive_is_read_piece_by_piece(tmp_path, monkeypatch):
    """Of a tar, a chunk reads its own members and no byte of the others."""
    folder = write_folder(tmp_path / "dump", {"x.tar": tar_of((n, PICTURES["0.jpg"]) for n in PICTURES)})
    config = config_of(folder, tmp_path / "out", rows_per_shard=2)
    with pytest.raises(Stopped):
        bring_in(config, most=1)
    local, reads = type(fsspec.filesystem("file")), []

    class Counted(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            reads.append(len(data))
            return data

    opened = local.open
    counted = lambda fs, path, mode="rb", **said: (  # noqa: E731
        Counted(path) if str(path).endswith("dump/x.tar") else opened(fs, path, mode, **said)
    )
    monkeypatch.setattr(local, "open", counted)
    bring_in(config)
    assert sum(reads) == 7 * len(PICTURES["0.jpg"])


def listed(root: Path) -> set[str]:
    """Return the paths that the listings name."""
    store, files = Root(str(root)), sorted((root / "raw" / "listings").glob("*.parquet"))
    tables = [store.read_table(f"raw/listings/{file.name}", ["key"]) for file in files]
    return {key.decode() for table in tables for key in table["key"].to_pylist()}


@pytest.mark.parametrize("kind", ["folder", "imagefolder"])
def test_a_takedown_reaches_the_listing(tmp_path, kind):
    config = config_of(write_folder(tmp_path / "dump", KINDS[kind]), tmp_path / "out")
    bring_in(config)
    uid = samples_of(tmp_path / "out").set_index("url").uid["4.jpg"]
    assert listed(tmp_path / "out") == PICTURES.keys()
    list(take_down(config, asked_for([uid]), with_duplicates=False))
    assert listed(tmp_path / "out") == PICTURES.keys() - {"4.jpg"}


def test_a_takedown_that_is_run_again_reaches_a_listing_made_anew(tmp_path):
    folder = write_folder(tmp_path / "dump", KINDS["imagefolder"])
    config = config_of(folder, tmp_path / "out")
    bring_in(config)
    uid = samples_of(tmp_path / "out").set_index("url").uid["4.jpg"]
    list(take_down(config, asked_for([uid]), with_duplicates=False))
    write_folder(folder, {"9.jpg": PICTURES["0.jpg"]})
    bring_in(config)
    assert "4.jpg" in listed(tmp_path / "out") and uid not in set(samples_of(tmp_path / "out").uid)
    list(take_down(config, TakenDown(), with_duplicates=False))
    assert listed(tmp_path / "out") == PICTURES.keys() - {"4.jpg"} | {"9.jpg"}
    assert {name: report.made for name, report in bring_in(config).items()} == {"listings": 0, "samples": 0}
