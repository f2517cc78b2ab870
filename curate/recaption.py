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
OF_MODEL = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Endings of settings, weights, vocabularies and chat templates."""


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
        self._processor.tokenizer.padding_side = "left"  # what follows a prompt must stand right behind it
        self._is_chat = getattr(self._processor, "chat_template", None) is not None
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
        if "input_ids" in inputs:
            tokens_BL = tokens_BL[:, _echoed(tokens_BL, inputs["input_ids"]) :]
        decoded = self._processor.batch_decode(tokens_BL, skip_special_tokens=True)
        return [" ".join(text.split()) for text in decoded]

    def _inputs(self, images: list[Image.Image]) -> Any:
        prompt = self._config.prompt
        if prompt is None:
            return self._processor(images=images, return_tensors="pt")
        if not self._is_chat:
            return self._processor(images=images, text=[prompt] * len(images), return_tensors="pt", padding=True)
        asked = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image in images
        ]
        return self._processor.apply_chat_template(
            asked,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )


def _echoed(tokens_BL: Any, asked_BL: Any) -> int:
    """Return how many tokens of the prompt an answer begins with: all, none, or, of BLIP's, all but the end mark."""
    both = min(tokens_BL.shape[1], asked_BL.shape[1])
    same_L = (tokens_BL[:, :both] == asked_BL[:, :both]).all(dim=0)
    return int(same_L.int().cumprod(0).sum())


def check_model(config: RecaptionConfig) -> list[Path]:
    """Return the files of the model's folder that say what it does.

    Raises ValueError where there is no model, or one that takes instructions and no prompt.
    """
    folder = Path(config.model or "")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise BadInput(
            f"captions.recaption.model = {config.model!r}: needs a local folder with config.json and *.safetensors"
        )
    if config.prompt is None and _takes_instructions(folder):
        raise BadInput("captions.recaption.prompt = null: the model takes instructions: say what it is asked")
    return sorted(path for path in folder.iterdir() if path.suffix in OF_MODEL)


def _takes_instructions(folder: Path) -> bool:
    """Return whether there is a chat template where transformers looks for its processor's."""
    if (folder / "chat_template.jinja").is_file() or any(folder.glob("additional_chat_templates/*.jinja")):
        return True
    for file in (folder / "chat_template.json", folder / "processor_config.json"):
        try:
            if file.is_file() and json.loads(file.read_bytes()).get("chat_template") is not None:
                return True
        except (ValueError, AttributeError) as error:  # AttributeError: something else than an object
            raise BadInput(f"captions.recaption.model = '{folder}': {file.name} is damaged: fetch it again") from error
    return False


def fingerprint(config: RecaptionConfig) -> str:
    """Return the sha256 over names and contents of the model's files; raises ValueError where there is no model."""
    said = hashlib.sha256()
    for path in check_model(config):
        with path.open("rb") as file:
            said.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return said.hexdigest()
