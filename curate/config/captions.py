"""Settings: which captions are good enough, and what is repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
