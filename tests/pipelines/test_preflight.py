"""What would stop a run is told before any work, all of it at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from curate.bad_input import BadInput
from curate.config import ClipSpec, CurationConfig, DedupConfig, DumpSource, EmbedConfig, EncodeConfig, WebSource
from curate.weights import MissingWeights
from pipelines.dedup import dedup
from pipelines.ingest import ingest
from pipelines.preflight import preflight
from pipelines.run import STEPS
from pipelines.runner import Runner


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CurationConfig:
    """The settings that a first run has, and no weights."""
    monkeypatch.setenv("DARKROOM_WEIGHTS", str(tmp_path / "weights"))
    dump = DumpSource(name="dump", folder=str(tmp_path), captions=None)
    return CurationConfig(root=str(tmp_path / "root"), dumps=(dump,), encode=EncodeConfig(vae="sdxl_vae"))


def test_all_missing_weights_are_named_in_one_line(config: CurationConfig) -> None:
    with pytest.raises(MissingWeights) as raised:
        preflight(config, STEPS)
    heads = tuple(head.weights for head in config.score.heads)
    assert len(heads) > 1
    assert raised.value.names == (config.embed.clip.weights, *heads, "sdxl_vae")
    assert f"python -m curate.weights fetch {' '.join(raised.value.names)} (" in str(raised.value)
    with pytest.raises(MissingWeights, match="^weights sdxl_vae are not in"):
        preflight(config, ["encode"])


def test_no_source_is_told_before_weights(config: CurationConfig) -> None:
    with pytest.raises(BadInput, match="^web, dumps = .*: name a source of pictures in the settings"):
        preflight(dataclasses.replace(config, dumps=()), STEPS)


def test_a_crawl_without_a_list_is_told_first(config: CurationConfig, tmp_path: Path) -> None:
    source = WebSource(name="crawl", url_list=str(tmp_path / "*.csv"))
    with pytest.raises(BadInput, match=r"web.crawl.url_list = .*\*.csv: no such file"):
        preflight(dataclasses.replace(config, web=[source]), ["ingest"])
    (tmp_path / "a.csv").write_text("url\n")
    preflight(dataclasses.replace(config, web=[source]), ["ingest"])


def test_untrained_embeddings_do_not_decide_what_looks_the_same(config: CurationConfig) -> None:
    untrained = dataclasses.replace(config, embed=EmbedConfig(clip=ClipSpec(weights=None, allow_untrained=True)))
    with pytest.raises(BadInput, match=r"dedup.semantic_eps = 0.05: .*; set null, or at most 0.001"):
        preflight(untrained, ["dedup"])
    for eps in (None, 0.001):
        preflight(dataclasses.replace(untrained, dedup=DedupConfig(semantic_eps=eps)), ["dedup"])


def test_dedup_alone_refuses_untrained_embeddings(config: CurationConfig) -> None:
    untrained = dataclasses.replace(config, embed=EmbedConfig(clip=ClipSpec(weights=None, allow_untrained=True)))
    with Runner(untrained) as runner, pytest.raises(BadInput, match=r"dedup.semantic_eps = 0.05: "):
        dedup(runner)


def test_ingest_alone_lists_no_dump_before_the_crawls_have_their_lists(config: CurationConfig, tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "a.jpg").write_bytes(b"a picture")
    dump = DumpSource(name="dump", folder=str(tmp_path / "dump"))
    crawl = WebSource(name="crawl", url_list=str(tmp_path / "*.csv"))
    with (
        Runner(dataclasses.replace(config, web=[crawl], dumps=[dump])) as runner,
        pytest.raises(BadInput, match=r"web.crawl.url_list = .*\*.csv: no such file"),
    ):
        ingest(runner)
    assert not (tmp_path / "root").exists()
