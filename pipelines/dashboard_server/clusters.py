"""Clusters of duplicates: how large they are, and the members of each with the survivor first."""

from __future__ import annotations

from typing import Any

from pipelines.dashboard_server.browse import tiles
from pipelines.dashboard_server.filters import SHOWN, one_of
from pipelines.dashboard_server.index import Index

KINDS = ("exact", "perceptual", "semantic", "error_image", "eval_set")
ORDERS = {
    "largest": "members DESC, cluster_id",
    "smallest": "members, cluster_id",
    "farthest": "farthest DESC NULLS LAST",
}
TILES = 12


def sizes(index: Index) -> list[dict[str, int]]:
    """Return how many clusters have 2, 3-4, 5-8, ... members: `low` is the smallest size of each class."""
    counted = index.rows(
        """SELECT CAST(pow(2, ceil(log2(members)) - 1) + 1 AS BIGINT) AS low, count(*), sum(members)::BIGINT
        FROM (SELECT count(*) AS members FROM board WHERE cluster_id IS NOT NULL GROUP BY cluster_id)
        WHERE members > 1 GROUP BY low ORDER BY low"""
    )
    return [
        {"low": low, "high": 2 * (low - 1), "clusters": count, "members": members} for low, count, members in counted
    ]


def clusters(
    index: Index, *, kind: str, order: str, at_least: int, at_most: int, first: int, count: int
) -> dict[str, Any]:
    """Return a page of clusters within those sizes that have a duplicate of that kind, if one is named."""
    one_of("order", order, ORDERS)
    if kind:
        one_of("kind", kind, KINDS)
    having = "members BETWEEN ? AND ? AND (? = '' OR has_kind)"
    found = index.dicts(
        f"""SELECT *, count(*) OVER () AS total FROM (
            SELECT cluster_id, count(*) AS members, max(distance) AS farthest, bool_or(kind = ?) AS has_kind
            FROM board WHERE cluster_id IS NOT NULL GROUP BY cluster_id)
        WHERE {having} ORDER BY {ORDERS[order]} LIMIT ? OFFSET ?""",
        [kind, at_least, at_most, kind, count, first],
    )
    listed = [
        {"cluster_id": row["cluster_id"], "members": row["members"], "tiles": _strip(index, row["cluster_id"])}
        for row in found
    ]
    return {"total": found[0]["total"] if found else 0, "first": first, "clusters": listed}


def _strip(index: Index, cluster_id: str) -> list[dict[str, Any]]:
    rows = index.dicts(
        f"""SELECT number, kind, distance, is_survivor, won_by FROM board WHERE cluster_id = ? AND {SHOWN}
        ORDER BY NOT is_survivor, distance DESC NULLS LAST, uid LIMIT ?""",
        [cluster_id, TILES],
    )
    by_number = {tile["number"]: tile for tile in tiles(index, [row["number"] for row in rows])}
    return [by_number[row["number"]] | row for row in rows]
