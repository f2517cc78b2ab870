"""URL lists."""

import json

import pandas as pd
import pytest

from curate.config import WebSource
from curate.crawl.download import discard_cut_off, finished
from curate.crawl.lists import list_files, read_lists
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


FAR = 21_000
"""More rows than those from which DuckDB guesses what a file is like."""


def rows_of(source):
    return [row for chunk in read_lists(source, list_files(source), FAR) for row in chunk.to_pylist()]


def test_text_of_a_jsonl_list_is_what_it_says(tmp_path):
    """Whatever the values before it are: none at all, numbers, lists, or all of them dates."""
    path = tmp_path / "list.jsonl"
    source = WebSource(name="s", url_list=str(path), license_column="by", extra_columns=("when", "Of"))
    rows = [{"url": f"http://a/{at}", "caption": None, "by": None, "when": None} for at in range(FAR)]
    late = {"url": "http://b/1", "caption": 'a "late" one', "by": "CC0", "when": "2020-01-02T03:04:05Z", "of": [1, "x"]}
    path.write_text("\n".join(map(json.dumps, [{"of": None}, *rows, late])))
    found = next(row for row in rows_of(source) if row["url"] == "http://b/1")
    assert (found["caption"], found["license"]) == ('a "late" one', "CC0")
    assert json.loads(found["extra"]) == {"when": "2020-01-02T03:04:05Z", "Of": [1, "x"]}
    captions = ["a str", 3, 1.50, ["l"], True, "2020-01-02T03:04:05Z", {"x": 1}]
    source = WebSource(name="s", url_list=str(path), url_column="URL")
    path.write_text("\n".join(json.dumps({"url": f"{at}", "caption": said}) for at, said in enumerate(captions)))
    told = {row["url"]: row["caption"] for row in rows_of(source)}
    assert told == dict(zip("0123456", ["a str", "3", "1.5", '["l"]', "true", captions[5], '{"x":1}'], strict=True))


def test_a_csv_list_may_quote_late(tmp_path):
    path = tmp_path / "list.csv"
    rows = "".join(f"http://a/{at},plain {at}\n" for at in range(FAR))
    path.write_text(f'url,caption\n{rows}http://b/1,"with ""quotes"""\nhttp://b/2,"a, b\nand c"\nhttp://b/3,a 5" one\n')
    told = {row["url"]: row["caption"] for row in rows_of(WebSource(name="s", url_list=str(path)))}
    assert [told[f"http://b/{at}"] for at in (1, 2, 3)] == ['with "quotes"', "a, b\nand c", 'a 5" one']
    assert len(told) == FAR + 3


