"""What is checked before any work: cut-offs that have a trained score, weights and lists that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from curate import blocklist
from curate.bad_input import BadInput
from curate.config import CurationConfig
from curate.crawl.lists import list_files
from curate.cut_offs import check as check_cut_offs
from curate.faces import YUNET
from curate.heads import network_of
from curate.profanity import lists_of
from curate.recaption import check_model
from curate.weights import MissingWeights, default_weights_dir, path_of, registry
from pipelines.store import Root


def preflight(config: CurationConfig, steps: Sequence[str]) -> None:
    """Raise BadInput, or MissingWeights naming all that are missing, for what would stop one of these steps."""
    missing: list[str] = []
    for check, of in CHECKS.items():
        try:
            if not of.isdisjoint(steps):
                check(config)
        except MissingWeights as error:
            missing.extend(error.names)
    if missing:
        raise missing_weights(missing)


def missing_weights(names: Sequence[str]) -> MissingWeights:
    """Return one error for all of them."""
    fetch = f"python -m curate.weights fetch {' '.join(names)}"
    return MissingWeights(
        f"weights {', '.join(names)} are not in {default_weights_dir()}; get them with: {fetch}"
        " (or name a folder that has them: DARKROOM_WEIGHTS); docs/tutorial.md, section 2, runs without any",
        tuple(names),
    )


def check_sources(config: CurationConfig) -> None:
    """Raise BadInput where there is no source and never was one, or a crawl has no list."""
    if not config.web and not config.dumps and not Root(config.root).exists("tables/samples"):
        raise BadInput("web, dumps = []: name a source of pictures in the settings (docs/tutorial.md, section 2)")
    for source in config.web:
        list_files(source)


def check_untrained(config: CurationConfig) -> None:
    """Raise BadInput where embeddings of an untrained model would decide what looks the same."""
    eps = config.dedup.semantic_eps
    if config.embed.clip.weights is None and eps is not None and eps > UNTRAINED_EPS:
        raise BadInput(
            f"dedup.semantic_eps = {eps}: embeddings of an untrained model (embed.clip.weights: null) lie close"
            f" together, most pictures would be dropped as duplicates; set null, or at most {UNTRAINED_EPS}"
        )


def check_selection(config: CurationConfig) -> None:
    """Raise BadInput for a cut-off that nothing measures."""
    check_cut_offs(config.selection, config.score, config.dedup)


def check_clip_weights(config: CurationConfig) -> None:
    """Raise MissingWeights, naming the command that fetches them, where the CLIP weights are absent."""
    if config.embed.clip.weights is not None:
        path_of(config.embed.clip.weights)


def check_head_weights(config: CurationConfig) -> None:
    """Raise MissingWeights where a head's file is absent, ValueError where it reads another model's embeddings."""
    missing: list[str] = []
    for head in config.score.heads:
        if head.weights is None:
            continue
        try:
            path_of(head.weights)
        except MissingWeights as error:
            missing.extend(error.names)
            continue
        wanted, given = network_of(head.weights).clip, config.embed.clip.weights
        if wanted != given:
            raise BadInput(
                f"score.heads.{head.column}.weights = {head.weights!r}: it reads embeddings of {wanted}, and "
                f"embed.clip.weights = {given!r}: take another head, or embed.clip.weights: {wanted}"
            )
    if missing:
        raise missing_weights(missing)


def check_lists(config: CurationConfig) -> None:
    """Raise ValueError or FileNotFoundError where a list of hashes or terms, or the captioner's folder, is wrong."""
    blocklist.load(config.score)
    lists_of(config.captions)
    if config.captions.recaption.model is not None:
        check_model(config.captions.recaption)


def check_faces(config: CurationConfig) -> None:
    """Raise MissingWeights where the network that is to look for faces is absent."""
    if config.export.faces == "blur" and config.export.face_detector == "yunet":
        path_of(YUNET)


def check_vae(config: CurationConfig) -> None:
    """Raise MissingWeights or FileNotFoundError where the autoencoder to encode with is absent."""
    vae = config.encode.vae
    if vae is None or config.encode.fit is not None:
        return
    if vae in registry():
        path_of(vae)
    elif not Root(vae).exists("config.json"):
        raise FileNotFoundError(f"encode.vae = {vae}: neither a name in infra/weights.yaml nor a diffusers folder")


UNTRAINED_EPS = 0.001
"""Distance up to which embeddings of an untrained model are taken for those of the same picture."""

CHECKS: dict[Callable[[CurationConfig], None], frozenset[str]] = {
    check_sources: frozenset({"ingest"}),
    check_untrained: frozenset({"dedup"}),
    check_selection: frozenset({"selection"}),
    check_clip_weights: frozenset({"embed"}),
    check_head_weights: frozenset({"score"}),
    check_faces: frozenset({"export"}),
    check_vae: frozenset({"encode"}),
    check_lists: frozenset({"captions", "score"}),
}
"""By check: the steps that it is for."""
