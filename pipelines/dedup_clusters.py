"""Near by embedding over groups of clusters: each embedding is in the groups of the clusters it is searched in."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.bad_input import BadInput
from curate.config import CurationConfig, DedupConfig
from curate.dedup.records import fixed_size
from curate.dedup.relations import NONE, at_most
from curate.dedup.text_columns import words_of_hex
from pipelines.dedup_blocks import SCRATCH, Blocks, best_of
from pipelines.dedup_sources import Batch, Source, batch_of, first_of, read_rows
from pipelines.dedup_verdicts import by_fragment, cluster_file
from pipelines.shuffle import Parts, read_part, write_parts
from pipelines.store import Root

SAMPLES_A_CLUSTER, DRAWN_A_CLUSTER = 2000, 50
PLACE = np.dtype([("fragment", "i4"), ("row", "i4"), ("place", "i8")])


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of clusters in files below the root."""

    root: str
    count: int
    clusters: int
    least_cosine: float

    def load(self, group: int, name: str) -> np.ndarray:
        return np.load(Root(self.root).open(group_file(group, name)))


def group_file(group: int, name: str) -> str:
    return f"{SCRATCH}/groups/{group:05d}/{name}.npy"


def places_by_batch(blocks: Blocks, block: int, first: np.ndarray) -> Parts:
    """Write where each batch's rows of a block are in the ranking."""
    places = np.arange(*blocks.starts[block : block + 2])
    made = np.zeros(len(places), PLACE)
    for name in ("fragment", "row"):
        made[name] = blocks.load(name, [(block, places)])
    made["place"] = places
    path = f"{SCRATCH}/places/{block}.bin"
    return write_parts(Root(blocks.root), path, made, batch_of(made["fragment"], first), len(first))


def draw(config: CurationConfig, number: int, batch: Batch, share: float, places: list[Parts]) -> Parts:
    """Write the uids and embeddings of about a share of a batch's ranked samples, chosen by uid."""
    root, drawn = Root(config.root), []
    ranked = by_fragment(read_part(root, places, number), batch)
    for source, own in zip(batch.sources, ranked, strict=True):
        rows = read_rows(config, source, ["uid", "embedding"], []).take(pa.array(own["row"]))
        uid = words_of_hex(rows["uid"], 32)
        chosen = np.flatnonzero(uid[:, 1] <= np.uint64(min(share * 2.0**64, 2.0**64 - 2048)))
        embeddings_SD = fixed_size(rows["embedding"].take(pa.array(chosen)))
        records = np.empty(len(chosen), [("uid", "u8", 2), ("embedding", "f2", embeddings_SD.shape[1:])])
        records["uid"], records["embedding"] = uid[chosen], embeddings_SD
        drawn.append(records)
    made = np.concatenate(drawn)
    return write_parts(root, f"{SCRATCH}/drawn/{number}.bin", made, np.zeros(len(made), np.int64), 1)


