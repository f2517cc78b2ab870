"""The verdict on each sample: what earlier stages found, then the rules of selection over the whole corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate import diversity, quotas
from curate.bad_input import BadInput
from curate.config import DiversityConfig, Quantile, Quota, SelectionConfig, TopFraction
from curate.cut_offs import CLUSTER_CAP, OTHER_LANGUAGE, active, dropped
from curate.sample import TAKEN_DOWN

MAX_RULES = 48
Reason = tuple[str, str]
"""A stage and what it found."""


@dataclass(kw_only=True, eq=False)
class Corpus:
    """What is known of N samples, column by column."""

    early: np.ndarray
    """Place in `findings` of what earlier stages found, uint16 (N,); 0 is nothing."""
    findings: list[tuple[Reason, ...]]
    """The combinations of reasons that earlier stages gave, the first one empty."""
    broken: np.ndarray
    """Rules of selection that drop the sample, a bit for each in the order of `rules`, uint64 (N,)."""
    values: dict[str, np.ndarray]
    """Columns of numbers, float32 (N,), NaN where there is none; by name."""
    groups: dict[str, np.ndarray]
    """Source, language, domain or licence as a number from 0, -1 where there is none, int32 (N,)."""
    names: dict[str, list[str]]
    """What those numbers stand for."""
    cluster: np.ndarray
    """Cluster of the embedding, -1 where there is none, int32 (N,)."""
    uid_N2: np.ndarray
    """The uid's 128 bits, uint64 (N, 2); empty where no rule ranks."""
    weight: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """Sampling weight, float32 (N,)."""

    def passes(self) -> np.ndarray:
        """Return which samples nothing has dropped so far, bool (N,)."""
        return (self.early == 0) & (self.broken == 0)


def rules(config: SelectionConfig) -> list[str]:
    """Return the reasons of selection in the order in which they are looked for."""
    named = [cut.reason for cut, _ in active(config)]
    named += [OTHER_LANGUAGE] if config.languages is not None else []
    named += [f"quantile_{said.column}" for said in config.quantiles]
    named += [f"top_fraction_{said.column}" for said in config.top_fractions]
    named += [f"quota_{said.by}" for said in config.quotas]
    named += [CLUSTER_CAP] if config.diversity is not None and config.diversity.act == "drop" else []
    if len(named) > MAX_RULES:
        raise BadInput(f"selection: {len(named)} rules: at most {MAX_RULES} can be told apart")
    return named


def ranks_samples(config: SelectionConfig) -> bool:
    """Return whether any rule needs an order of samples."""
    drops = config.diversity is not None and config.diversity.act == "drop"
    return bool(config.top_fractions or config.quotas or drops)


def cut(
    config: SelectionConfig, num_samples: int, values: dict[str, np.ndarray], other_language: np.ndarray | None
) -> np.ndarray:
    """Return the cut-offs that each sample breaks, the first rules, uint64 (N,)."""
    found = [dropped(rule, value, values[rule.column]) for rule, value in active(config)]
    found += [] if other_language is None else [other_language]
    broken = np.zeros(num_samples, np.uint64)
    for bit, drops in enumerate(found):
        broken |= drops.astype(np.uint64) << np.uint64(bit)
    return broken


def judge(corpus: Corpus, config: SelectionConfig) -> dict[str, Any]:
    """Apply the rules that look at the whole corpus; return the figures of its diversity, before and after."""
    bit = len(active(config)) + (config.languages is not None)
    for number, drops in enumerate(_whole_corpus_rules(corpus, config), bit):
        corpus.broken |= drops.astype(np.uint64) << np.uint64(number)
    left = corpus.passes()
    corpus.weight = np.ones(len(left), np.float32)
    before = _clusters(corpus, left)
    if config.diversity is not None:
        evened = _even_out(corpus, config.diversity, left)
        if config.diversity.act == "drop":
            corpus.broken |= evened.astype(np.uint64) << np.uint64(len(rules(config)) - 1)
    return {"before": before, "after": _clusters(corpus, corpus.passes())}


def _whole_corpus_rules(corpus: Corpus, config: SelectionConfig) -> Any:
    """Yield what each rule drops; each one sees what those before it have left."""
    for said in config.quantiles:
        yield _quantile(corpus, said)
    for best in config.top_fractions:
        yield _top_fraction(corpus, best)
    for quota in config.quotas:
        yield _quota(corpus, quota)


def _quantile(corpus: Corpus, said: Quantile) -> np.ndarray:
    values = corpus.values[said.column]
    among = values[corpus.passes()] if said.of == "passed" else values
    low, high = quotas.quantile(among, said.low), quotas.quantile(among, said.high)
    return (values < low) if said.high == 1 else (values < low) | (values > high)


def _top_fraction(corpus: Corpus, said: TopFraction) -> np.ndarray:
    score = corpus.values[said.column] * (1 if said.prefer == "high" else -1)
    among = np.flatnonzero(corpus.passes()) if said.of == "passed" else slice(None)
    drops = np.zeros(len(score), bool)
    drops[among] = ~quotas.top(score[among], said.fraction, corpus.uid_N2[among])
    return drops


