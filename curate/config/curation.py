"""Everything that curation does, from sources to latents, in one dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from curate.config.captions import CaptionsConfig
from curate.config.check import require
from curate.config.dedup import DedupConfig
from curate.config.embed import EmbedConfig
from curate.config.export import EncodeConfig, ExportConfig
from curate.config.ingest import DumpSource, IngestConfig, WebSource
from curate.config.score import ScoreConfig
from curate.config.selection import SelectionConfig


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where Ray runs, and how much of the machine it takes."""

    address: str | None = None
    """Cluster to join; null joins the job's own cluster, or starts one on this machine."""
    num_cpus: int | None = None
    """CPUs of a cluster started here; null takes all."""
    max_tasks: int | None = None
    """Tasks at a time; null leaves it to Ray."""


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Everything that curation does, from sources to latents."""

    root: str
    """Folder (fsspec URL) under which every output goes."""
    web: tuple[WebSource, ...] = ()
    """Crawls: lists of URLs, such as [{name: crawl, url_list: "lists/*.parquet"}]."""
    dumps: tuple[DumpSource, ...] = ()
    """Folders and archives that are here, such as [{name: archive, folder: pictures, captions: captions.jsonl}]."""
    ingest: IngestConfig = field(default_factory=IngestConfig)
    """Ingest."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captions."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Embed."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Dedup."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Score."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Selection."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Export."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """Encode."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Ray."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.web] + [source.name for source in self.dumps]
        require(len(names) == len(set(names)), "web/dumps name", names, "every source needs a name of its own")
        require(
            all(name and name.replace("-", "").replace("_", "").isalnum() for name in names),
            "web/dumps name",
            names,
            "use letters, digits, - and _",
        )
