"""URL lists."""

import json

import pandas as pd
import pytest

from curate.config import WebSource
from curate.crawl import discard_cut_off, finished, list_files, read_lists
from curate.sample import sample_uid

ROWS = pd.DataFrame(
    {"u": ["http://a/1", "http://a/2", None, "http://a/1"], "t": ["one", None, "none", "one"], "l": "CC0"}
)


def write_list(folder, ending):
    path = folder / f"list{ending}"
    if ending == ".parquet":
        ROWS.to_parquet(path)
    elif ending == ".jsonl":
        ROWS.to_json(path, orient="records", lines=True)
    else:
        ROWS.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_lists_of_every_kind_give_distinct_rows(tmp_path, ending):
    source = WebSource(
        name="s", url_list=str(write_list(tmp_path, ending)), url_column="u", caption_column="t", license_column="l"
    )
    chunks = list(read_lists(source, list_files(source), 2))
    rows = [row for chunk in chunks for row in chunk.to_pylist()]
    assert {(row["url"], row["caption"]) for row in rows} == {
        ("http://a/1", "one"),
        ("http://a/2", None),
        (None, "none"),
    }
    assert len(rows) == 3
    assert [len(chunk) for chunk in chunks] == [2, 1]
    assert {row["license"] for row in rows} == {"CC0"}
    assert {row["uid"] for row in rows} == {
        sample_uid("s", "http://a/1", "one"),
        sample_uid("s", "http://a/2", None),
        sample_uid("s", "", "none"),
    }


def test_a_missing_list_is_named():
    with pytest.raises(ValueError, match=r"web\.s\.url_list = nowhere/\*\.csv"):
        list_files(WebSource(name="s", url_list="nowhere/*.csv"))


def write_download(folder, stem, tar: bytes):
    """Write what img2dataset leaves of a shard."""
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.tar").write_bytes(tar)
    pd.DataFrame({"chunk": [f"s-{stem}"], "uid": ["u"], "key": ["0"]}).to_parquet(folder / f"{stem}.parquet")
    (folder / f"{stem}_stats.json").write_text("{}")


def test_a_cut_off_shard_is_not_taken_for_done(tmp_path):
    write_download(tmp_path / "a", "00000", b"x" * 512 + bytes(1024))
    write_download(tmp_path / "a", "00001", b"x" * 1024)
    write_download(tmp_path / "a", "00002", b"x" * 512 + bytes(1024))
    (tmp_path / "a" / "00002.parquet").unlink()
    assert finished(str(tmp_path)) == {"s-00000": str(tmp_path / "a" / "00000")}
    discard_cut_off(str(tmp_path))
    assert [path.name for path in sorted((tmp_path / "a").glob("*_stats.json"))] == ["00000_stats.json"]


def test_an_empty_caption_is_a_missing_one(tmp_path):
    rows = [{"url": "http://a/1", "caption": ""}, {"url": "http://a/1", "caption": None}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = WebSource(name="s", url_list=str(tmp_path / "list.jsonl"))
    assert [chunk["caption"].to_pylist() for chunk in read_lists(source, list_files(source), 10)] == [[None]]