def num_clusters(config: DedupConfig, samples: int) -> int:
    """Return k for that many samples: few enough to be fitted on the sample, enough for small clusters."""
    if config.semantic_clusters is not None:
        return config.semantic_clusters
    drawn = min(samples, config.semantic_sample)
    return max(1, min(max(samples // SAMPLES_A_CLUSTER, 50), drawn // DRAWN_A_CLUSTER))


def fit(config: CurationConfig, drawn: list[Parts], clusters: int) -> np.ndarray:
    """Return the centroids of the clusters, float32 (K, D); in the order of the uids, whatever that of the sources."""
    from curate.dedup.semantic import fit_clusters

    records = read_part(Root(config.root), drawn, 0)
    order = np.lexsort((records["uid"][:, 1], records["uid"][:, 0]))
    return fit_clusters(records["embedding"][order], clusters=clusters, seed=config.dedup.seed)


def assign_clusters(config: CurationConfig, pool: Any, batches: Sequence[Batch], blocks: Blocks) -> NearInClusters:
    """Search each embedding's clusters, and write it to their groups."""
    dedup, width, total, first = config.dedup, pool.node_cpus, int(blocks.starts[-1]), first_of(batches)
    places = pool.share(list(pool.map(places_by_batch, [(blocks, block, first) for block in range(len(blocks))])))
    share = min(1.0, dedup.semantic_sample / max(total, 1))
    to_draw = [(config, number, batch, share, places) for number, batch in enumerate(batches)]
    drawn = list(pool.map(draw, to_draw))
    if not any(part.starts[-1] for part in drawn):
        told = f"none of {total:,} embeddings was drawn: raise it"
        raise BadInput(f"dedup.semantic_sample = {dedup.semantic_sample}: {told}")
    centroids = next(iter(pool.map(fit, [(config, drawn, num_clusters(dedup, total))], width, gpu=True)))
    groups = min(max(1, -(-total * dedup.semantic_nearest // dedup.rows_per_group)), max(1, len(centroids)))
    shared = pool.share(centroids)
    calls = [(config, number, batch, shared, groups, places) for number, batch in enumerate(batches)]
    assigned = pool.share(list(pool.map(assign, calls, width, gpu=True)))
    for _ in pool.map(gather, [(config, assigned, group) for group in range(groups)]):
        pass
    least = 1 - (dedup.semantic_eps or 0.0)
    found = Groups(root=config.root, count=groups, clusters=len(centroids), least_cosine=least)
    return NearInClusters(groups=found, pool=pool)


def assign(
    config: CurationConfig, number: int, batch: Batch, centroids: np.ndarray, groups: int, places: list[Parts]
) -> Parts:
    """Write a batch's embeddings to the groups of the clusters that they are searched in."""
    root, made, parts = Root(config.root), [], []
    ranked = by_fragment(read_part(root, places, number), batch)
    for (at, source), own in zip(batch.numbered(), ranked, strict=True):
        records, part = _assign(config, cluster_file(at), source, centroids, groups, own)
        made.append(records)
        parts.append(part)
    path = f"{SCRATCH}/assigned/{number}.bin"
    return write_parts(root, path, np.concatenate(made), np.concatenate(parts), groups)


def _assign(
    config: CurationConfig, path: str, source: Source, centroids: np.ndarray, groups: int, ranked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a source's embeddings for the groups, and their groups; writes the nearest cluster of each row."""
    from curate.dedup.semantic import nearest_clusters

    rows = read_rows(config, source, ["uid", "embedding"], [])
    embeddings_ND = _finite(rows, ranked["row"], source)
    members = nearest_clusters(embeddings_ND, centroids, config.dedup.semantic_nearest)
    nearest = np.full(len(rows), -1, np.int32)
    nearest[ranked["row"]] = members[:, 0] if len(members) else -1
    buffer = io.BytesIO()
    np.save(buffer, nearest)
    Root(config.root).write(path, buffer.getvalue(), durable=False)
    part, at = _groups_of(members, groups, len(centroids))
    kind = [("row", "i8"), ("members", "i4", members.shape[1:]), ("embedding", "f2", embeddings_ND.shape[1:])]
    records = np.empty(len(part), kind)
    records["row"], records["members"], records["embedding"] = ranked["place"][at], members[at], embeddings_ND[at]
    return records, part


def _finite(rows: pa.Table, chosen: np.ndarray, source: Source) -> np.ndarray:
    """Return the embeddings of the chosen rows, (N, D); raises ValueError where one is no number."""
    embeddings_ND = fixed_size(rows["embedding"].take(pa.array(chosen)))
    broken = np.flatnonzero(~np.isfinite(embeddings_ND).all(axis=1))
    if len(broken):
        uid = rows["uid"][int(chosen[broken[0]])]
        raise BadInput(f"{source.fragment}: the embedding of {uid} is not finite: embed it again")
    return embeddings_ND


def _groups_of(members: np.ndarray, groups: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each group that each row is in, once: (group, row) as two int arrays."""
    group = members.astype(np.int64) * groups // max(clusters, 1)
    once = [(group[:, at : at + 1] != group[:, :at]).all(axis=1) for at in range(group.shape[1])]
    parts = [group[first, at] for at, first in enumerate(once)]
    return np.concatenate(parts), np.concatenate([np.flatnonzero(first) for first in once])


def gather(config: CurationConfig, files: Sequence[Parts], group: int) -> None:
    """Write one group's rows in the order of their rank."""
    root = Root(config.root)
    records = read_part(root, files, group)
    order = np.argsort(records["row"])
    for name in ("row", "members", "embedding"):
        buffer = io.BytesIO()
        np.save(buffer, records[name][order])
        root.write(group_file(group, name), buffer.getvalue(), durable=False)


@dataclass(frozen=True, kw_only=True)
class NearInClusters:
    """The relation over all rows; each group of clusters is a task."""

    groups: Groups
    pool: Any

    def near_any(self, first: int, last: int) -> np.ndarray:
        is_near = np.zeros(last - first, bool)
        for near in self._map(_near_any, [(self.groups, group, first, last) for group in range(self.groups.count)]):
            is_near[near - first] = True
        return first + np.flatnonzero(is_near)

    def near_fixed(self, fixed: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        calls = [(self.groups, group, fixed, last) for group in range(self.groups.count)]
        return best_of(self._map(_near_fixed, calls))

    def pairs(self, rows: np.ndarray, limit: int) -> np.ndarray | None:
        return at_most_of(self._map(_pairs, self._calls(rows, limit)), limit)

    def nearest(self, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return best_of(self._map(_nearest, self._calls(of, among)))

    def distance(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return 1 - cosine of pairs that share a cluster, float64 (P,)."""
        distance = np.full(len(left), np.nan)
        for places, values in self._map(_distance, self._calls(left, right)):
            distance[places] = values
        return distance

    def _map(self, function: Any, calls: list[tuple]) -> Iterator[Any]:
        return self.pool.map(function, calls, self.pool.node_cpus, gpu=True)

    def _calls(self, rows: np.ndarray, *more: Any) -> list[tuple]:
        if len(rows) == 0:
            return []
        shared = self.pool.share(rows)
        others = [self.pool.share(value) if isinstance(value, np.ndarray) else value for value in more]
        return [(self.groups, group, shared, *others) for group in range(self.groups.count)]


def at_most_of(found: Iterator[np.ndarray | None], limit: int) -> np.ndarray | None:
    """Return all pairs, or None as soon as a group, or all so far together, have more than `limit`."""
    kept: list[np.ndarray] = [np.empty((0, 2), np.int32)]
    for piece in found:
        if piece is None or sum(map(len, kept)) + len(piece) > limit:
            return None
        kept.append(piece)
    return np.concatenate(kept)


class _Part:
    """Some of a group's rows, counted from 0."""

    def __init__(self, groups: Groups, group: int, rows: np.ndarray, at: np.ndarray) -> None:
        from curate.dedup.semantic import cluster_rows

        members = groups.load(group, "members")[at]
        self.rows = rows[at]
        self.embeddings_ND = groups.load(group, "embedding")[at]
        low, high = (-(-edge * groups.clusters // groups.count) for edge in (group, group + 1))
        elsewhere = high - low  # the last of what cluster_rows tells apart
        inside = np.where((members >= low) & (members < high), members - low, elsewhere)
        self.rows_of = [rows for rows in cluster_rows(inside, elsewhere + 1)[:-1] if len(rows)]
        self.least_cosine = groups.least_cosine


def _among(groups: Groups, group: int, wanted: np.ndarray) -> _Part:
    rows = groups.load(group, "row")
    return _Part(groups, group, rows, np.flatnonzero(np.isin(rows, wanted)))


def _between(groups: Groups, group: int, first: int, last: int) -> _Part:
    rows = groups.load(group, "row")
    return _Part(groups, group, rows, np.flatnonzero((rows >= first) & (rows < last)))


def _near_any(groups: Groups, group: int, first: int, last: int) -> np.ndarray:
    from curate.dedup.semantic import mark_near

    part = _between(groups, group, first, last)
    return part.rows[mark_near(part.embeddings_ND, part.rows_of, part.least_cosine)]


def _pairs(groups: Groups, group: int, rows: np.ndarray, limit: int) -> np.ndarray | None:
    from curate.dedup.semantic import near_pairs

    part = _among(groups, group, rows)
    found = at_most(near_pairs(part.embeddings_ND, part.rows_of, part.least_cosine), limit)
    return None if found is None else np.searchsorted(rows, part.rows).astype(np.int32)[found]


def _nearest(groups: Groups, group: int, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    part = _among(groups, group, np.concatenate([of, among]))
    return _best(part, np.isin(part.rows, of))


def _near_fixed(groups: Groups, group: int, fixed: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    part = _between(groups, group, 0, last)
    return _best(part, part.rows >= fixed)


def _best(part: _Part, asks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that ask and are near one that does not, and the smallest such for each."""
    from curate.dedup.semantic import nearest_survivors

    asking, kept = np.flatnonzero(asks), np.flatnonzero(~asks)
    best = nearest_survivors(part.embeddings_ND, part.rows_of, part.least_cosine, asking, kept)
    near = best != NONE
    return part.rows[asking[near]], part.rows[best[near]]


def _distance(groups: Groups, group: int, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from curate.dedup.semantic import exact_cosine

    rows = groups.load(group, "row")
    places = np.flatnonzero(np.isin(left, rows) & np.isin(right, rows))
    i, j = np.searchsorted(rows, left[places]), np.searchsorted(rows, right[places])
    return places, 1 - exact_cosine(groups.load(group, "embedding"), i, j)
