"""Every kind of dump: what is read, what comes as a status, and that nothing is lost."""

import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.bad_input import BadInput
from curate.config import CurationConfig, DumpSource
from curate.config_file import read_settings
from curate.dump.files import find_files
from curate.dump.kinds import dump_parts, list_part, read_listing
from curate.sample import sample_uid
from curate.tar import TarShard, index_tar
from tests.curate.dump_files import (
    chunks_of,
    image_table,
    parquet_of,
    read,
    saved_to_disk,
    stream_of,
    tar_of,
    told,
    write_folder,
    zip_of,
)

FILES = {
    "a.jpg": b"A",
    "a.txt": " a caption\n",
    "b.PNG": b"B",
    "sub/c.d.webp": b"C",
    "sub/c.d.txt": "c d",
    "n.pdf": b"x",
}
OF_FILES = [("a.jpg", "a caption", b"A"), ("b.PNG", None, b"B"), ("sub/c.d.webp", "c d", b"C")]


def under(prefix, rows):
    return [(f"{prefix}/{path}", *rest) for path, *rest in rows]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# folders


def test_a_folder_with_sidecars(tmp_path):
    assert told(read(write_folder(tmp_path, FILES))) == OF_FILES


def test_a_caption_without_its_image_has_a_row(tmp_path):
    write_folder(tmp_path, {"a.jpg": b"A", "gone.txt": "it was here"})
    assert told(read(tmp_path)) == [("a.jpg", None, b"A"), ("gone.txt", "it was here", "missing_file")]


def test_json_sidecars_give_caption_and_licence(tmp_path):
    write_folder(tmp_path, {"a.jpg": b"A", "a.json": lines({"alt": "from json", "terms": "CC0"}), "a.txt": "from text"})
    write_folder(tmp_path, {"b.jpg": b"B", "b.json": "{broken", "c.jpg": b"C", "c.json": "[1]"})
    write_folder(tmp_path, {"d.jpg": b"D", "d.json": "[" * 100_000})
    found = read(tmp_path, caption_column="alt", license_column="terms", license="other")
    assert [(row.caption, row.license) for row in found] == [("from text", "CC0"), *[(None, "other")] * 3]
    found = read(tmp_path, caption_column="alt", sidecar="json")
    assert [(row.caption, row.status) for row in found] == [
        ("from json", None),
        *[(None, "bad_caption")] * 3,
    ]
    assert "Expecting property name" in found[1].error and "expected an object, got list" in found[2].error


def test_each_row_of_a_captions_file_has_a_row(tmp_path):
    rows = [
        {"file_name": "a.jpg", "caption": "second", "by": "CC0"},
        {"file_name": "./a.jpg", "caption": "first"},
        {"file_name": "a.jpg", "caption": "second", "by": "CC0"},
        {"file_name": "lost.jpg", "caption": ["only the first counts", "not this"]},
        {"file_name": "../x.jpg", "caption": "out"},
        {"file_name": "/etc/x.jpg", "caption": "out"},
        {"file_name": None, "caption": "no name"},
        {"file_name": "a.jpg\0=1", "caption": "second"},
    ]
    write_folder(tmp_path, {"a.jpg": b"A", "b.jpg": b"B", "c.jsonl": lines(*rows)})
    found = read(tmp_path, captions="c.jsonl", license_column="by", license="mine")
    assert sorted(told(found), key=str) == [
        ("", "no name", "missing_file"),
        ("../x.jpg", "out", "unsafe_path"),
        ("/etc/x.jpg", "out", "unsafe_path"),
        ("a.jpg", "first", b"A"),
        ("a.jpg", "second", "repeated"),
        ("a.jpg", "second", b"A"),
        ("a.jpg\ufffd=1", "second", "missing_file"),
        ("b.jpg", None, b"B"),
        ("lost.jpg", "only the first counts", "missing_file"),
    ]
    assert len({sample_uid("d", row.key, row.caption) for row in found}) == len(found)
    assert {row.caption: row.license for row in found if row.data == b"A"} == {"first": "mine", "second": "CC0"}
    (tmp_path / "c.jsonl").write_text(lines(*reversed(rows)))
    assert read(tmp_path, captions="c.jsonl", license_column="by", license="mine") == found


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_captions_files_of_other_kinds(tmp_path, ending):
    table = pa.table({"image": ["a.jpg", "b.jpg"], "text": ['one, "two"', None]})
    separator = "\t" if ending == "tsv" else ","
    text = separator.join(["image", "text"]) + f'\na.jpg{separator}"one, ""two"""\nb.jpg{separator}\n'
    data = parquet_of(table) if ending == "parquet" else text
    write_folder(tmp_path, {"a.jpg": b"A", "b.jpg": b"B", f"c.{ending}": data})
    found = read(tmp_path, captions=f"c.{ending}", file_column="image", caption_column="text")
    assert told(found) == [("a.jpg", 'one, "two"', b"A"), ("b.jpg", None, b"B")]