def _quota(corpus: Corpus, said: Quota) -> np.ndarray:
    groups, passes = corpus.groups[said.by], corpus.passes()
    held = passes & (groups >= 0)
    if said.values:
        listed = np.array([name in said.values for name in corpus.names[said.by]] + [False])
        held &= listed[groups]
    at = np.flatnonzero(held)
    limits = [said.max_samples] if said.max_samples is not None else []
    limits += [int(said.max_share * int(passes.sum()) + 1e-9)] if said.max_share is not None else []
    return _beyond(corpus, said.rank_by, groups, min(limits), at)


def _beyond(
    corpus: Corpus, rank_by: str | None, groups: np.ndarray, limit_of_group: np.ndarray | int, at: np.ndarray
) -> np.ndarray:
    """Return which samples at these places are behind their group's limit, bool (N,)."""
    score = None if rank_by is None else corpus.values[rank_by][at]
    drops = np.zeros(len(groups), bool)
    drops[at[~quotas.best(score, groups[at], limit_of_group, corpus.uid_N2[at])]] = True
    return drops


def _even_out(corpus: Corpus, config: DiversityConfig, left: np.ndarray) -> np.ndarray:
    """Return what the clusters have too much of, bool (N,); with `act: weight` set the weights and drop nothing."""
    at = np.flatnonzero(left & (corpus.cluster >= 0))
    sizes_C = np.bincount(corpus.cluster[at])
    if config.act == "weight":
        corpus.weight[at] = diversity.weights(sizes_C, config)[corpus.cluster[at]]
        return np.zeros(len(left), bool)
    return _beyond(corpus, config.rank_by, corpus.cluster, diversity.targets(sizes_C, config), at)


def _clusters(corpus: Corpus, among: np.ndarray) -> dict[str, Any]:
    at = among & (corpus.cluster >= 0)
    mass_C = np.bincount(corpus.cluster[at], weights=corpus.weight[at])
    return {"samples": int(among.sum()), "clustered": int(at.sum()), **diversity.figures(mass_C)}


def rows(corpus: Corpus, at: slice, reasons: Sequence[str], uids: pa.Array) -> pa.Table:
    """Return the columns of the selection table for a stretch of samples."""
    packed = corpus.early[at].astype(np.uint64) << np.uint64(MAX_RULES) | corpus.broken[at]
    kinds, of = np.unique(packed, return_inverse=True)
    listed = [_reasons(int(kind), corpus.findings, reasons) for kind in kinds]
    keep = np.array([not one for one in listed], bool)[of]
    stages, firsts = [one[0][0] if one else None for one in listed], [one[0][1] if one else None for one in listed]
    every = pa.array([[reason for _, reason in one] for one in listed], pa.list_(pa.string()))
    cluster = corpus.cluster[at]
    return pa.table(
        {
            "uid": uids,
            "keep": keep,
            "reject_stage": pa.array(stages, pa.string()).take(of),
            "reject_reason": pa.array(firsts, pa.string()).take(of),
            "reasons": every.take(of),
            "diversity_cluster": pa.array(cluster, pa.int32(), mask=cluster < 0),
            "weight": pa.array(corpus.weight[at], pa.float32(), mask=~keep),
        }
    )


def _reasons(packed: int, findings: list[tuple[Reason, ...]], reasons: Sequence[str]) -> list[Reason]:
    broken = packed & ((1 << MAX_RULES) - 1)
    of_rules = [("selection", reason) for bit, reason in enumerate(reasons) if broken >> bit & 1]
    return [*findings[packed >> MAX_RULES], *of_rules]


def earlier_findings(columns: dict[str, pa.Array]) -> tuple[np.ndarray, list[tuple[Reason, ...]]]:
    """Return the place of each sample's earlier reasons, int64 (N,), and the reasons at each place.

    Columns: taken_down, status (of samples), image_status (of features), blocklist_hit, is_survivor, kind,
    caption_reason.
    """
    names = ("taken_down", "status", "image_status", "blocklist_hit", "is_survivor", "kind", "caption_reason")
    codes = np.zeros(len(columns["status"]), np.int64)
    for name in names:
        encoded = columns[name].dictionary_encode()
        codes = codes * (len(encoded.dictionary) + 1) + encoded.indices.fill_null(-1).to_numpy() + 1
    _, first, of = np.unique(codes, return_index=True, return_inverse=True)
    seen = [{name: columns[name][int(row)].as_py() for name in names} for row in first]
    return of, [_earlier(one) for one in seen]


def _earlier(said: dict[str, Any]) -> tuple[Reason, ...]:
    """Return the reasons of one sample from the stages before selection, in the order of the flow."""
    found: list[Reason] = (
        [("ingest", TAKEN_DOWN)] if TAKEN_DOWN in (said["status"], said["taken_down"] and TAKEN_DOWN) else []
    )
    if said["status"] not in ("ok", TAKEN_DOWN):
        found.append(("ingest", said["status"]))
    elif said["image_status"] != "ok":
        found.append(("embed", said["image_status"]))
    if said["blocklist_hit"]:
        found.append(("score", "blocklist"))
    if said["is_survivor"] is False:
        found.append(("dedup", f"duplicate_{said['kind']}"))
    if said["caption_reason"] is not None:
        found.append(("captions", said["caption_reason"]))
    return tuple(found)
