"""The settings of curation: frozen dataclasses, checked before any work, free of heavy imports."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal


def require(condition: bool, field_name: str, value: object, fix: str) -> None:
    """Raise ValueError with one line that names field, value and fix."""
    if not condition:
        raise ValueError(f"{field_name} = {value!r}: {fix}")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """A CLIP model by open_clip architecture and registered weights."""

    architecture: str = "ViT-L-14-quickgelu"
    """open_clip architecture name, or the path of an open_clip JSON model config."""
    weights: str | None = "clip_vit_l14_openai"
    """Name in infra/weights.yaml; null means untrained."""
    allow_untrained: bool = False
    """Accept random weights where `weights` is null (demonstrations and tests only)."""
    seed: int = 0
    """Seed of the random weights of an untrained model."""

    def __post_init__(self) -> None:
        require(
            self.weights is not None or self.allow_untrained,
            "clip.weights",
            self.weights,
            "name weights of infra/weights.yaml (python -m curate.weights list), or set allow_untrained: true",
        )


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """A crawl: lists of URLs with captions."""

    name: str
    """Name of the source, part of every uid."""
    url_list: str
    """File or glob (fsspec URL) of parquet, CSV, TSV or JSONL lists."""
    column_names: tuple[str, ...] = ()
    """Names of the columns in CSV and TSV lists without a header line."""
    url_column: str = "url"
    """Column with the image URL."""
    caption_column: str = "caption"
    """Column with the caption."""
    license_column: str | None = None
    """Column with the licence, where there is one."""
    sha256_column: str | None = None
    """Column with the SHA-256 (hex) that the image had when it was listed; other bytes are refused."""
    extra_columns: tuple[str, ...] = ()
    """Columns that are kept as they are, together as one JSON object in `extra` of the samples table."""
    evaluation: bool = False
    """Keep it out of training, and with it every picture near one of its own."""


CONSENT_SIGNALS = ("robots_txt", "tdmrep", "x_robots_tag", "tdm_header", "content_usage", "c2pa")
RETRIED = (
    "dns",
    "timeout",
    "deadline",
    "connection",
    "tls",
    "http_refused",
    "http_busy",
    "http_server_error",
    "host_paused",
    "opt_out_unknown",
    "download_error",
)
"""Classes of failure that may pass; the others stay as they are."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Whether, how often and when a class of failed requests is made again."""

    status: str
    """Class of failure, as in the samples table."""
    runs: int = 3
    """Runs in which a row may be asked, the first one counted."""
    wait_s: float = 1.0
    """Pause before the next attempt in the same run; twice as long each time."""
    next_run_after_s: float = 3600.0
    """Pause before the next run asks again; four times as long each time."""

    def __post_init__(self) -> None:
        require(self.status in RETRIED, "ingest.retry.status", self.status, f"use one of {', '.join(RETRIED)}")
        require(self.runs > 0, f"ingest.retry[{self.status}].runs", self.runs, "must be at least 1")
        require(self.wait_s >= 0, f"ingest.retry[{self.status}].wait_s", self.wait_s, "must be 0 or more")
        pause_ok = self.next_run_after_s >= 0
        require(pause_ok, f"ingest.retry[{self.status}].next_run_after_s", self.next_run_after_s, "must be 0 or more")


RETRIES = (
    RetryPolicy(status="dns", runs=2, next_run_after_s=86_400),
    RetryPolicy(status="timeout"),
    RetryPolicy(status="deadline", runs=2),
    RetryPolicy(status="connection"),
    RetryPolicy(status="tls", runs=2, next_run_after_s=86_400),
    RetryPolicy(status="http_busy", runs=5, wait_s=2),
    RetryPolicy(status="http_server_error"),
    RetryPolicy(status="host_paused", runs=5),
    RetryPolicy(status="opt_out_unknown"),
    RetryPolicy(status="download_error"),
)
"""What may pass is asked again; names that do not resolve and broken certificates more rarely, refusals (403) never."""


