"""A step that is run by hand after samples changed names the step that must come first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from curate.bad_input import BadInput
from curate.config import ClipSpec, CurationConfig, DedupConfig, EmbedConfig, ScoreConfig, SelectionConfig
from pipelines.dedup import dedup
from pipelines.embed import embed
from pipelines.export import export
from pipelines.runner import Report, Runner
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


@pytest.mark.parametrize("samples", [(*ONE, "folder-00001"), ()], ids=["a fragment more", "a fragment less"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_by_hand_names_the_one_before_it(
    tmp_path: Path, step: Callable[[Runner], list[Report]], samples: Sequence[str]
) -> None:
    root = Root(str(tmp_path))
    for table in ("texts", "captions", "features", "duplicates", "scores", "selection"):
        publish_empty(root, table, ONE)
    publish_empty(root, "samples", samples)
    config = CurationConfig(
        root=root.url,
        embed=UNTRAINED,
        dedup=DedupConfig(semantic_eps=None),
        score=ScoreConfig(heads=()),
        selection=CUT_OFFS,
    )
    told = f"samples changed since: run python pipelines/{STEPS[step]}.py first"
    with pytest.raises(BadInput, match=told):
        step(Runner(config))
