"""Settings: the cut-offs, the only place that drops a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from curate.config.check import require

Of = Literal["measured", "passed"]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A cut-off on any column of numbers in features, captions or scores."""

    column: str
    """Column, such as text_share or the column of a head of your own."""
    min: float | None = None
    """Smaller values are dropped (`low_<column>`); null: none is too small."""
    max: float | None = None
    """Larger values are dropped (`high_<column>`); null: none is too large."""

    def __post_init__(self) -> None:
        name = f"selection.thresholds.{self.column}"
        _number(f"{name}.min", self.min)
        _number(f"{name}.max", self.max)
        require(self.min is not None or self.max is not None, f"{name}.min", self.min, "give min, max, or both")
        ordered = self.min is None or self.max is None or self.min <= self.max
        require(ordered, f"{name}.min", self.min, f"must not be above max = {self.max}")


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A cut-off at quantiles of a column, found anew in each corpus. Equal values stay together."""

    column: str
    """Column of numbers."""
    low: float = 0.0
    """Values below this quantile are dropped, 0..1."""
    high: float = 1.0
    """Values above this quantile are dropped, 0..1."""
    of: Of = "measured"
    """measured: quantiles of all samples that have the value; passed: of those that nothing earlier drops."""

    def __post_init__(self) -> None:
        name = f"selection.quantiles.{self.column}"
        require(0 <= self.low <= 1, f"{name}.low", self.low, "must be 0..1")
        require(self.low <= self.high <= 1, f"{name}.high", self.high, f"must be {self.low}..1")


@dataclass(frozen=True, kw_only=True)
class TopFraction:
    """Keeps the best fraction by a column, to the sample; equal values in the order of uids."""

    column: str
    """Column of numbers."""
    fraction: float
    """Share that is kept, above 0, up to 1."""
    prefer: Literal["high", "low"] = "high"
    """Which values are best."""
    of: Of = "measured"
    """measured: the fraction is of all samples that have the value, as DataComp counts; passed: of those left."""

    def __post_init__(self) -> None:
        name = f"selection.top_fractions.{self.column}.fraction"
        require(0 < self.fraction <= 1, name, self.fraction, "must be above 0, up to 1")


@dataclass(frozen=True, kw_only=True)
class Quota:
    """At most so many samples of each source, language, domain or licence; the best ones stay."""

    by: Literal["source", "language", "domain", "license"]
    """What is counted; a sample without it (a dump has no domain) is left alone."""
    max_samples: int | None = None
    """Samples of each that stay; null: no number."""
    max_share: float | None = None
    """Samples of each that stay, as a share of what reaches this quota, above 0, up to 1; null: no share."""
    values: tuple[str, ...] = ()
    """The sources, languages, ... that are held to it; empty: each one."""
    rank_by: str | None = None
    """Column whose highest values stay; null: drawn by uid."""

    def __post_init__(self) -> None:
        name = f"selection.quotas.{self.by}"
        given = self.max_samples is not None or self.max_share is not None
        require(given, f"{name}.max_samples", self.max_samples, "give max_samples, max_share, or both")
        samples_ok = self.max_samples is None or self.max_samples >= 0
        require(samples_ok, f"{name}.max_samples", self.max_samples, "must be 0 or more, or null")
        share_ok = self.max_share is None or 0 < self.max_share <= 1
        require(share_ok, f"{name}.max_share", self.max_share, "must be above 0, up to 1, or null")


@dataclass(frozen=True, kw_only=True)
class DiversityConfig:
    """Evens out the clusters of embeddings that dedup found; samples without one are left alone."""

    max_per_cluster: int | None = None
    """Samples of each cluster that stay (or share its weight); null: no cap."""
    temperature: float | None = None
    """Exponent T of the clusters' shares, n^T, 0..1: 1 leaves them, 0 makes them equal; null: none."""
    keep_fraction: float | None = None
    """With a temperature: share of the clustered samples that stays, above 0 and below 1; null for weights."""
    act: Literal["drop", "weight"] = "drop"
    """drop: what is too many is dropped (`cluster_cap`); weight: all stay, and `weight` says how often to draw each."""
    rank_by: str | None = None
    """Column whose highest values stay; null: drawn by uid."""

    def check(self) -> None:
        """Raise ValueError for what does not fit; the selection asks, since a setting that may be null cannot."""
        one = (self.max_per_cluster is None) != (self.temperature is None)
        require(
            one, "selection.diversity.temperature", self.temperature, "give max_per_cluster or temperature, not both"
        )
        cap_ok = self.max_per_cluster is None or self.max_per_cluster > 0
        require(cap_ok, "selection.diversity.max_per_cluster", self.max_per_cluster, "must be at least 1, or null")
        warm_ok = self.temperature is None or 0 <= self.temperature <= 1
        require(warm_ok, "selection.diversity.temperature", self.temperature, "must be 0..1, or null")
        keep, name = self.keep_fraction, "selection.diversity.keep_fraction"
        require(keep is None or 0 < keep < 1, name, keep, "must be above 0 and below 1, or null")
        drops_warm = self.temperature is not None and self.act == "drop"
        fix = "say it with temperature and act: drop, and with nothing else"
        require((keep is not None) == drops_warm, name, keep, fix)


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The cut-offs: the only place that drops a sample. null switches a cut-off off."""

    preset: Literal["none", "datacomp_basic"] = "none"
    """datacomp_basic: DataComp's basic filter; it sets min_side_px, max_aspect, min_caption_words, min_caption_chars
    and languages, whatever else is said of them."""
    min_side_px: int | None = 200
    """Smaller side of the picture."""
    max_aspect: float | None = 3.0
    """Longer side over shorter side, 1 or more."""
    min_caption_words: int | None = None
    """Whitespace-separated words of the cleaned caption."""
    min_caption_chars: int | None = None
    """Characters of the cleaned caption."""
    languages: tuple[str, ...] | None = None
    """ISO 639-1 codes that stay, whatever the language's probability; null keeps all."""
    min_entropy_bits: float | None = 2.0
    """Entropy of the grey histogram, 0..8."""
    min_sharpness: float | None = None
    """Variance of the Laplacian of the 256 px grey picture."""
    min_aesthetic: float | None = None
    """Aesthetic score, 1..10, higher is better."""
    max_nsfw_prob: float | None = 0.5
    """Probability of unsafe content, 0..1."""
    max_watermark_prob: float | None = 0.8
    """Probability of a watermark, 0..1."""
    min_clip_similarity: float | None = None
    """Cosine between picture and caption, -1..1; its scale depends on the model."""
    thresholds: tuple[Threshold, ...] = ()
    """Cut-offs on other columns."""
    quantiles: tuple[Quantile, ...] = ()
    """Cut-offs at quantiles."""
    top_fractions: tuple[TopFraction, ...] = ()
    """Best fractions by a score, after the cut-offs."""
    quotas: tuple[Quota, ...] = ()
    """Most samples of each source, language, domain or licence, in this order, after the fractions."""
    diversity: DiversityConfig | None = None
    """Cap, temperature or weights of the embedding clusters, last of all; null leaves them as they are."""

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            _number(f"selection.{name}", value)
            fix = f"must be {low:g}..{high:g}, or null" if math.isfinite(high) else f"must be {low:g} or more, or null"
            require(value is None or low <= value <= high, f"selection.{name}", value, fix)
        if self.diversity is not None:
            self.diversity.check()
        wrong = next((code for code in self.languages or () if len(code) not in (2, 3) or code != code.lower()), None)
        require(wrong is None, "selection.languages", wrong, "must be ISO 639 codes in small letters, such as en")


_RANGES = (
    ("min_side_px", 1, math.inf),
    ("max_aspect", 1, math.inf),
    ("min_caption_words", 0, math.inf),
    ("min_caption_chars", 0, math.inf),
    ("min_entropy_bits", 0, 8),
    ("min_sharpness", 0, math.inf),
    ("min_aesthetic", 1, 10),
    ("max_nsfw_prob", 0, 1),
    ("max_watermark_prob", 0, 1),
    ("min_clip_similarity", -1, 1),
)


def _number(name: str, value: float | None) -> None:
    require(value is None or math.isfinite(value), name, value, "must be a finite number, or null")
