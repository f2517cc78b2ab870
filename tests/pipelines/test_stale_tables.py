"""A step that is run by hand after samples changed names the step that must come first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from curate.bad_input import BadInput
from curate.config import ClipSpec, CurationConfig, DedupConfig, EmbedConfig, ScoreConfig, SelectionConfig
from pipelines.dedup import dedup
from pipelines.embed import embed
from pipelines.export import export
from pipelines.runner import Report, Runner, WouldMake
from pipelines.score import score
from pipelines.selection import selection
from pipelines.store import Root, commit, parquet_bytes, publish, table_file

UNTRAINED = EmbedConfig(clip=ClipSpec(weights=None, allow_untrained=True))
CUT_OFFS = SelectionConfig(max_nsfw_prob=None, max_watermark_prob=None)
ONE = ("folder-00000",)
STEPS = {embed: "captions", dedup: "captions", score: "embed", selection: "embed", export: "embed"}


def publish_empty(root: Root, table: str, names: Sequence[str]) -> None:
    data = parquet_bytes(pa.table({"uid": pa.array([], pa.string())}))
    receipts = [commit(root, table, name, "", {table_file(table, name): data}, 0, {}) for name in names]
    publish(root, table, receipts, {"models": [], "settings": {}})


def curated(folder: Path, samples: Sequence[str], others: Sequence[str] = ONE) -> CurationConfig:
    """Samples of some fragments, and other tables of others."""
    root = Root(str(folder))
    for table in ("texts", "captions", "features", "duplicates", "scores", "selection"):
        publish_empty(root, table, others)
    publish_empty(root, "samples", samples)
    return CurationConfig(
        root=root.url,
        embed=UNTRAINED,
        dedup=DedupConfig(semantic_eps=None),
        score=ScoreConfig(heads=()),
        selection=CUT_OFFS,
    )


@pytest.mark.parametrize("samples", [(*ONE, "folder-00001"), ()], ids=["a fragment more", "a fragment less"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_by_hand_names_the_one_before_it(
    tmp_path: Path, step: Callable[[Runner], list[Report]], samples: Sequence[str]
) -> None:
    config = curated(tmp_path, samples)
    told = f"samples changed since: run python pipelines/{STEPS[step]}.py first"
    with pytest.raises(BadInput, match=told):
        step(Runner(config))


@pytest.mark.parametrize("step", STEPS)
def test_a_dry_run_without_a_source_that_tables_still_have_goes_on(
    tmp_path: Path, step: Callable[[Runner], list[Report]]
) -> None:
    """The steps before it have nothing to make, and leave the source out only when they write."""
    with contextlib.suppress(WouldMake):
        step(Runner(curated(tmp_path, ONE, (*ONE, "folder-00001")), dry_run=True))
