"""Files under a root: what a full disk or a killed process leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate.config import CurationConfig
from curate.takedown import asked_for
from pipelines.store import Root
from pipelines.takedown import take_down
from tests.dashboard.made_root import uid, write_root


def test_a_full_disk_leaves_nothing_half_written_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(str(tmp_path))
    root.write("tables/x/_run.json", b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        root.write("tables/x/_run.json", b"after")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["_run.json"]
    assert root.read("tables/x/_run.json") == b"before"


def test_a_takedown_removes_what_a_killed_run_left_half_written(tmp_path: Path) -> None:
    root = write_root(str(tmp_path / "run [1]"))
    with root.draft_of("raw/web-00001.tar") as draft:
        draft.write_bytes(b"a picture of somebody")
    draft.write_bytes(b"a picture of somebody")  # as SIGKILL leaves it
    told = list(take_down(CurationConfig(root=root.url), asked_for([uid(10)]), with_duplicates=False))
    assert f"raw/{draft.name}: left unfinished" in told and not draft.exists()
    assert root.exists("raw/web-00001.tar")
