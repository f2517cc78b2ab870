"""Settings: which captions are good enough, and what is repaired."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from curate.config.check import require

PLACEHOLDERS = (
    "click to enlarge",
    "click image to enlarge",
    "click for larger image",
    "click to view larger image",
    "click here",
    "default image",
    "feature image",
    "featured image",
    "image coming soon",
    "image may contain",
    "image not available",
    "image not found",
    "image unavailable",
    "no image available",
    "no photo available",
    "photo not available",
    "picture not available",
    "placeholder image",
    "product image",
    "profile picture",
    "read more",
    "share on facebook",
    "share on twitter",
    "this image may contain",
    "thumbnail image",
    "view full size",
    "view larger image",
)
HARMLESS = (
    "big black",
    "domination",
    "escort",
    "fingering",
    "girl on",
    "hooker",
    "horny",
    "playboy",
    "rimming",
    "sexy",
    "skeet",
    "snatch",
    "tied up",
    "tight white",
    "wrapping men",
)
"""Words of the English list that name harmless things in captions more often than not."""


@dataclass(frozen=True, kw_only=True)
class RecaptionConfig:
    """New captions by a local vision-language model; off until a model is named."""

    model: str | None = None
    """Folder of a transformers image-to-text model; null: no recaptioning. Needs `pip install .[recaption]`."""
    prompt: str | None = None
    """What a model that takes instructions is asked; null for one that only captions."""
    share: float = 0.5
    """Share of the samples, chosen by uid, that get the new caption; the others keep theirs. 0..1."""
    max_new_tokens: int = 60
    """Tokens of a new caption at most."""
    batch_size: int = 8
    """Images for each forward pass."""
    actors: int = 1
    """Model processes over the whole cluster."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto takes GPUs where the cluster has any."""

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "captions.recaption.share", self.share, "must be in 0..1")
        for name in ("max_new_tokens", "batch_size", "actors"):
            value = getattr(self, name)
            require(value > 0, f"captions.recaption.{name}", value, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """Which captions are good enough, and what is repaired."""

    min_words: int = 3
    """Words a caption needs, or characters where its script sets no spaces."""
    min_chars: int = 6
    """Characters a caption needs."""
    max_chars: int = 1000
    """Longer captions are not captions."""
    max_clip_tokens: int | None = None
    """CLIP tokens, with both end marks, of which a caption may have no more; null: what is above 77 is cut by CLIP."""
    min_letter_share: float = 0.4
    """Letters among the characters that are no spaces, 0..1."""
    max_upper_share: float = 1.0
    """Capitals among the letters of a caption of 20 letters and more, 0..1; 1 keeps all: CLIP lowers them."""
    min_distinct_share: float = 0.34
    """Different words among a caption's words, of six words and more, 0..1."""
    placeholders: tuple[str, ...] = PLACEHOLDERS
    """Phrases that say nothing of a picture: without them a caption must still have `min_words` words."""
    languages: tuple[str, ...] = ("en",)
    """ISO 639-1 codes that are kept; empty keeps all."""
    min_language_prob: float = 0.6
    """Certainty from which another language is a reason to drop, 0..1."""
    max_caption_count: int = 10
    """A caption on more images than this is boilerplate."""
    max_near_caption_count: int | None = 100
    """The same for captions that are equal but for digits, punctuation and the order of words; null: off."""
    personal_data: Literal["mask", "drop", "keep"] = "mask"
    """What happens to e-mail addresses, phone, card and identity numbers."""
    profanity_lists: str | None = None
    """Folder (fsspec URL) with a list of terms for each language, one a line, named by its code: en, de, ja (LDNOOBW's
    layout); null: off."""
    profanity_everywhere: tuple[str, ...] = ("en",)
    """Lists that hold for captions of every language; the others hold for captions of their own."""
    profanity_allowed: tuple[str, ...] = HARMLESS
    """Terms of the lists that are no reason to drop."""
    recaption: RecaptionConfig = field(default_factory=RecaptionConfig)
    """Recaptioning."""

    def __post_init__(self) -> None:
        for name in ("min_language_prob", "min_letter_share", "max_upper_share", "min_distinct_share"):
            require(0 <= getattr(self, name) <= 1, f"captions.{name}", getattr(self, name), "must be in 0..1")
        for name in ("min_words", "min_chars"):
            require(getattr(self, name) >= 0, f"captions.{name}", getattr(self, name), "must be 0 or more")
        least = max(self.min_chars, 1)
        require(self.max_chars >= least, "captions.max_chars", self.max_chars, f"must be at least {least}")
        for name, low in (("max_clip_tokens", 3), ("max_caption_count", 1), ("max_near_caption_count", 1)):
            value = getattr(self, name)
            require(value is None or value >= low, f"captions.{name}", value, f"must be at least {low}")
        wrong = [code for code in self.languages if not (len(code) in (2, 3) and code.isalpha() and code.islower())]
        require(not wrong, "captions.languages", wrong, "use ISO 639-1 codes: en, de, ja")
