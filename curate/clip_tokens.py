"""How many tokens CLIP makes of a caption."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1)
def token_counter() -> Callable[[str], int]:
    """Return a function that counts open_clip's tokens, with both end marks and before truncation.

    Ten times as fast as encoding: what stands between two spaces is counted once, as no token crosses a space, and text
    that open_clip's cleaning would leave alone is not cleaned.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers.models import BPE

    tokenizer = SimpleTokenizer()
    merges = list(tokenizer.bpe_ranks)
    pairs = BPE(vocab=tokenizer.encoder, merges=merges, end_of_word_suffix="</w>")  # twenty times as fast as Python's

    def of_word(word: str) -> int:
        if word in tokenizer.cache:  # an end mark
            return 1
        return len(pairs.tokenize("".join(map(tokenizer.byte_encoder.__getitem__, word.encode()))))

    class Known(dict[str, int]):
        """What was counted before, forgotten when there is much of it; quicker than lru_cache."""

        def __missing__(self, part: str) -> int:
            if len(self) >= 1 << 18:
                self.clear()
            count = self[part] = sum(map(of_word, tokenizer.pat.findall(part)))
            return count

    known = Known()

    def count(text: str) -> int:
        plain = text.isascii() and "&" not in text
        return 2 + sum(map(known.__getitem__, (text.lower() if plain else tokenizer.clean_fn(text)).split()))

    return count
