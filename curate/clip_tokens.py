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

    tokenizer = SimpleTokenizer()

    @lru_cache(maxsize=1 << 18)
    def of_part(part: str) -> int:
        words = tokenizer.pat.findall(part)
        return sum(len(tokenizer.bpe("".join(map(tokenizer.byte_encoder.get, w.encode()))).split(" ")) for w in words)

    def count(text: str) -> int:
        plain = text.isascii() and "&" not in text
        return 2 + sum(map(of_part, (text.lower() if plain else tokenizer.clean_fn(text)).split()))

    return count