def test_an_imagefolder_has_metadata_in_each_split(tmp_path):
    write_folder(tmp_path, {"train/x/1.jpg": b"1", "test/1.jpg": b"2", "test/2.jpg": b"3"})
    write_folder(tmp_path, {"train/metadata.jsonl": lines({"file_name": "x/1.jpg", "text": "one"})})
    write_folder(
        tmp_path, {"test/metadata.csv": "file_name,text\n1.jpg,two\n../train/x/1.jpg,again\n../../e.jpg,out\n"}
    )
    assert told(read(tmp_path, caption_column="text")) == [
        ("../../e.jpg", "out", "unsafe_path"),
        ("test/1.jpg", "two", b"2"),
        ("test/2.jpg", None, b"3"),
        ("train/x/1.jpg", "again", b"1"),
        ("train/x/1.jpg", "one", b"1"),
    ]


def test_a_file_that_goes_between_listing_and_reading_is_a_status(tmp_path):
    write_folder(tmp_path, FILES)
    (part,) = dump_parts(DumpSource(name="d", folder=str(tmp_path)))
    (listing,) = list_part(part, 100)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "sub" / "c.d.txt").unlink()
    assert told(read_listing(part.source, listing.rows)) == [
        ("a.jpg", "a caption", "missing_file"),
        ("b.PNG", None, b"B"),
        ("sub/c.d.webp", None, "missing_file"),
    ]


def test_names_of_odd_bytes_keep_apart(tmp_path):
    for byte in (b"\xff", b"\xfe"):
        (tmp_path / os.fsdecode(b"bad-" + byte + b".jpg")).write_bytes(byte)
    found = read(tmp_path)
    assert sorted(told(found)) == [("bad-?.jpg", None, b"\xfe"), ("bad-?.jpg", None, b"\xff")]
    assert len({sample_uid("d", row.key, row.caption) for row in found}) == 2


# archives


