"""What the funnel says for people beside its counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.funnel import STAGES, lines
from pipelines.store import Root

NOTE = "note: embeddings by tiny, UNTRAINED; duplicate_semantic rests on them"


@pytest.mark.parametrize(("semantic_eps", "notes"), [(0.001, [NOTE]), (None, [])])
def test_untrained_embeddings_are_noted_where_duplicates_rest_on_them(
    tmp_path: Path, semantic_eps: float | None, notes: list[str]
) -> None:
    root = Root(str(tmp_path))
    root.write_json("tables/features/_run.json", {"models": ["tiny, UNTRAINED"]})
    root.write_json("tables/scores/_run.json", {"models": []})
    root.write_json("tables/duplicates/_run.json", {"settings": {"semantic_eps": semantic_eps}})
    found = {"rows_in": 3, "rows_kept": 3, "drops": {stage: {} for stage in STAGES}, "diversity": None}
    assert [line for line in lines(root, found) if line.startswith("note")] == notes
