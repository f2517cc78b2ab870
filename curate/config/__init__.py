"""The settings of curation: frozen dataclasses, checked before any work, free of heavy imports."""

from __future__ import annotations

from curate.config.captions import CaptionsConfig, RecaptionConfig
from curate.config.check import require
from curate.config.curation import CurationConfig, RayConfig
from curate.config.dedup import DedupConfig
from curate.config.embed import ClipSpec, EmbedConfig
from curate.config.export import AutoencoderFit, EncodeConfig, ExportConfig
from curate.config.ingest import CONSENT_SIGNALS, RETRIED, RETRIES, DumpSource, IngestConfig, RetryPolicy, WebSource
from curate.config.score import REAL_HEADS, HeadSpec, ScoreConfig
from curate.config.selection import DiversityConfig, Quantile, Quota, SelectionConfig, Threshold, TopFraction

__all__ = [
    "AutoencoderFit",
    "CONSENT_SIGNALS",
    "CaptionsConfig",
    "ClipSpec",
    "CurationConfig",
    "DedupConfig",
    "DumpSource",
    "DiversityConfig",
    "EmbedConfig",
    "EncodeConfig",
    "ExportConfig",
    "HeadSpec",
    "IngestConfig",
    "Quantile",
    "Quota",
    "REAL_HEADS",
    "RETRIED",
    "RETRIES",
    "RayConfig",
    "RecaptionConfig",
    "RetryPolicy",
    "ScoreConfig",
    "SelectionConfig",
    "Threshold",
    "TopFraction",
    "WebSource",
    "require",
]