@dataclass(frozen=True, kw_only=True)
class DumpSource:
    """Images that one already has, with captions: a folder, archives, or tables."""

    name: str
    """Name of the source, part of every uid."""
    folder: str
    """Folder that is searched for images, archives or tables, or one such file (fsspec URL)."""
    kind: Literal["folder", "imagefolder", "tar", "zip", "parquet", "arrow"] | None = None
    """What the folder holds: images, images with metadata files (Hugging Face), tars (WebDataset), zips, parquet or
    arrow files (Hugging Face's save_to_disk); null finds out."""
    captions: str | None = None
    """JSONL, CSV or parquet file with captions inside the folder, or inside each archive; null reads sidecars."""
    sidecar: Literal["txt", "json"] | None = None
    """Ending of the caption beside each image; null reads the .txt, or the .json where there is no .txt."""
    file_column: str = "file_name"
    """Column of the captions file with the image's path inside the folder or archive."""
    image_column: str | None = None
    """Column of a parquet or arrow file with the image's bytes; null takes the only one that can be."""
    caption_column: str | None = "caption"
    """Column (or field of a .json) with the caption; a list keeps its first entry. null: a table without captions."""
    license_column: str | None = None
    """Column (or field of a .json) with the licence, where there is one."""
    license: str | None = None
    """Licence of every image that has none in license_column."""
    max_file_mb: int = 256
    """Larger images are a status, and are not read."""
    evaluation: bool = False
    """Keep it out of training, and with it every picture near one of its own."""

    def __post_init__(self) -> None:
        where = f"dumps.{self.name}"
        require(self.max_file_mb > 0, f"{where}.max_file_mb", self.max_file_mb, "must be at least 1")
        in_rows = self.kind in ("parquet", "arrow")
        require(not (in_rows and self.captions), f"{where}.captions", self.captions, "a table has its own captions")
        needs_column = self.captions is not None or self.sidecar == "json" or self.kind == "imagefolder"
        named = self.caption_column is not None or not needs_column
        require(named, f"{where}.caption_column", self.caption_column, "name the column with the caption")
        both = self.captions is not None and self.sidecar is not None
        require(not both, f"{where}.sidecar", self.sidecar, "captions come from the captions file: set one of the two")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How images come in."""

    rows_per_shard: int = 10_000
    """Rows for each raw shard, the unit of work and of repair."""
    download_threads: int = 64
    """Concurrent downloads for each shard."""
    timeout_s: float = 10
    """Time limit of a connection or of a silent read."""
    deadline_s: float = 60
    """Time limit of a whole download with its redirects, pauses not counted."""
    retries: int = 1
    """Further attempts in the same run, for the classes of failure in `retry`."""
    retry: tuple[RetryPolicy, ...] = RETRIES
    """Classes of failure that are asked again, in this run and in later ones; the others never are."""
    longest_wait_s: float = 20
    """Longest pause within a run; whoever asks for a longer one is asked in a later run."""
    max_bytes: int = 20_000_000
    """Larger files are not read to their end, compressed answers not decompressed to theirs."""
    max_redirects: int = 5
    """Redirects that are followed, 0..5."""
    ports: tuple[int, ...] = (80, 443, 8080, 8443)
    """Ports that may be asked."""
    allowed_networks: tuple[str, ...] = ()
    """Networks beside the public internet that may be asked, on any port, such as 127.0.0.0/8 for a demonstration."""
    requests_per_host: int = 8
    """Concurrent requests to one host from all processes of the run, though each of them may make one."""
    host_failures: int = 20
    """Failures in a row after which a host is left alone for a while."""
    host_pause_s: float = 120
    """How long it is left alone."""
    alarm_share: float | None = 0.9
    """The run stops when more than this share of the last requests of a shard failed, 0..1; null never stops."""
    alarm_requests: int = 500
    """Requests over which that share is taken."""
    user_agent_token: str = "darkroom"
    """Name in the User-Agent header; robots.txt and opt-out headers may address it."""
    contact: str | None = None
    """Page or e-mail address in the User-Agent header, for the owners of the sites."""
    consent: tuple[str, ...] = CONSENT_SIGNALS
    """Signals that exclude an image: robots_txt, tdmrep, x_robots_tag, tdm_header, content_usage, c2pa."""
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noml", "noindex", "noimageindex")
    """X-Robots-Tag directives that exclude an image."""
    allowed_licenses: tuple[str, ...] | None = None
    """Licences, as the lists write them, whose images may be requested; null asks for all."""

    def __post_init__(self) -> None:
        require(self.rows_per_shard > 1, "ingest.rows_per_shard", self.rows_per_shard, "must be at least 2")
        for name in ("download_threads", "timeout_s", "deadline_s", "max_bytes", "requests_per_host", "host_failures"):
            require(getattr(self, name) > 0, f"ingest.{name}", getattr(self, name), "must be above 0")
        for name in ("retries", "longest_wait_s", "host_pause_s"):
            require(getattr(self, name) >= 0, f"ingest.{name}", getattr(self, name), "must be 0 or more")
        require(0 <= self.max_redirects <= 5, "ingest.max_redirects", self.max_redirects, "must be 0..5")
        share_ok = self.alarm_share is None or 0 < self.alarm_share < 1
        require(share_ok, "ingest.alarm_share", self.alarm_share, "must be above 0 and below 1, or null")
        require(self.alarm_requests > 1, "ingest.alarm_requests", self.alarm_requests, "must be at least 2")
        known = set(self.consent) <= set(CONSENT_SIGNALS)
        require(known, "ingest.consent", self.consent, f"use {', '.join(CONSENT_SIGNALS)}")
        token = self.user_agent_token
        plain = bool(token) and all(part.isalpha() for part in token.replace("_", "-").split("-"))
        require(plain, "ingest.user_agent_token", token, "use letters, - and _ (RFC 9309)")
        contact_ok = self.contact is None or (self.contact.isascii() and self.contact.isprintable())
        require(contact_ok, "ingest.contact", self.contact, "use printable ASCII")
        statuses = [policy.status for policy in self.retry]
        require(len(statuses) == len(set(statuses)), "ingest.retry", statuses, "name each class once")
        for network in self.allowed_networks:
            require(_is_network(network), "ingest.allowed_networks", network, "use CIDR, such as 127.0.0.0/8")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What is measured on each picture."""

    clip: ClipSpec = field(default_factory=ClipSpec)
    """The model behind embeddings, similarity and scores."""
    batch_size: int = 64
    """Images for each forward pass."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations of the model."""
    decode: Literal["fast", "exact"] = "fast"
    """fast: plain JPEGs are decoded reduced, and resized for the model by torch; exact: Pillow and open_clip's own
    transform for every picture, at three to five times the cost."""
    decode_threads: int = 2
    """Threads of each model process that read, decode and measure while the model works."""
    actors: int = 1
    """Model processes over the whole cluster; with GPUs, one for each."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto takes GPUs where the cluster has any; gpu insists on them; cpu leaves them alone."""
    gpus_per_actor: float = 1.0
    """GPUs of each model process; below 1, several share one."""
    max_megapixels: float = 120.0
    """Larger pictures are refused by their header, before decoding."""

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "embed.batch_size", self.batch_size, "must be at least 1")
        require(self.actors > 0, "embed.actors", self.actors, "must be at least 1")
        require(self.decode_threads > 0, "embed.decode_threads", self.decode_threads, "must be at least 1")
        require(self.max_megapixels > 0, "embed.max_megapixels", self.max_megapixels, "must be above 0")
        share = self.gpus_per_actor
        fits = 0 < share <= 1 or share == int(share) > 0
        require(fits, "embed.gpus_per_actor", share, "must be a share of one GPU (above 0, up to 1) or a whole number")


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """Which captions are good enough, and what is repaired."""

    min_words: int = 3
    """Whitespace-separated words a caption needs."""
    min_chars: int = 6
    """Characters a caption needs."""
    max_chars: int = 1000
    """Longer captions are not captions."""
    languages: tuple[str, ...] = ("en",)
    """ISO 639-1 codes that are kept; empty keeps all."""
    min_language_prob: float = 0.5
    """Certainty from which another language is a reason to drop, 0..1."""
    max_caption_count: int = 10
    """A caption on more images than this is boilerplate."""
    personal_data: Literal["mask", "drop"] = "mask"
    """What happens to e-mail addresses and phone numbers."""


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """What counts as the same picture."""

    radius_bits: int = 4
    """Hamming radius on 64-bit phash64, 0..16."""
    confirm_pdq_bits: int | None = None
    """A pair near by phash64 must be within this radius on 256-bit PDQ, too (31 is usual); null asks for no second."""
    turns: Literal["none", "flips", "all"] = "none"
    """Whether a mirrored or half-turned picture (flips), or one turned by a quarter as well (all), is the same."""
    min_entropy_bits: float = 2.0
    """Flatter pictures match everything and are left out of perceptual matching, 0..8."""
    max_text_share: float = 0.8
    """Pictures of which more is lines of text, 0..1, look alike as hashes and are left out of them, too."""
    error_image_captions: int = 8
    """The same bytes under this many different captions are an error image: none survives."""
    error_image_urls: int = 100
    """So are the same bytes at this many different URLs."""
    semantic_eps: float | None = 0.05
    """Cosine above 1 - eps is the same picture; null switches the semantic step off."""
    semantic_clusters: int | None = None
    """k of the spherical k-means; null takes one for 2,000 samples, but at least 50 drawn embeddings for each."""
    semantic_sample: int = 1_000_000
    """Embeddings that the clusters are fitted on, drawn by uid."""
    semantic_nearest: int = 3
    """Clusters in which each embedding is searched."""
    seed: int = 0
    """Seed of sample and clusters."""
    index: str | None = None
    """Folder (fsspec URL) with the survivors of earlier corpora: they win, and this corpus' survivors join them."""
    rows_per_block: int = 10_000_000
    """Samples whose hashes one task holds; it holds two such blocks at a time."""
    rows_per_group: int = 500_000
    """Embeddings that one task holds; 1.5 GB a million at 768 values."""
    max_pairs: int = 16_000_000
    """Near pairs that are held at a time, some 40 bytes each; more are decided in rounds."""

    def __post_init__(self) -> None:
        require(0 <= self.radius_bits <= 16, "dedup.radius_bits", self.radius_bits, "must be 0..16")
        pdq_ok = self.confirm_pdq_bits is None or 0 <= self.confirm_pdq_bits <= 255
        require(pdq_ok, "dedup.confirm_pdq_bits", self.confirm_pdq_bits, "must be 0..255, or null")
        both = self.confirm_pdq_bits is not None and self.turns != "none"
        require(not both, "dedup.turns", self.turns, "PDQ of turned pictures is not kept: set confirm_pdq_bits: null")
        eps_ok = self.semantic_eps is None or 0 < self.semantic_eps < 1
        require(eps_ok, "dedup.semantic_eps", self.semantic_eps, "must be above 0 and below 1, or null")
        share_ok = 0 <= self.max_text_share <= 1
        require(share_ok, "dedup.max_text_share", self.max_text_share, "must be 0..1; 1 leaves none out")
        entropy_ok = 0 <= self.min_entropy_bits <= 8
        require(entropy_ok, "dedup.min_entropy_bits", self.min_entropy_bits, "must be 0..8; 0 leaves none out")
        require(self.error_image_captions > 1, "dedup.error_image_captions", self.error_image_captions, "must be >= 2")
        require(self.error_image_urls > 1, "dedup.error_image_urls", self.error_image_urls, "must be >= 2")
        clusters_ok = self.semantic_clusters is None or self.semantic_clusters > 0
        require(clusters_ok, "dedup.semantic_clusters", self.semantic_clusters, "must be at least 1, or null")
        for name in ("semantic_sample", "semantic_nearest", "rows_per_block", "rows_per_group"):
            require(getattr(self, name) > 0, f"dedup.{name}", getattr(self, name), "must be at least 1")
        require(self.max_pairs >= 0, "dedup.max_pairs", self.max_pairs, "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A small network on the image embedding that gives one score."""

    column: str
    """Name of the score's column, with its unit."""
    hidden: Literal["none", "relu"] = "none"
    """Activation between the layers."""
    output: Literal["none", "sigmoid"] = "none"
    """Activation after the last layer."""
    weights: str | None = None
    """Name in infra/weights.yaml; null means untrained."""
    allow_untrained: bool = False
    """Accept random weights where `weights` is null (demonstrations and tests only)."""
    low: float = 0.0
    """Smallest value of the score, as its publishers use it."""
    high: float = 1.0
    """Largest value of the score."""

    def __post_init__(self) -> None:
        require(
            self.weights is not None or self.allow_untrained,
            f"score.heads.{self.column}.weights",
            self.weights,
            "name weights of infra/weights.yaml, or set allow_untrained: true",
        )


REAL_HEADS = (
    HeadSpec(column="aesthetic", weights="aesthetic_v2", low=1.0, high=10.0),
    HeadSpec(column="nsfw_prob", weights="nsfw_vit_l14", hidden="relu", output="sigmoid"),
    HeadSpec(column="watermark_prob", weights="watermark_vit_l14", output="sigmoid"),
)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The heads that turn embeddings into scores."""

    heads: tuple[HeadSpec, ...] = REAL_HEADS
    """Heads on the image embedding."""
    blocklists_sha256: tuple[str, ...] = ()
    """Text files (fsspec URLs) with one SHA-256 of image bytes in hex a line."""
    blocklists_pdq: tuple[str, ...] = ()
    """Text files (fsspec URLs) with one PDQ hash in hex a line."""
    blocklist_radius_bits: int = 31
    """Hamming radius on 256-bit PDQ."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The cut-offs: the only place that drops a sample. null switches a cut-off off."""

    min_side_px: int = 200
    """Smaller side of the picture."""
    max_aspect: float = 3.0
    """Longer side over shorter side."""
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


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The training shards."""

    resolution_px: int = 1024
    """Square root of a bucket's area."""
    multiple_px: int = 64
    """Bucket sides are multiples of this."""
    jpeg_quality: int = 95
    """Quality of the re-encoded JPEG."""
    samples_per_shard: int = 5000
    """Samples of one train shard."""
    val_fraction: float = 0.01
    """Share of samples set aside for validation, chosen by uid, 0..1."""

    def __post_init__(self) -> None:
        require(0 <= self.val_fraction < 1, "export.val_fraction", self.val_fraction, "must be 0 or more and below 1")
        ok = self.resolution_px > 0 and self.resolution_px % self.multiple_px == 0
        require(ok, "export.resolution_px", self.resolution_px, f"must be a multiple of {self.multiple_px}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderFit:
    """Fits a small autoencoder on the exported pictures where no trained one is at hand."""

    steps: int = 250
    """Optimiser steps."""
    seed: int = 0
    """Seed of weights and batches."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """The latent shards."""

    vae: str | None = None
    """SDXL's by its name in infra/weights.yaml, or a diffusers AutoencoderKL folder; null skips the step."""
    fit: AutoencoderFit | None = None
    """Fit a small autoencoder into `vae` first (demonstrations only); null uses the folder as it is."""
    batch_size: int = 16
    """Pictures for each forward pass."""
    flip: bool = True
    """Write a mirrored variant beside each picture."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """The engine."""

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
    """Crawls."""
    dumps: tuple[DumpSource, ...] = ()
    """Dumps."""
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
