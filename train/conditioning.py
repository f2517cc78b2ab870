"""What the U-Net is told in words: text from frozen open_clip towers.

Shape legend: B batch, L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from curate.bad_input import BadInput
from curate.clip import load_clip, tokenizer
from train.config import TextTower


class TextEncoder:
    """The frozen text towers of one network; the vision halves are not kept."""

    def __init__(self, towers: Sequence[TextTower], device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.specs = tuple(towers)
        self.towers = [_text_half(tower).to(device=device, dtype=dtype) for tower in towers]
        self._tokenizers = [tokenizer(tower) for tower in towers]

    def __call__(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `encode` makes of the captions' tokens."""
        return self.encode([tokens_BL.to(self.device) for tokens_BL in self.tokenize(captions)])

    def tokenize(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """Return each tower's tokens, shape (B, L), on the CPU."""
        return [
            pad(tokens_of(list(captions)), spec.padding)
            for spec, tokens_of in zip(self.specs, self._tokenizers, strict=True)
        ]

    @torch.no_grad()
    def encode(self, tokens: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the penultimate layers side by side (B, L, sum of D) and the last tower's pooled embedding (B, D)."""
        encoded = [encode_tokens(tower, tokens_BL) for tower, tokens_BL in zip(self.towers, tokens, strict=True)]
        return torch.cat([sequence_BLD for sequence_BLD, _ in encoded], dim=-1), encoded[-1][1]


def encode_tokens(tower: Any, tokens_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the penultimate layer without final norm, and `ln_final(last)[end of text] @ text_projection`."""
    dtype = tower.token_embedding.weight.dtype
    embedded_BLD = tower.token_embedding(tokens_BL) + tower.positional_embedding[: tokens_BL.shape[1]]
    mask_LL = tower.attn_mask.to(dtype)
    last_BLD, layers = tower.transformer.forward_intermediates(embedded_BLD.to(dtype), attn_mask=mask_LL, indices=2)
    end_B = tokens_BL.argmax(dim=-1)  # the end-of-text token has the largest id, and argmax takes the first one
    end_BD = tower.ln_final(last_BLD)[torch.arange(len(tokens_BL), device=tokens_BL.device), end_B]
    return layers[0], end_BD @ tower.text_projection


def pad(tokens_BL: torch.Tensor, padding: str) -> torch.Tensor:
    """Return tokens whose tail after the end of text is filled as the tower's own tokenizer does."""
    if padding == "zero":
        return tokens_BL
    end_B1 = tokens_BL.argmax(dim=-1, keepdim=True)
    after_end_BL = torch.arange(tokens_BL.shape[1]) > end_B1
    return torch.where(after_end_BL, tokens_BL.gather(1, end_B1), tokens_BL)


def drop_text(
    text_BLD: torch.Tensor, pooled_BD: torch.Tensor, dropped_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero the text of the samples that lose it, as the pipelines' unconditional branch does."""
    return text_BLD.masked_fill(dropped_B[:, None, None], 0.0), pooled_BD.masked_fill(dropped_B[:, None], 0.0)


def _text_half(tower: TextTower) -> Any:
    """Load a CLIP and let go of its vision half."""
    model = load_clip(tower, "cpu")
    if not hasattr(model, "token_embedding"):
        raise BadInput(f"text_towers: {tower.architecture!r} has no plain CLIP text tower")
    model.visual = None
    return model