def test_the_captions_of_a_url_are_in_one_chunk(tmp_path):
    captions = {f"http://a/{n}": 1 + n % 4 for n in range(60)}
    rows = [{"url": url, "caption": f"{at}"} for url, count in captions.items() for at in range(count)]
    rows += [{"url": "http://a/many", "caption": f"{at}"} for at in range(25)]
    rows += [{"url": None, "caption": f"{at}"} for at in range(25)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = WebSource(name="s", url_list=str(tmp_path / "list.jsonl"))
    chunks = [chunk["url"].to_pylist() for chunk in read_lists(source, list_files(source), 7)]
    assert sorted(map(str, sum(chunks, []))) == sorted(str(row["url"]) for row in rows)
    assert max(map(len, chunks)) == 7
    apart = {url: sum(url in chunk for chunk in chunks) for url in captions}
    assert set(apart.values()) == {1}
    places = [int(url.rpartition("/")[2]) for chunk in chunks for url in chunk if url in captions]
    assert places != sorted(places)


def test_a_missing_list_is_named():
    with pytest.raises(ValueError, match=r"web\.s\.url_list = nowhere/\*\.csv"):
        list_files(WebSource(name="s", url_list="nowhere/*.csv"))


def write_download(folder, stem, tar: bytes):
    """Write what img2dataset leaves of a shard."""
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.tar").write_bytes(tar)
    pd.DataFrame({"chunk": [f"s-{stem}"], "uid": ["u"], "key": ["0"]}).to_parquet(folder / f"{stem}.parquet")
    pd.DataFrame({"uid": ["u"]}).to_parquet(folder / f"{stem}_outcomes.parquet")
    (folder / f"{stem}_stats.json").write_text("{}")


def test_a_cut_off_shard_is_not_taken_for_done(tmp_path):
    write_download(tmp_path / "a", "00000", b"x" * 512 + bytes(1024))
    write_download(tmp_path / "a", "00001", b"x" * 1024)
    write_download(tmp_path / "a", "00002", b"x" * 512 + bytes(1024))
    write_download(tmp_path / "a", "00003", b"x" * 512 + bytes(1024))
    write_download(tmp_path / "a", "00004", b"x" * 512 + bytes(1024))
    (tmp_path / "a" / "00002.parquet").unlink()
    (tmp_path / "a" / "00003_outcomes.parquet").unlink()
    (tmp_path / "a" / "00004_outcomes.parquet").write_bytes(b"PAR1 cut off")
    assert finished(str(tmp_path)) == {"s-00000": str(tmp_path / "a" / "00000")}
    discard_cut_off(str(tmp_path))
    assert [path.name for path in sorted((tmp_path / "a").glob("*_stats.json"))] == ["00000_stats.json"]


def test_an_empty_caption_is_a_missing_one(tmp_path):
    rows = [{"url": "http://a/1", "caption": ""}, {"url": "http://a/1", "caption": None}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = WebSource(name="s", url_list=str(tmp_path / "list.jsonl"))
    assert [chunk["caption"].to_pylist() for chunk in read_lists(source, list_files(source), 10)] == [[None]]


LISTS = [
    ("LAION", "URL", "TEXT", ["similarity", "punsafe"]),
    ("DataComp", "url", "text", ["uid", "clip_l14_similarity_score"]),
]


@pytest.mark.parametrize(("name", "url", "text", "extra"), LISTS, ids=[row[0] for row in LISTS])
def test_lists_of_known_sets_are_read_as_they_are(tmp_path, name, url, text, extra):
    for number in range(2):
        rows = {url: [f"http://a/{number}"], text: ["one"], "sha256": ["AB" * 32], extra[0]: [0.5], extra[1]: ["x"]}
        pd.DataFrame(rows).to_parquet(tmp_path / f"part-{number}.parquet")
    source = WebSource(
        name="s",
        url_list=str(tmp_path / "*.parquet"),
        url_column=url.lower(),
        caption_column=text,
        sha256_column="sha256",
        extra_columns=tuple(extra),
    )
    rows = [row for chunk in read_lists(source, list_files(source), 10) for row in chunk.to_pylist()]
    assert sorted(row["url"] for row in rows) == ["http://a/0", "http://a/1"]
    assert {row["sha256"] for row in rows} == {"ab" * 32}
    assert [json.loads(row["extra"]) for row in rows] == [{extra[0]: 0.5, extra[1]: "x"}] * 2


def test_a_missing_column_is_named(tmp_path):
    path = write_list(tmp_path, ".csv")
    with pytest.raises(ValueError, match=r"web\.s\.url_column = 'url': the lists have u, t, l"):
        next(read_lists(WebSource(name="s", url_list=str(path)), [str(path)], 10))
    source = WebSource(name="s", url_list=str(path), url_column="u", caption_column="t", extra_columns=("x",))
    with pytest.raises(ValueError, match=r"web\.s\.extra_columns = 'x'"):
        next(read_lists(source, [str(path)], 10))


@pytest.mark.shared
def test_real_lists_are_read(shared):
    parquet = str(shared / "web_captions" / "img2dataset_test_10000.parquet")
    cc3m = str(shared / "web_captions" / "cc3m_validation_10000.tsv.gz")
    for source in (
        WebSource(name="s", url_list=parquet, caption_column="text"),
        WebSource(name="s", url_list=cc3m, column_names=("caption", "url")),
    ):
        chunks = list(read_lists(source, list_files(source), 4000))
        rows = [row for chunk in chunks for row in chunk.to_pylist()]
        assert 9_900 < len({row["uid"] for row in rows}) == len(rows) <= 10_000
        assert sum(row["url"].startswith("http") for row in rows) >= len(rows) - 1
        assert sum(len(row["caption"] or "") > 10 for row in rows) > 9_000


def test_a_list_without_a_header_line(tmp_path):
    (tmp_path / "list.tsv").write_text('a "quoted caption\thttp://a/1\nanother\thttp://a/2\n')
    source = WebSource(name="s", url_list=str(tmp_path / "list.tsv"), column_names=("caption", "url"))
    rows = next(read_lists(source, list_files(source), 10)).to_pylist()
    assert {(row["url"], row["caption"]) for row in rows} == {
        ("http://a/1", 'a "quoted caption'),
        ("http://a/2", "another"),
    }
