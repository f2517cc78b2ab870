"""Recaptioning: what writes a new caption, and which samples get one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from curate.bad_input import BadInput
from curate.config import RecaptionConfig

ORIGINAL, GENERATED = "original", "generated"
"""Where a caption comes from."""


class Captioner(Protocol):
    """Anything that captions pictures."""

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a caption for each RGB picture."""


def is_chosen(uid: str, share: float) -> bool:
    """Return whether a sample is among the share that gets the new caption; it depends on the uid alone."""
    digest = hashlib.sha256(f"recaption {uid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def open_captioner(config: RecaptionConfig) -> Captioner:
    """Return the captioner of the settings; raises ValueError where the model cannot be loaded."""
    return TransformersCaptioner(config)


class TransformersCaptioner:
    """A vision-language model in transformers' format, in a local folder."""

    def __init__(self, config: RecaptionConfig) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        assert config.model is not None
        check_model(config)
        self._config, self._torch = config, torch
        gpu = config.device != "cpu" and torch.cuda.is_available()
        if config.device == "gpu" and not gpu:
            raise BadInput("captions.recaption.device = 'gpu': torch finds none: set device: cpu")
        self._device = torch.device("cuda" if gpu else "cpu")
        self._processor = AutoProcessor.from_pretrained(config.model, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            config.model, local_files_only=True, use_safetensors=True, dtype=torch.bfloat16 if gpu else torch.float32
        )
        self._model = model.eval().to(self._device)

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a caption for each RGB picture; greedy, so the same each time."""
        inputs = self._inputs([image.convert("RGB") for image in images]).to(self._device, self._model.dtype)
        with self._torch.inference_mode():
            tokens_BL = self._model.generate(
                **inputs, max_new_tokens=self._config.max_new_tokens, do_sample=False, num_beams=1
            )
        asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        decoded = self._processor.batch_decode(tokens_BL[:, asked:], skip_special_tokens=True)
        return [" ".join(text.split()) for text in decoded]

    def _inputs(self, images: list[Image.Image]) -> Any:
        if self._config.prompt is None:
            return self._processor(images=images, return_tensors="pt")
        prompt = self._config.prompt
        if getattr(self._processor, "chat_template", None):
            said = [{"type": "image"}, {"type": "text", "text": prompt}]
            prompt = self._processor.apply_chat_template(
                [{"role": "user", "content": said}], add_generation_prompt=True
            )
        return self._processor(images=images, text=[prompt] * len(images), return_tensors="pt", padding=True)


def check_model(config: RecaptionConfig) -> str:
    """Return what tells the model in the folder from another; raises ValueError where there is none."""
    folder = Path(config.model or "")
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise BadInput(
            f"captions.recaption.model = {config.model!r}: needs a local folder with config.json and *.safetensors"
        )
    said = json.loads((folder / "config.json").read_text())
    sizes = [(path.name, path.stat().st_size) for path in weights]
    return hashlib.sha256(json.dumps([said, sizes], sort_keys=True).encode()).hexdigest()
