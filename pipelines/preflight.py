"""What is checked before any work: cut-offs that have a trained score, weights and lists that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from curate import blocklist
from curate.bad_input import BadInput
from curate.config import CurationConfig
from curate.cut_offs import check as check_cut_offs
from curate.faces import YUNET
from curate.heads import network_of
from curate.profanity import lists_of
from curate.recaption import check_model
from curate.weights import path_of, registry
from pipelines.store import Root


def preflight(config: CurationConfig, steps: Sequence[str]) -> None:
    """Raise BadInput or MissingWeights for what would stop one of these steps."""
    for check, of in CHECKS.items():
        if not of.isdisjoint(steps):
            check(config)


def check_selection(config: CurationConfig) -> None:
    """Raise BadInput for a cut-off that nothing measures."""
    check_cut_offs(config.selection, config.score, config.dedup)


def check_clip_weights(config: CurationConfig) -> None:
    """Raise MissingWeights, naming the command that fetches them, where the CLIP weights are absent."""
    if config.embed.clip.weights is not None:
        path_of(config.embed.clip.weights)


def check_head_weights(config: CurationConfig) -> None:
    """Raise MissingWeights where a head's file is absent, ValueError where it reads another model's embeddings."""
    for head in config.score.heads:
        if head.weights is None:
            continue
        path_of(head.weights)
        wanted, given = network_of(head.weights).clip, config.embed.clip.weights
        if wanted != given:
            raise BadInput(
                f"score.heads.{head.column}.weights = {head.weights!r}: it reads embeddings of {wanted}, and "
                f"embed.clip.weights = {given!r}: take another head, or embed.clip.weights: {wanted}"
            )


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


CHECKS: dict[Callable[[CurationConfig], None], frozenset[str]] = {
    check_selection: frozenset({"selection"}),
    check_clip_weights: frozenset({"embed"}),
    check_head_weights: frozenset({"score"}),
    check_faces: frozenset({"export"}),
    check_vae: frozenset({"encode"}),
    check_lists: frozenset({"captions", "score"}),
}
"""By check: the steps that it is for."""
