"""The CLIP model at work: image tensors and captions in, unit embeddings and similarities out.

Shape legend: B images, C channels, H height, W width, D embedding width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from curate.clip import describe, load_clip, preprocessing, tokenizer
from curate.config import EmbedConfig


class Embedder:
    """A loaded CLIP model with its transform and tokenizer, on the GPU where there is one."""

    def __init__(self, config: EmbedConfig) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        model = load_clip(config.clip)
        self._transform = preprocessing(model)
        self._tokenize = tokenizer(config.clip)
        self._model = model.to(self._device, self._dtype)
        self.dim = int(model.text_projection.shape[-1])
        self.revision = describe(config.clip)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return open_clip's own inference tensor, float32 CHW."""
        return self._transform(middle(image))

    def complete(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows with `embedding` (float16) and `clip_similarity` where there is a `tensor`."""
        seen = [row for row in rows if "tensor" in row]
        if not seen:
            return rows
        images_BD = self._images(torch.stack([row.pop("tensor") for row in seen]))
        for row, embedding in zip(seen, images_BD, strict=True):
            row["embedding"] = embedding.astype(np.float16)
        captioned = [position for position, row in enumerate(seen) if row["text"]]
        if captioned:
            texts_BD = self._texts([seen[position]["text"] for position in captioned])
            for position, cosine in zip(captioned, (images_BD[captioned] * texts_BD).sum(axis=1), strict=True):
                seen[position]["clip_similarity"] = float(cosine)
        return rows

    @torch.inference_mode()
    def _images(self, tensor_BCHW: torch.Tensor) -> np.ndarray:
        return _unit(self._model.encode_image(tensor_BCHW.to(self._device, self._dtype)))

    @torch.inference_mode()
    def _texts(self, texts: list[str]) -> np.ndarray:
        return _unit(self._model.encode_text(self._tokenize(texts).to(self._device)))


def middle(image: Image.Image, max_aspect: int = 8) -> Image.Image:
    """Return the middle of a long strip: the transform would enlarge all of it to keep its central square."""
    longest = max_aspect * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = max(0, image.width - longest) // 2, max(0, image.height - longest) // 2
    return image.crop((left, top, left + min(image.width, longest), top + min(image.height, longest)))


def _unit(embeddings_BD: torch.Tensor) -> np.ndarray:
    """Return the embeddings L2-normalised in float32."""
    return torch.nn.functional.normalize(embeddings_BD.float(), dim=-1).cpu().numpy()
