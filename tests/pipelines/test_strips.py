"""Strips of a small root that is written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from curate.config import CurationConfig
from curate.strip import CELL_PX, GREY, LINE_PX, SURVIVOR_COLOUR
from curate.takedown import TakenDown, url_sha256
from pipelines.store import Root, commit, parquet_bytes, publish, table_file
from pipelines.strips import strips
from pipelines.taken_down import write_taken_down
from schemas import duplicates, samples, scores
from tests.conftest import encoded, picture
from tests.pipelines.small_run import run

SHARD = "raw/one.tar"
MEMBERS = [
    # fragment, uid, cluster, survivor, kind, distance, won_by
    ("a", "a0", "a0", "a0", None, None, None),
    ("a", "a1", "a0", "a0", "exact", 0.0, "caption"),
    ("b", "b0", "a0", "a0", "perceptual", 2.0, "resolution"),
    ("b", "b1", "old", "old", "perceptual", 4.0, "resolution"),
    ("b", "old", "old", "old", "exact", 0.0, "earlier"),
    ("b", "b2", "b2", "b2", None, None, None),
    ("b", "v0", "v0", "v0", "eval_set", None, None),
    ("b", "v1", "v0", "v0", "eval_set", 3.0, "earlier"),
    *(("b", f"e{n:02d}", "e00", None, "error_image", None, None) for n in range(14)),
]
"""A survivor with members in two fragments, one of an earlier corpus that has one of the samples itself, one alone, an
evaluation set, an error image."""


def write_root(folder: Path) -> CurationConfig:
    root = Root(str(folder / "out"))
    pictures = {uid: b"broken" if uid == "a1" else encoded(picture(n)) for n, (_, uid, *_) in enumerate(MEMBERS)}
    starts, raw = {}, b""
    for uid, data in pictures.items():
        starts[uid], raw = len(raw), raw + data
    root.write(SHARD, raw)
    sample_rows: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    duplicate_rows: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    for name, uid, cluster_id, survivor_uid, kind, distance, won_by in MEMBERS:
        place = {"shard": SHARD, "offset": starts[uid], "num_bytes": len(pictures[uid])}
        sample_rows[name].append({"uid": uid, "url": f"http://a.example/{uid}", "status": "ok", **place})
        said = {"kind": kind, "distance": distance, "is_survivor": kind is None, "won_by": won_by}
        duplicate_rows[name].append({"uid": uid, "cluster_id": cluster_id, "survivor_uid": survivor_uid, **said})
    write_table(root, "samples", samples.SCHEMA, sample_rows)
    write_table(root, "duplicates", duplicates.SCHEMA, duplicate_rows)
    return CurationConfig(root=root.url)


def write_table(root: Root, table: str, schema: pa.Schema, rows: dict[str, list[dict[str, Any]]]) -> None:
    receipts = []
    for name, listed in rows.items():
        whole = [dict.fromkeys(schema.names) | row for row in listed]
        files = {table_file(table, name): parquet_bytes(pa.Table.from_pylist(whole, schema=schema))}
        receipts.append(commit(root, table, name, "", files, len(whole), {}))
    publish(root, table, receipts, {})


def test_the_largest_clusters_are_drawn(tmp_path):
    config, out = write_root(tmp_path), tmp_path / "strips"
    assert list(strips(config, Root(str(out)), largest=20)) == [
        "01-e00.png  14 members, 12 shown",
        "02-a0.png  3 members, 3 shown",
        "03-old.png  3 members, 3 shown",
        "04-v0.png  2 members, 2 shown",
    ]
    assert [path.name[:2] for path in sorted(out.iterdir())] == ["01", "02", "03", "04"]
    middle, edge = (CELL_PX // 2, LINE_PX + CELL_PX // 2), (1, LINE_PX + CELL_PX // 2)
    with Image.open(out / "02-a0.png") as mixed:
        assert mixed.width == 3 * CELL_PX
        assert mixed.getpixel(edge) == SURVIVOR_COLOUR
        assert mixed.getpixel((CELL_PX + middle[0], middle[1])) == GREY  # the broken picture
        assert mixed.getpixel((2 * CELL_PX + middle[0], middle[1])) != GREY
    with Image.open(out / "03-old.png") as earlier:
        assert earlier.getpixel(edge) == SURVIVOR_COLOUR
        assert earlier.getpixel(middle) == GREY
    with Image.open(out / "04-v0.png") as evaluation:
        assert evaluation.getpixel(edge) == SURVIVOR_COLOUR
        assert evaluation.getpixel(middle) != GREY
    with Image.open(out / "01-e00.png") as errors:
        assert errors.getpixel(edge) != SURVIVOR_COLOUR


def test_one_kind_and_the_largest_only(tmp_path):
    config, out = write_root(tmp_path), Root(str(tmp_path / "strips"))
    assert list(strips(config, out, largest=20, kind="perceptual")) == [
        "01-a0.png  2 members, 2 shown",
        "02-old.png  2 members, 2 shown",
    ]
    assert list(strips(config, out, largest=1)) == ["01-e00.png  14 members, 12 shown"]
    assert list(strips(config, out, largest=1, kind="eval_set")) == ["01-v0.png  2 members, 2 shown"]
    assert list(strips(config, out, largest=1, kind="semantic")) == []
    with pytest.raises(ValueError, match="largest = 0"):
        list(strips(config, out, largest=0))


def test_the_script_tells_what_is_missing_and_what_it_wrote(tmp_path):
    done = run("pipelines/strips.py", "--root", str(tmp_path / "out"), "--out", str(tmp_path / "strips"), check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert "run python pipelines/dedup.py first" in done.stderr
    write_root(tmp_path)
    flags = ("--largest", "1", "--kind", "exact", "--out", str(tmp_path / "strips"))
    done = run("pipelines/strips.py", "--root", str(tmp_path / "out"), *flags)
    assert done.stdout.splitlines() == ["01-a0.png  2 members, 2 shown", f"strips  {tmp_path / 'strips'}/"]


def test_what_is_listed_or_not_yet_compared_is_not_drawn(tmp_path):
    config, out = write_root(tmp_path), tmp_path / "strips"
    middle = (CELL_PX // 2, LINE_PX + CELL_PX // 2)

    def drawn(settings: CurationConfig) -> list[bool]:
        list(strips(settings, Root(str(out)), largest=20))
        with Image.open(out / "02-a0.png") as cluster:
            return [cluster.getpixel((at * CELL_PX + middle[0], middle[1])) != GREY for at in (0, 2)]

    assert drawn(config) == [True, True]
    listed = replace(config, score=replace(config.score, blocklists_md5=("list.txt",)))
    assert drawn(listed) == [False, False]
    rows = {
        name: [{"uid": row[1], "blocklist_hit": row[1] == "b0"} for row in MEMBERS if row[0] == name] for name in "ab"
    }
    write_table(Root(config.root), "scores", scores.SCHEMA, rows)
    assert drawn(listed) == [True, False]
    write_taken_down(Root(config.root), TakenDown(urls_sha256=frozenset([str(url_sha256("http://a.example/a0"))])))
    assert drawn(listed) == [False, False]
