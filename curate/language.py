"""The language of a caption, with its probability."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1)
def identifier() -> Callable[[str], tuple[str, float]]:
    """Return a function that gives the ISO 639-1 code of a text and its probability, 0..1.

    py3langid, whose model is in its package, without the languages that have no code of two letters: Nigerian Pidgin
    (pcm) is otherwise its most frequent mistake on English captions.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found.set_languages([code for code in found.nb_classes if len(code) == 2])

    def identify(text: str) -> tuple[str, float]:
        language, probability = found.classify(text)
        return str(language), float(probability)

    return identify