@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
class TestArchives:
    def write(self, folder, make, members, name="x"):
        path = folder / f"{name}.{'tar' if make is tar_of else 'zip'}"
        path.write_bytes(make(members))
        return path

    def test_sidecars_inside(self, tmp_path, make):
        path = self.write(tmp_path, make, FILES.items())
        assert told(read(tmp_path)) == under(path.name, OF_FILES)

    def test_one_archive_by_its_own_path(self, tmp_path, make):
        path = self.write(tmp_path, make, FILES.items())
        self.write(tmp_path, make, [("other.jpg", b"O")], "y")
        assert told(read(path)) == under(path.name, OF_FILES)

    def test_captions_file_inside(self, tmp_path, make):
        rows = lines({"file_name": "a.jpg", "caption": "one"}, {"file_name": "lost.jpg", "caption": "two"})
        path = self.write(tmp_path, make, [("c.jsonl", rows), ("a.jpg", b"A"), ("b.jpg", b"B")])
        assert told(read(tmp_path, captions="c.jsonl")) == under(
            path.name, [("a.jpg", "one", b"A"), ("b.jpg", None, b"B"), ("lost.jpg", "two", "missing_file")]
        )
        with pytest.raises(ValueError, match=rf"dumps\.d\.captions = no\.jsonl: not in {path.name}"):
            read(tmp_path, captions="no.jsonl")

    def test_members_that_lead_out_are_refused(self, tmp_path, make):
        names = ["../a.jpg", "/b.jpg", "x/../../c.jpg", "..\\d.jpg", "C:\\e.jpg", "../f.sh"]
        folder = tmp_path / "dump"
        folder.mkdir()
        path = self.write(folder, make, [*((name, b"evil") for name in names), ("link.jpg", None), ("ok.jpg", b"O")])
        found = told(read(folder))
        refused = [(f"{path.name}/{name}", None, "unsafe_path") for name in [*names, "link.jpg"]]
        assert found == [*refused, (f"{path.name}/ok.jpg", None, b"O")]
        assert [*tmp_path.iterdir(), *folder.iterdir()] == [folder, path]

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_members_of_one_name_are_two_rows(self, tmp_path, make):
        members = [("a.jpg", b"1"), ("a.txt", "one"), ("./a.jpg", b"2"), ("a.txt", "two"), ("a.jpg", b"3")]
        path = self.write(tmp_path, make, members)
        found = read(tmp_path)
        name = f"{path.name}/a.jpg"
        assert told(found) == [(name, "one", b"1"), (name, "two", b"2"), (name, "two", b"3")]
        assert len({row.key for row in found}) == 3

    def test_chunks_read_only_their_part(self, tmp_path, make):
        self.write(tmp_path, make, [(f"{n}.jpg", b"%d" % n) for n in range(7)])
        assert [[row.data for row in chunk] for chunk in chunks_of(tmp_path, 3)] == [
            [b"0", b"1", b"2"],
            [b"3", b"4", b"5"],
            [b"6"],
        ]

    def test_too_large_files_are_not_read(self, tmp_path, make):
        self.write(tmp_path, make, [("big.jpg", bytes((1 << 20) + 1)), ("fits.jpg", bytes(1 << 20))])
        assert [row.status for row in read(tmp_path, max_file_mb=1)] == ["too_large", None]

    def test_a_cut_off_archive_keeps_what_is_whole(self, tmp_path, make):
        pictures = {f"{n}.jpg": os.urandom(700) for n in range(5)}
        whole = make(pictures.items())
        at = whole.index(pictures["3.jpg"]) + 300
        path = tmp_path / ("x.tar" if make is tar_of else "x.zip")
        path.write_bytes(whole[:at])
        found = told(read(tmp_path))
        kept = [(f"{path.name}/{n}.jpg", None, pictures[f"{n}.jpg"]) for n in range(3)]
        assert found[:4] == [*kept, (f"{path.name}/3.jpg", None, "truncated")]
        assert found[4:] == [(path.name, None, "truncated" if make is tar_of else "damaged")]

    def test_a_cut_off_archive_may_have_lost_its_captions(self, tmp_path, make):
        whole = make([("a.jpg", b"A" * 600), ("b.jpg", os.urandom(600)), ("c.jsonl", "")])
        path = tmp_path / ("x.tar" if make is tar_of else "x.zip")
        path.write_bytes(whole[: whole.index(b"b.jpg") + (700 if make is tar_of else 100)])
        found = told(read(tmp_path, captions="c.jsonl"))
        assert found[:2] == [(f"{path.name}/a.jpg", None, b"A" * 600), (f"{path.name}/b.jpg", None, "truncated")]
        assert [name for name, *_ in found[2:]] == [path.name]

    @pytest.mark.parametrize("data", [b"", b"not an archive", bytes(511)])
    def test_no_archive_at_all_is_a_status(self, tmp_path, make, data):
        path = tmp_path / ("x.tar" if make is tar_of else "x.zip")
        path.write_bytes(data)
        ((name, caption, status),) = told(read(tmp_path))
        assert (name, caption) == (path.name, None) and status in ("truncated", "damaged")


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120),
    size=st.integers(0, 5000),
)
@settings(deadline=None)
def test_headers_of_shards_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, 0, 0o644
    shard = io.BytesIO()
    try:
        header = member.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        with pytest.raises(ValueError, match="name is too long"):
            TarShard(shard).add(name, bytes(size))
        return
    assert TarShard(shard).add(name, bytes(size)) == 512
    assert shard.getvalue() == header + bytes(size + -size % 512)


