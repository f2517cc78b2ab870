"""Clusters of duplicates: how large they are, and the members of each with the survivor first."""

from __future__ import annotations

from typing import Any

from pipelines.dashboard_server.browse import MOST_AT_ONCE, tiles
from pipelines.dashboard_server.filters import SHOWN, one_of
from pipelines.dashboard_server.index import Index

KINDS = ("exact", "perceptual", "semantic", "error_image", "eval_set")
ORDERS = {
    "largest": "members DESC, cluster_id",
    "smallest": "members, cluster_id",
    "farthest": "farthest DESC NULLS LAST, cluster_id",
}
TILES = 12


_CLUSTERS = f"""
    SELECT cluster_id, count(*) AS members, max(distance) AS farthest,
        {", ".join(f"bool_or(kind = '{kind}') AS has_{kind}" for kind in KINDS)}
    FROM board WHERE cluster_id IN (SELECT cluster_id FROM board WHERE kind IS NOT NULL)
    GROUP BY cluster_id HAVING count(*) > 1
"""


def sizes(index: Index) -> list[dict[str, int]]:
    """Return how many clusters have 2, 3-4, 5-8, ... members: `low` is the smallest size of each class."""
    index.derive("clusters", _CLUSTERS)
    counted = index.rows(
        """SELECT CAST(pow(2, ceil(log2(members)) - 1) + 1 AS BIGINT) AS low, count(*), sum(members)::BIGINT
        FROM clusters GROUP BY low ORDER BY low"""
    )
    names = ("low", "high", "clusters", "members")
    return [dict(zip(names, (low, 2 * (low - 1), *rest), strict=True)) for low, *rest in counted]


def clusters(
    index: Index, *, kind: str, order: str, at_least: int, at_most: int, first: int, count: int
) -> dict[str, Any]:
    """Return a page of clusters within those sizes that have a duplicate of that kind, if one is named."""
    one_of("order", order, ORDERS)
    with_kind = f"AND has_{one_of('kind', kind, KINDS)}" if kind else ""
    index.derive("clusters", _CLUSTERS)
    condition = f"members BETWEEN ? AND ? {with_kind}"
    total = index.rows(f"SELECT count(*) FROM clusters WHERE {condition}", [at_least, at_most])[0][0]
    found = index.rows(
        f"SELECT cluster_id, members FROM clusters WHERE {condition} ORDER BY {ORDERS[order]} LIMIT ? OFFSET ?",
        [at_least, at_most, count, first],
    )
    strips = _strips(index, [cluster_id for cluster_id, _ in found])
    listed = [{"cluster_id": at, "members": members, "tiles": strips.get(at, [])} for at, members in found]
    return {"total": total, "first": first, "clusters": listed}


def _strips(index: Index, cluster_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the first TILES members of each cluster, the survivor first, by cluster."""
    if not cluster_ids:
        return {}
    marks = ", ".join("?" * len(cluster_ids))
    rows = index.dicts(
        f"""SELECT number, cluster_id, kind, distance, is_survivor, won_by FROM board
        WHERE cluster_id IN ({marks}) AND {SHOWN}
        QUALIFY row_number() OVER (
            PARTITION BY cluster_id ORDER BY NOT is_survivor, distance DESC NULLS LAST, uid) <= {TILES}
        ORDER BY NOT is_survivor, distance DESC NULLS LAST, uid""",
        cluster_ids,
    )
    numbers = [row["number"] for row in rows]
    parts = [tiles(index, numbers[first : first + MOST_AT_ONCE]) for first in range(0, len(numbers), MOST_AT_ONCE)]
    by_number = {tile["number"]: tile for part in parts for tile in part}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["cluster_id"], []).append(by_number[row["number"]] | row)
    return found
