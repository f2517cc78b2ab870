#!/usr/bin/env python3
"""Strips: the largest duplicate clusters as pictures, to look at what dedup dropped and for which survivor."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from curate.bad_input import BadInput
from curate.blocklist import lists_of
from curate.config import CurationConfig
from curate.image import UnreadableImage, decode
from curate.strip import MAX_TILES, Tile, lines_under, strip, thumbnail
from pipelines.command import one_line, read_curation
from pipelines.store import Root, fragments, table_file
from pipelines.taken_down import read_taken_down

KINDS = ("exact", "perceptual", "semantic", "error_image", "eval_set")
MEMBERS = ["uid", "cluster_id", "survivor_uid", "kind", "distance", "is_survivor", "won_by"]
PLACES = ["uid", "shard", "offset", "num_bytes"]
STANDS = "(is_survivor OR kind = 'eval_set' AND uid = survivor_uid)"
"""Others may name their own uid: that of the same sample in an earlier corpus."""


def strips(config: CurationConfig, out: Root, largest: int, kind: str | None = None) -> Iterator[str]:
    """Write one picture for each of the largest clusters and yield a line for each.

    A cluster's members are its dropped samples (of that kind, where one is given) and what stands for them: a
    survivor, or a picture of an evaluation set.
    """
    if largest < 1:
        raise BadInput(f"largest = {largest}: must be at least 1")
    root = Root(config.root)
    fragments(root, "duplicates")  # raises MissingTable; its files are named as those of samples
    names = list(fragments(root, "samples"))
    with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
        clusters = _largest(database, root, names, largest, kind)
        _gather(database, config, names, kind)
        for number, (cluster_id, num_members) in enumerate(clusters, 1):
            tiles = [_tile(root, row, config.embed.max_megapixels) for row in _shown(database, cluster_id)]
            name = f"{number:02d}-{cluster_id[:12]}.png"
            out.write(name, _png(strip(cluster_id, num_members, tiles)))
            yield f"{name}  {num_members:,} members, {len(tiles)} shown"


def _largest(database: Any, root: Root, names: list[str], largest: int, kind: str | None) -> list[tuple[str, int]]:
    """Return the clusters with the most members, and keep them as table `largest`; ties go by cluster_id."""
    database.execute("CREATE TABLE counts (cluster_id VARCHAR, dropped BIGINT, has_survivor INTEGER)")
    for name in names:
        database.register("d_rows", root.read_table(table_file("duplicates", name), MEMBERS))
        database.execute(
            f"""INSERT INTO counts SELECT cluster_id, count(*), max((survivor_uid IS NOT NULL)::INTEGER)
            FROM d_rows WHERE NOT {STANDS} AND kind = coalesce($kind, kind) GROUP BY cluster_id""",
            {"kind": kind},
        )
        database.unregister("d_rows")
    database.execute(
        """CREATE TABLE largest AS SELECT cluster_id, (sum(dropped) + max(has_survivor))::BIGINT AS members
        FROM counts GROUP BY cluster_id HAVING members >= 2 ORDER BY members DESC, cluster_id LIMIT $largest""",
        {"largest": largest},
    )
    return database.execute("SELECT * FROM largest ORDER BY members DESC, cluster_id").fetchall()


def _gather(database: Any, config: CurationConfig, names: list[str], kind: str | None) -> None:
    """Keep of the largest clusters, as table `shown`, each fragment's survivor and first members by uid."""
    root = Root(config.root)
    for number, name in enumerate(names):
        database.register("d_rows", root.read_table(table_file("duplicates", name), MEMBERS))
        database.register("s_rows", root.read_table(table_file("samples", name), PLACES))
        database.register("h_rows", _hidden(config, root, name))
        into = "CREATE TABLE shown AS" if number == 0 else "INSERT INTO shown"
        database.execute(
            f"""{into} SELECT d_rows.*, {STANDS} AS stands, shard, "offset", num_bytes,
                hidden
            FROM d_rows JOIN largest USING (cluster_id) JOIN s_rows USING (uid) JOIN h_rows USING (uid)
            WHERE {STANDS} OR kind = coalesce($kind, kind)
            QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY NOT {STANDS}, uid)
                <= {MAX_TILES}""",
            {"kind": kind},
        )
        database.unregister("d_rows")
        database.unregister("s_rows")
        database.unregister("h_rows")


def _hidden(config: CurationConfig, root: Root, name: str) -> pa.Table:
    """Return uid and hidden of a fragment's samples: listed, taken down, or not yet compared with the blocklists."""
    taken_down, file = read_taken_down(root), table_file("scores", name)
    samples = root.read_table(table_file("samples", name), taken_down.columns())
    if root.exists(file):
        scores = root.read_table(file, ["uid", "blocklist_hit"])
        safe = scores.filter(pc.invert(pc.fill_null(scores["blocklist_hit"], False)))["uid"]
        hidden = pc.invert(pc.is_in(samples["uid"], value_set=safe.combine_chunks()))
    else:
        hidden = pa.array([any(lists_of(config.score).values())] * len(samples), pa.bool_())
    return pa.table({"uid": samples["uid"], "hidden": pc.or_(hidden, pa.array(taken_down.rows(samples)))})


def _shown(database: Any, cluster_id: str) -> list[dict[str, Any]]:
    """Return the rows to draw, the survivor first; one that came with an earlier corpus has no shard."""
    found = database.sql(
        f"SELECT * FROM shown WHERE cluster_id = $id ORDER BY NOT stands, uid LIMIT {MAX_TILES}",
        params={"id": cluster_id},
    )
    rows = found.to_arrow_table().to_pylist()
    survivor_uid = rows[0]["survivor_uid"]
    if rows[0]["stands"] or survivor_uid is None:
        return rows
    earlier = dict.fromkeys([*MEMBERS, *PLACES]) | {"uid": survivor_uid, "stands": True, "hidden": False}
    return [earlier, *rows[: MAX_TILES - 1]]


def _tile(root: Root, row: dict[str, Any], max_megapixels: float) -> Tile:
    stands, picture = row["stands"], None
    lines = lines_under(row["kind"], row["distance"], row["won_by"])
    if stands:
        lines = ("of an evaluation set" if row["kind"] == "eval_set" else "survivor",)
    lines = (*lines, "from an earlier corpus" if row["shard"] is None else row["uid"][:24])
    if row["hidden"]:
        lines = ("not shown: listed, or not compared with the blocklists yet", *lines)
    elif row["shard"] is not None:
        try:
            picture = thumbnail(decode(root.read(row["shard"], row["offset"], row["num_bytes"]), max_megapixels))
        except UnreadableImage as error:
            lines = (error.status, *lines)
    return Tile(uid=row["uid"], is_survivor=stands, picture=picture, told=lines)


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    config, flags = read_curation("strips", __doc__, sys.argv[1:], _flags)
    with one_line("strips", "run it again"):
        found = False
        for line in strips(config, Root(flags.out), flags.largest, flags.kind):
            print(line)
            found = True
        print(f"strips  {flags.out}/" if found else "no cluster has two members")


def _flags(parser) -> None:  # noqa: ANN001 - jsonargparse's parser
    parser.add_argument("--largest", type=int, default=20, help="number of clusters, the largest first")
    parser.add_argument("--kind", choices=KINDS, default=None, help="only duplicates of this kind")
    parser.add_argument("--out", type=str, default="strips", help="folder for the pictures")


if __name__ == "__main__":
    main()
