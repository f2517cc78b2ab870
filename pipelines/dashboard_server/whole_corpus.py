"""What the rules over the whole corpus drop behind other cut-offs, counted by selection's own code.

Quantiles, top fractions, quotas and clusters depend on every sample that is left, so that all samples are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from curate.config import SelectionConfig
from curate.dedup.text_columns import words_of_hex
from curate.verdicts import Corpus, Reason, judge, ranks_samples, rules
from pipelines.dashboard_server.cut_off_list import later_reasons, with_limits
from pipelines.dashboard_server.filters import value_sql
from pipelines.dashboard_server.index import Index
from pipelines.dashboard_server.what_if import bucket_rows, first_rule
from pipelines.selection import Part, domains, joined, later_columns

ROWS_AT_ONCE = 500_000
EARLIER: list[tuple[Reason, ...]] = [(), (("before selection", ""),)]
GROUPS = {"source": "source", "license": "license", "language": "language", "domain": "'https://' || nullif(host, '')"}
"""What quotas count by, over the columns of the index."""


def whole_corpus(index: Index, values: Mapping[str, float | None]) -> dict[str, Any]:
    """Return rows that each rule behind the cut-offs drops, in order, and what is left by bucket."""
    config = with_limits(index.settings, values)
    with index.counting:
        corpus, bucket = _corpus(index, config, values)
        judge(corpus, config)
    later = later_reasons(config)
    first_bit = len(rules(config)) - len(later)
    cut = np.uint64((1 << first_bit) - 1)
    left = (corpus.early == 0) & (corpus.broken & cut == 0)
    told = []
    for bit, reason in enumerate(later, first_bit):
        drops = left & (corpus.broken >> np.uint64(bit) & np.uint64(1) == 1)
        left &= ~drops
        told.append({"reason": reason, "dropped": int(drops.sum()), "left": int(left.sum())})
    places, counts = np.unique(bucket[left], return_counts=True)
    buckets = {int(place): int(count) for place, count in zip(places, counts, strict=True) if place >= 0}
    return {"rules": told, "kept": int(left.sum()), "buckets": bucket_rows(index, buckets)}


def _corpus(index: Index, config: SelectionConfig, values: Mapping[str, float | None]) -> tuple[Corpus, np.ndarray]:
    """Return the samples as selection judges them, and the place of each one's bucket, -1 without one."""
    first, parameters = first_rule(index, values)
    numbers = sorted(later_columns(config))
    groups = {quota.by: GROUPS[quota.by] for quota in config.quotas}
    asked = [f"({value_sql(index, 'column', name)})::FLOAT AS v{at}" for at, name in enumerate(numbers)]
    asked += [f"CASE WHEN meets_cut_offs AND broken < 0 THEN {sql} END AS {by}" for by, sql in groups.items()]
    asked += ["uid"] if ranks_samples(config) else []
    of = {*(said.of for said in config.quantiles), *(said.of for said in config.top_fractions)}
    counts = "true" if "measured" in of else "meets_cut_offs AND broken < 0"  # what is dropped by now has no say
    buckets: list[np.ndarray] = []

    def parts() -> Iterator[Part]:
        query = f"""SELECT meets_cut_offs, {first} AS broken, coalesce(bucket, -1)::SMALLINT AS bucket,
            coalesce(semantic_cluster, -1)::INTEGER AS cluster, {", ".join(asked)} FROM board WHERE {counts}"""
        for rows in index.stretches(query, parameters, ROWS_AT_ONCE):
            buckets.append(_copied(rows["bucket"]))
            yield _part(rows, numbers, list(groups))

    corpus, _ = joined(parts())
    return corpus, np.concatenate(buckets)


def _part(rows: pa.RecordBatch, numbers: list[str], groups: list[str]) -> Part:
    has_uids = "uid" in rows.schema.names
    return Part(
        early=1 - rows["meets_cut_offs"].cast(pa.uint8()).to_numpy(zero_copy_only=False),
        findings=EARLIER,
        broken=(rows["broken"].to_numpy() >= 0).astype(np.uint64),  # any bit of a cut-off says the same here
        values={name: _copied(rows[f"v{at}"]) for at, name in enumerate(numbers)},
        groups={by: domains(rows[by]) if by == "domain" else rows[by].dictionary_encode() for by in groups},
        cluster=_copied(rows["cluster"]),
        uid_N2=words_of_hex(pa.chunked_array([rows["uid"]]), 32) if has_uids else np.empty((len(rows), 0)),
    )


def _copied(column: pa.Array) -> np.ndarray:
    """Return the values, NaN for null, without holding on to the batch that they came in."""
    return np.array(column.to_numpy(zero_copy_only=False))
