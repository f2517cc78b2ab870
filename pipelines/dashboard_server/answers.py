"""The questions that the page can ask, each answered as plain JSON values. Nothing else is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.dashboard_server import clusters, distributions, funnel_page, samples, training, what_if, whole_corpus
from pipelines.dashboard_server.browse import MOST_AT_ONCE, Lists, near
from pipelines.dashboard_server.cut_off_list import later_reasons, limits
from pipelines.dashboard_server.filters import EQUAL, number, one_of, whole
from pipelines.dashboard_server.index import Index
from pipelines.dashboard_server.labels import Labels

Asked = Mapping[str, str]
FAR = 2**40
NEAR_A_CUT_OFF = 8


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is looked at: the index of the root, those of other runs, and what belongs to the first."""

    index: Index
    beside: dict[str, Index]
    lists: Lists
    labels: Labels
    remembered: dict[Any, dict[str, Any]] = field(default_factory=dict)


def shown(index: Index, beside: dict[str, Index]) -> Shown:
    """Return what the questions are about."""
    return Shown(index=index, beside=beside, lists=Lists(index), labels=Labels(index))


def answered(this: Shown, name: str, asked: Asked) -> dict[str, Any]:
    """Return the answer to a question, the one from before where nothing changed since."""
    if name not in OF_THE_TABLES or this.index.read < this.index.wanted:
        return QUESTIONS[name](this, asked)
    state = tuple((index.version, index.looks) for index in (this.index, *this.beside.values()))
    key = (name, tuple(sorted(asked.items())), state)
    if key not in this.remembered:
        if len(this.remembered) >= MOST_REMEMBERED:
            this.remembered.clear()
        this.remembered[key] = QUESTIONS[name](this, asked)
    return this.remembered[key]


def name_of(index: Index) -> str:
    """Return the last part of a root's address: the rest of it is nobody's business."""
    return index.root.url.rstrip("/").rsplit("/", 1)[-1] or "root"


def progress(this: Shown, asked: Asked) -> dict[str, Any]:
    index = this.index
    return {"fragments_read": index.read, "fragments": index.wanted, "error": index.error}


def overview(this: Shown, asked: Asked) -> dict[str, Any]:
    index = this.index
    rows, unchecked = index.rows(
        "SELECT count(*), count(*) FILTER (hidden AND reason IS DISTINCT FROM 'blocklist') FROM board"
    )[0]
    notes = []
    if unchecked:
        notes.append(
            f"{unchecked:,} samples have not been compared with the blocklists and are not shown: run "
            "python pipelines/score.py, or start with --show_unchecked true"
        )
    return {
        "name": name_of(index),
        "beside": list(this.beside),
        "rows": rows,
        **progress(this, asked),
        "tables": [{"table": t.name, "state": t.state, "told": t.told} for t in index.tables.values()],
        "notes": [*index.notes, *notes],
        "values": {name: _values(index, name) for name in ("source", "language", "stage", "reason", "kind")},
        "numbers": distributions.listed(index)["numbers"],
    }


def _values(index: Index, name: str) -> list[str]:
    query = f"SELECT {name} FROM board WHERE {name} <> '' GROUP BY {name} ORDER BY count(*) DESC, {name} LIMIT 100"
    return [row[0] for row in index.rows(query)]


def funnel(this: Shown, asked: Asked) -> dict[str, Any]:
    def one(index: Index) -> dict[str, Any]:
        return funnel_page.funnel(index) | {"name": name_of(index), "steps": funnel_page.steps(index)}

    return one(this.index) | {"beside": [one(index) | {"name": name} for name, index in this.beside.items()]}


def funnel_split(this: Shown, asked: Asked) -> dict[str, Any]:
    return funnel_page.split(this.index, one_of("by", asked.get("by", "source"), funnel_page.SPLITS))


def distribution_list(this: Shown, asked: Asked) -> dict[str, Any]:
    return distributions.listed(this.index)


def histogram(this: Shown, asked: Asked) -> dict[str, Any]:
    return distributions.histogram(this.index, asked.get("name", ""))


def most_frequent(this: Shown, asked: Asked) -> dict[str, Any]:
    return distributions.most_frequent(this.index, asked.get("name", ""))