def test_a_webdataset_sample_may_have_many_keys(tmp_path):
    record = {"caption": "from json", "license": "CC0", "exif": "GPS 47.1 8.5"}
    members = [
        ("s/1.jpg", b"1"),
        ("s/1.txt", "from text"),
        ("s/1.json", lines(record)),
        ("s/1.cls", "7"),
        ("s/2.seg.png", b"2"),
        ("s/2.json", lines(record)),
        ("s/3.txt", "no image"),
        ("s/3.json", lines(record)),
        ("s/4.json", lines(record)),
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    rows = [("s/1.jpg", "from text", b"1"), ("s/2.seg.png", "from json", b"2"), ("s/3.txt", "no image", "missing_file")]
    assert told(read(tmp_path)) == under("x.tar", [*rows, ("s/4.json", "from json", "missing_file")])
    assert {row.license for row in read(tmp_path, sidecar="json", license_column="license")} == {"CC0"}
    assert [row.caption for row in read(tmp_path, sidecar="json")][:2] == ["from json", "from json"]
    assert "GPS" not in repr(read(tmp_path, sidecar="json", license_column="license"))


def test_long_and_odd_names_in_tars(tmp_path):
    long, odd = "d/" * 60 + "a.jpg", os.fsdecode(b"bad-\xff.jpg")
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        (tmp_path / f"{number}.tar").write_bytes(tar_of([(long, b"L"), (odd, b"O"), ("\u4e2d.jpg", b"U")], format=kind))
    rows = [(long, None, b"L"), ("bad-?.jpg", None, b"O"), ("\u4e2d.jpg", None, b"U")]
    assert sorted(told(read(tmp_path))) == sorted(under("0.tar", rows) + under("1.tar", rows))


def test_the_global_headers_of_a_tar_are_no_damage(tmp_path):
    """As `git archive` writes one, with the commit; joined tars have one each."""
    said = {"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "c" * 2000}}
    one, other = (tar_of([(f"{name}.jpg", name.encode())], **said) for name in "ab")
    (tmp_path / "x.tar").write_bytes(one + other)
    assert told(read(tmp_path)) == under("x.tar", [("a.jpg", None, b"a"), ("b.jpg", None, b"b")])


@pytest.mark.parametrize("kind", [tarfile.XGLTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_headers_without_end_are_damage(tmp_path, kind):
    member = tarfile.TarInfo("a.jpg")
    member.type = kind
    (tmp_path / "x.tar").write_bytes(tar_of([("a.jpg", b"A")])[:1024] + 2000 * member.tobuf(tarfile.GNU_FORMAT))
    assert told(read(tmp_path)) == [("x.tar/a.jpg", None, b"A"), ("x.tar", None, "damaged")]


def test_joined_and_damaged_tars_are_read_on(tmp_path):
    first, second = tar_of([("a.jpg", b"A")]), tar_of([("b.jpg", b"B"), ("c.jpg", b"C")])
    (tmp_path / "x.tar").write_bytes(first + second)
    assert told(read(tmp_path)) == under("x.tar", [("a.jpg", None, b"A"), ("b.jpg", None, b"B"), ("c.jpg", None, b"C")])
    damaged = bytearray(second)
    damaged[:100] = b"?" * 100
    (tmp_path / "x.tar").write_bytes(first[:1024] + damaged)
    assert told(read(tmp_path)) == [
        ("x.tar/a.jpg", None, b"A"),
        ("x.tar/c.jpg", None, b"C"),
        ("x.tar", None, "damaged"),
    ]


def test_devices_in_tars_and_compressed_tars_are_told(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("dev.jpg", tarfile.CHRTYPE), ("fifo", tarfile.FIFOTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    (tmp_path / "y.tar.gz").write_bytes(b"\x1f\x8b")
    assert told(read(tmp_path)) == [
        ("x.tar/dev.jpg", None, "unsafe_path"),
        ("x.tar/fifo", None, "unsafe_path"),
        ("x.tar/hard.jpg", None, "unsafe_path"),
        ("y.tar.gz", None, "damaged"),
    ]


@pytest.mark.parametrize("size", [-512, -(1 << 40), 1 << 62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_hostile_length_neither_loops_nor_fills_the_memory(size, kind):
    member = tarfile.TarInfo("a.jpg")
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    data = tar_of([("first.jpg", b"F")])[:1024] + bytes(header) + bytes(2048)

    class Watched(io.BytesIO):
        def read(self, num_bytes=-1):
            assert 0 <= num_bytes <= 1 << 20
            return super().read(num_bytes)

    found = list(index_tar(Watched(data), len(data)))
    assert (found[0].name, found[0].status) == ("first.jpg", None)
    assert {each.status for each in found[1:]} <= {"damaged", "truncated"} and found[1:]


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 5000), flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=8))
@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
def test_any_damage_is_rows_with_a_status(tmp_path_factory, make, cut, flips):
    pictures = [(f"{n}.jpg", b"%d" % n * 400) for n in range(4)]
    data = bytearray(make(pictures))[:cut]
    for at, value in flips:
        if at < len(data):
            data[at] = value
    folder = tmp_path_factory.mktemp("damage")
    (folder / ("x.tar" if make is tar_of else "x.zip")).write_bytes(data)
    found = read(folder)
    assert found and len({row.key for row in found}) == len(found)
    if make is zip_of:
        whole = {content for _, content in pictures}
        assert all(row.status or row.data in whole for row in found)


def test_encrypted_members_of_zips_are_a_status(tmp_path):
    data = bytearray(zip_of([("a.jpg", b"A"), ("b.jpg", b"B")]))
    for signature, flags_at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + flags_at] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert told(read(tmp_path)) == [("x.zip/a.jpg", None, "encrypted"), ("x.zip/b.jpg", None, b"B")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_every_method(tmp_path, method):
    (tmp_path / "x.zip").write_bytes(zip_of([("a.jpg", b"A" * 999)], method))
    wanted = "damaged" if method == zipfile.ZIP_LZMA else b"A" * 999
    assert told(read(tmp_path)) == [("x.zip/a.jpg", None, wanted)]


def test_a_streamed_zip_without_its_directory_is_read_by_its_headers(tmp_path):
    class Pipe(io.RawIOBase):
        """A file that cannot be sought, so that lengths come behind the data."""

        def __init__(self):
            self.data = bytearray()

        def writable(self):
            return True

        def write(self, piece):
            self.data += piece
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.jpg", b"%d" % number * 5000)
    (tmp_path / "x.zip").write_bytes(pipe.data[: pipe.data.index(b"PK\1\2")])
    assert told(read(tmp_path)) == [
        *((f"x.zip/{n}.jpg", None, b"%d" % n * 5000) for n in range(3)),
        ("x.zip", None, "damaged"),
    ]


def test_members_of_a_zip_that_share_their_bytes_are_refused(tmp_path):
    data = zip_of([("a.jpg", bytes(100_000)), ("b.jpg", b"B")])
    first, second = (data.index(b"PK\1\2"), data.rindex(b"PK\1\2"))
    data = bytearray(data)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    (tmp_path / "x.zip").write_bytes(data)
    kept, refused = read(tmp_path)
    assert (kept.data, refused.status) == (bytes(100_000), "damaged")
    assert "shares its bytes" in refused.error


def test_a_zip_bomb_gives_no_more_than_it_says(tmp_path):
    data = bytearray(zip_of([("a.jpg", bytes(1 << 20))]))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<L", data, data.index(signature) + at, 10)
    (tmp_path / "x.zip").write_bytes(data)
    assert told(read(tmp_path)) == [("x.zip/a.jpg", None, "damaged")]


def test_a_captions_file_that_does_not_unpack_is_named(tmp_path):
    data = bytearray(zip_of([("c.jsonl", os.urandom(100)), ("a.jpg", b"A")], zipfile.ZIP_STORED))
    data[60] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"dumps\.d\.captions = c\.jsonl in x\.zip: length or crc32 differ"):
        read(tmp_path, captions="c.jsonl")


# tables

ROWS = [(b"%d" % n, f"/home/x/{n}.jpg" if n % 2 else None, f"caption {n}") for n in range(10)]


def of_rows(name, rows=ROWS):
    return [(f"{name}#{n}" + (f"/{n}.jpg" if path else ""), c, data) for n, (data, path, c) in enumerate(rows)]


def test_the_captions_of_an_image_are_in_one_chunk(tmp_path):
    lines = [{"file_name": f"{n}.jpg", "caption": f"{at}"} for n in range(20) for at in range(1 + n % 4)]
    files = {f"{n}.jpg": b"x" for n in range(20)} | {"captions.jsonl": "\n".join(map(json.dumps, lines))}
    write_folder(tmp_path, files)
    chunks = [told(chunk) for chunk in chunks_of(tmp_path, 6, captions="captions.jsonl")]
    assert sum(map(len, chunks)) == len(lines) and max(map(len, chunks)) <= 6
    assert {sum(f"{n}.jpg" in {row[0] for row in chunk} for chunk in chunks) for n in range(20)} == {1}


@pytest.mark.parametrize("rows_per_chunk", [2, 3, 4, 9, 100])
def test_parquet_by_row_group(tmp_path, rows_per_chunk):
    (tmp_path / "data").mkdir()
    for name in ("b", "a"):
        (tmp_path / "data" / f"{name}.parquet").write_bytes(parquet_of(image_table(ROWS)))
    found = told(read(tmp_path, rows_per_chunk, caption_column="text"))
    assert sorted(found) == sorted(of_rows("data/a.parquet") + of_rows("data/b.parquet"))


def test_chunks_of_parquet_are_whole_row_groups_where_they_fit(tmp_path):
    (tmp_path / "x.parquet").write_bytes(parquet_of(image_table(ROWS)))
    assert [len(chunk) for chunk in chunks_of(tmp_path, 9, caption_column="text")] == [8, 2]
    assert [len(chunk) for chunk in chunks_of(tmp_path, 3, caption_column="text")] == [3, 1, 3, 1, 2]


def test_columns_of_tables(tmp_path):
    table = pa.table(
        {"jpg": pa.array([b"1", None], pa.large_binary()), "other": [b"x", b"y"], "alts": [["a", "b"], []]}
    )
    table = table.append_column("terms", pa.array(["CC0", None]))
    (tmp_path / "x.parquet").write_bytes(parquet_of(table))
    said = {"image_column": "jpg", "caption_column": "alts", "license_column": "terms", "license": "mine"}
    found = read(tmp_path, **said)
    assert told(found) == [("x.parquet#0", "a", b"1"), ("x.parquet#1", None, "missing_file")]
    assert [row.license for row in found] == ["CC0", "mine"]
    assert [row.caption for row in read(tmp_path, image_column="jpg", caption_column=None)] == [None, None]
    for wrong, message in (
        ({"caption_column": "alts"}, r"image_column = null: 2 of the columns .*: set image_column"),
        ({"image_column": "terms", "caption_column": "alts"}, "image_column = terms: string holds no bytes"),
        ({"image_column": "jpg"}, r"caption_column = caption: the columns are .*: set caption_column"),
        ({"image_column": "jpg", "caption_column": "alts", "license_column": "no"}, "license_column = no"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, **wrong)


def test_an_image_that_a_table_only_names_is_a_status(tmp_path):
    (tmp_path / "x.parquet").write_bytes(parquet_of(image_table([(None, "/home/x/a.jpg", "one"), (None, None, "two")])))
    found = read(tmp_path, caption_column="text")
    assert told(found) == [("x.parquet#0/a.jpg", "one", "missing_file"), ("x.parquet#1", "two", "missing_file")]
    assert "only the path /home/x/a.jpg" in found[0].error


def test_damaged_parquet_keeps_the_row_groups_that_read(tmp_path):
    rows = [(os.urandom(500), None, f"caption {n}") for n in range(8)]
    data = bytearray(parquet_of(image_table(rows)))
    at = data.index(rows[4][0][:50])
    data[at - 8 : at] = bytes(8)  # how the page is packed
    (tmp_path / "x.parquet").write_bytes(data)
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no more")
    found = told(read(tmp_path, caption_column="text"))
    assert sorted(name for name, *_ in found) == [*(f"x.parquet#{n}" for n in range(8)), "y.parquet"]
    assert {(name, said) for name, _, said in found if name < "x.parquet#4"} == {
        (f"x.parquet#{n}", rows[n][0]) for n in range(4)
    }
    assert {said for name, _, said in found if name >= "x.parquet#4"} == {"damaged"}


@pytest.mark.parametrize("rows_per_chunk", [2, 3, 4, 9, 100])
def test_a_data_set_saved_to_disk(tmp_path, rows_per_chunk):
    for split in ("train", "test"):
        write_folder(tmp_path / split, saved_to_disk([image_table(ROWS), image_table(ROWS[:3])]))
        write_folder(tmp_path / split, {"cache-0123.arrow": b"what a map left"})
    write_folder(tmp_path, {"dataset_dict.json": '{"splits": ["train", "test"]}'})
    found = told(read(tmp_path, rows_per_chunk, caption_column="text"))
    wanted = []
    for split in ("train", "test"):
        wanted += of_rows(f"{split}/data-00000-of-00002.arrow") + of_rows(
            f"{split}/data-00001-of-00002.arrow", ROWS[:3]
        )
    assert sorted(found) == sorted(wanted)


def test_a_data_set_that_the_datasets_package_saved():
    """tests/curate/saved_by_datasets is what save_to_disk(num_shards=2) of datasets 5.2.0 wrote."""
    found = read(Path(__file__).parent / "saved_by_datasets", 3, caption_column="text", license="mine")
    wanted = [(f"data-{n // 5:05d}-of-00002.arrow#{n % 5}/{n}.jpg", f"caption {n}", (32, 24)) for n in range(10)]
    assert sorted((*row[:2], Image.open(io.BytesIO(row[2])).size) for row in told(found)) == wanted
    assert {row.license for row in found} == {"mine"}


def test_arrow_files_without_a_state_and_in_the_file_format(tmp_path):
    sink = pa.BufferOutputStream()
    table = image_table(ROWS)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    write_folder(tmp_path, {"x.arrow": sink.getvalue().to_pybytes(), "y.arrow": stream_of(table)})
    assert sorted(told(read(tmp_path, 3, caption_column="text"))) == sorted(of_rows("x.arrow") + of_rows("y.arrow"))


@pytest.mark.parametrize("cut", [0, 5, 700, -300, -8, -3])
def test_a_cut_off_arrow_stream_keeps_its_whole_batches(tmp_path, cut):
    whole = stream_of(image_table(ROWS))
    (tmp_path / "x.arrow").write_bytes(whole[:cut])
    found = told(read(tmp_path, caption_column="text"))
    kept = {0: 0, 5: 0, 700: 0, -300: 8, -8: 10, -3: 10}[cut]
    assert sorted(found) == sorted([*of_rows("x.arrow")[:kept], ("x.arrow", None, "damaged")])


def test_a_data_set_that_lacks_a_file_is_refused(tmp_path):
    write_folder(tmp_path, saved_to_disk([image_table(ROWS), image_table(ROWS)]))
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"state\.json names data-00001-of-00002\.arrow: it is not there"):
        read(tmp_path)


# what a folder is, and what is wrong with it


def test_what_is_wrong_with_a_dump_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"dumps\.d\.folder = .*: no such folder"):
        read(tmp_path / "no")
    assert read(tmp_path) == []
    write_folder(tmp_path, {"clip.mp4": b"x"})
    with pytest.raises(ValueError, match=r"no images and no \.tar, .* only \['\.mp4'\]"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"dumps\.d\.kind = zip: no such files"):
        read(tmp_path, kind="zip")
    with pytest.raises(ValueError, match=r"dumps\.d\.kind = imagefolder: no metadata\.jsonl"):
        read(tmp_path, kind="imagefolder")
    write_folder(tmp_path, {"a.jpg": b"x", "x.tar": tar_of([("t.jpg", b"T")])})
    with pytest.raises(ValueError, match="more than one kind of dump: set kind to one of tar, folder"):
        read(tmp_path)
    assert told(read(tmp_path, kind="tar")) == [("x.tar/t.jpg", None, b"T")]
    assert told(read(tmp_path, kind="folder")) == [("a.jpg", None, b"x")]


def test_what_is_wrong_with_a_captions_file_is_named(tmp_path):
    write_folder(tmp_path, {"a.jpg": b"x", "c.csv": "image,text\na.jpg,x\n", "c.yaml": "x"})
    for captions, said, message in (
        ("no.csv", {}, r"dumps\.d\.captions = no\.csv: not in"),
        ("c.csv", {}, "no column 'file_name', only .*: set file_column"),
        ("c.csv", {"file_column": "image"}, "no column 'caption', only .*: set caption_column"),
        ("c.yaml", {}, r"captions are \.jsonl, \.csv, \.tsv or \.parquet"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, captions=captions, **said)
    for text, message in (
        ('{"file_name": "a.jpg"}\n{broken\n', "line 2"),
        ("[1]\n", "line 1: expected an object"),
        ("[" * 100_000, "line 1: maximum recursion depth"),
        ('{"file_name": %s}' % ("1" * 5000), "line 1: Exceeds the limit"),
    ):
        (tmp_path / "c.jsonl").write_text(text)
        with pytest.raises(BadInput, match=message):
            read(tmp_path, captions="c.jsonl")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"captions": "c.csv", "sidecar": "txt"}, "sidecar"),
        ({"captions": "c.csv", "kind": "parquet"}, "captions"),
        ({"captions": "c.csv", "caption_column": None}, "caption_column"),
        ({"max_file_mb": 0}, "max_file_mb"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(said, field):
    with pytest.raises(ValueError, match=rf"^dumps\.d\.{field} = "):
        DumpSource(name="d", folder="f", **said)


def test_a_replaced_file_is_another_version(tmp_path):
    path = write_folder(tmp_path, {"a.jpg": b"one"}) / "a.jpg"
    (before,) = find_files(DumpSource(name="d", folder=str(tmp_path)))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    (after,) = find_files(DumpSource(name="d", folder=str(tmp_path)))
    assert (before.path, before.num_bytes) == (after.path, after.num_bytes)
    assert before.version != after.version


KINDS = {
    "folder": FILES,
    "tar": {"x.tar": tar_of(FILES.items())},
    "zip": {"x.zip": zip_of(FILES.items())},
    "parquet": {"x.parquet": parquet_of(image_table(ROWS))},
    "arrow": saved_to_disk([image_table(ROWS)]),
    "imagefolder": {"a.jpg": b"A", "metadata.jsonl": lines({"file_name": "a.jpg", "caption": "one"})},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_a_file_system_that_is_not_local(tmp_path, kind):
    write_folder(tmp_path, KINDS[kind])
    said = {"caption_column": "text"} if kind in ("parquet", "arrow") else {}
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), f"/dumps-{kind}", recursive=True)
    try:
        found = read(f"memory://dumps-{kind}", 3, **said)
    finally:
        memory.rm(f"/dumps-{kind}", recursive=True)
    assert found == read(tmp_path, 3, **said)
    assert dump_parts(DumpSource(name="d", folder=str(tmp_path), **said))[0].source.kind == kind
    assert len(found) == {"folder": 3, "tar": 3, "zip": 3, "parquet": 10, "arrow": 10, "imagefolder": 1}[kind]


def test_no_more_than_a_group_of_images_is_held(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number in range(200):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 1 << 20
            archive.addfile(member, io.BytesIO(bytes(1 << 20)))
    (part,) = dump_parts(DumpSource(name="d", folder=str(tmp_path)))
    (listing,) = list_part(part, 1000)
    tracemalloc.start()
    assert sum(len(row.data) for row in read_listing(part.source, listing.rows)) == 200 << 20
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < (64 << 20) + (16 << 20)


def test_of_a_large_row_group_some_rows_are_held(tmp_path):
    table = image_table((os.urandom(1 << 16), None, f"caption {n}") for n in range(2000))
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2000, compression="none", write_batch_size=16)
    del table
    (part,) = dump_parts(DumpSource(name="d", folder=str(tmp_path), caption_column="text"))
    before, held = pa.total_allocated_bytes(), []
    for listing in list_part(part, 1500):
        held += [pa.total_allocated_bytes() - before for _ in read_listing(part.source, listing.rows)]
    assert len(held) == 2000
    assert max(held) < 24 << 20


# the documentation


def test_the_examples_of_the_documentation_show_every_kind(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "curation.md").read_text()
    example = page.split("## Dumps")[1].split("```yaml\n")[1].split("```")[0]
    (tmp_path / "c.yaml").write_text(f"root: out\n{example}")
    config, _ = read_settings(CurationConfig, ["--config", str(tmp_path / "c.yaml")], prog="p", description="")
    assert {source.kind for source in config.dumps} == {None, "imagefolder", "tar", "zip", "parquet", "arrow"}
    assert len(config.dumps) == 7


# real data


@pytest.mark.shared
def test_a_real_webdataset_tar(shared):
    path = shared / "webdataset_cc12m" / "cc12m-train-0000.tar"
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    wanted = [
        (f"{path.name}/{name}", files[name[:-4] + ".txt"].decode().strip(), data)
        for name, data in files.items()
        if name.endswith(".jpg")
    ]
    found = read(path, 10)
    assert len(found) == 32
    assert sorted(told(found)) == sorted(wanted)
    assert all(Image.open(io.BytesIO(row.data)).width > 0 for row in found)


@pytest.mark.shared
def test_real_photographs_are_the_same_from_every_kind(shared, tmp_path):
    photos = sorted((shared / "photos_hires" / "images").iterdir())[:8]
    files = {path.name: path.read_bytes() for path in photos}
    captions = lines(*({"file_name": name, "caption": f"photo {name}"} for name in files))
    table = image_table((data, name, f"photo {name}") for name, data in files.items())
    write_folder(tmp_path / "folder", files | {"c.jsonl": captions})
    write_folder(tmp_path / "tar", {"x.tar": tar_of([*files.items(), ("c.jsonl", captions)])})
    write_folder(tmp_path / "zip", {"x.zip": zip_of([*files.items(), ("c.jsonl", captions)])})
    write_folder(tmp_path / "parquet", {"x.parquet": parquet_of(table)})
    write_folder(tmp_path / "arrow", saved_to_disk([table]))
    for kind in ("folder", "tar", "zip"):
        found = read(tmp_path / kind, captions="c.jsonl")
        assert {row.caption: row.data for row in found} == {f"photo {name}": data for name, data in files.items()}
    for kind in ("parquet", "arrow"):
        found = read(tmp_path / kind, 3, caption_column="text")
        assert {row.caption: row.data for row in found} == {f"photo {name}": data for name, data in files.items()}