def sliders(this: Shown, asked: Asked) -> dict[str, Any]:
    return {"sliders": what_if.sliders(this.index), "later": later_reasons(this.index.settings)}


def counts(this: Shown, asked: Asked) -> dict[str, Any]:
    return what_if.what_if(this.index, what_if.limits_asked(this.index, asked))


def whole_counts(this: Shown, asked: Asked) -> dict[str, Any]:
    return whole_corpus.whole_corpus(this.index, what_if.limits_asked(this.index, asked))


def near_a_cut_off(this: Shown, asked: Asked) -> dict[str, Any]:
    by_setting = {limit.setting: limit for limit in limits(this.index.settings)}
    limit = by_setting[one_of("setting", asked.get("setting", ""), by_setting)]
    return near(this.index, limit, number("value", asked.get("value", "")), NEAR_A_CUT_OFF)


def page_of_samples(this: Shown, asked: Asked) -> dict[str, Any]:
    first = whole("first", asked.get("first", "0"), 0, FAR)
    return this.lists.page(asked, first, whole("count", asked.get("count", "60"), 1, MOST_AT_ONCE))


def sample(this: Shown, asked: Asked) -> dict[str, Any]:
    return samples.sample(this.index, asked.get("uid", ""))


def like(this: Shown, asked: Asked) -> dict[str, Any]:
    return samples.like(this.index, asked.get("uid", ""))


def cluster_sizes(this: Shown, asked: Asked) -> dict[str, Any]:
    return {"sizes": clusters.sizes(this.index)}


def cluster_page(this: Shown, asked: Asked) -> dict[str, Any]:
    return clusters.clusters(
        this.index,
        kind=asked.get("kind", ""),
        order=asked.get("order", "largest"),
        at_least=whole("at_least", asked.get("at_least", "2"), 2, FAR),
        at_most=whole("at_most", asked.get("at_most") or str(FAR), 2, FAR),
        first=whole("first", asked.get("first", "0"), 0, FAR),
        count=whole("count", asked.get("count", "20"), 1, 50),
    )


def label_queue(this: Shown, asked: Asked) -> dict[str, Any]:
    return this.labels.queue(asked.get("score", ""), whole("count", asked.get("count", "30"), 1, MOST_AT_ONCE))


def label_curve(this: Shown, asked: Asked) -> dict[str, Any]:
    return this.labels.curve(asked.get("score", ""))


def training_runs(this: Shown, asked: Asked) -> dict[str, Any]:
    roots = {"": this.index, **this.beside}
    return {
        "runs": [
            run | {"of": name, "name": f"{name or name_of(index)}/{run['run']}"}
            for name, index in roots.items()
            for run in training.runs(index.root)
        ],
        "has_samples": this.index.root.exists("samples.png"),
    }


def training_points(this: Shown, asked: Asked) -> dict[str, Any]:
    of = one_of("of", asked.get("of", ""), {"", *this.beside})
    index = this.beside[of] if of else this.index
    return training.points(index.root, asked.get("run", ""), whole("since", asked.get("since", "0"), 0, FAR))


QUESTIONS: dict[str, Callable[[Shown, Asked], dict[str, Any]]] = {
    "progress": progress,
    "overview": overview,
    "funnel": funnel,
    "split": funnel_split,
    "distributions": distribution_list,
    "histogram": histogram,
    "most-frequent": most_frequent,
    "sliders": sliders,
    "counts": counts,
    "whole-counts": whole_counts,
    "near": near_a_cut_off,
    "samples": page_of_samples,
    "sample": sample,
    "like": like,
    "cluster-sizes": cluster_sizes,
    "clusters": cluster_page,
    "label-queue": label_queue,
    "label-curve": label_curve,
    "training-runs": training_runs,
    "training-points": training_points,
}
OF_THE_TABLES = ("overview", "funnel", "split", "histogram", "most-frequent", "sliders")
"""Questions whose answers stay the same as long as the tables do."""
MOST_REMEMBERED = 200
FILTERS = (*EQUAL, "kept", "bucket", "text", "score", "low", "high", "below", "sort", "descending")
"""What `samples` takes, for the docs and the tests."""
