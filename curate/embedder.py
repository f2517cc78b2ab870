"""The CLIP model at work: pictures and captions in, unit embeddings and similarities out.

Shape legend: B images, C channels, H height, W width, D embedding width.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from curate.bad_input import BadInput
from curate.clip import Preprocessing, common_preprocessing, describe, load_clip, preprocessing, tokenizer
from curate.config import EmbedConfig
from curate.picture import Picture

HASH_MIN_SIDE_PX = 256
"""The shorter side that a reduced decode keeps for the hashes at least."""


class Embedder:
    """A loaded CLIP model with its preprocessing and tokenizer."""

    def __init__(self, config: EmbedConfig) -> None:
        self._device = device_of(config)
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        model = load_clip(config.clip)
        self._exact = preprocessing(model)
        self._fast = common_preprocessing(model) if config.decode == "fast" else None
        self._tokenize = tokenizer(config.clip)
        self._model = model.to(self._device, self._dtype)
        self.dim = int(model.text_projection.shape[-1])
        self.revision = describe(config.clip)

    @property
    def min_side_px(self) -> int | None:
        """The shorter side that a reduced decode must keep; None where only an exact decode will do."""
        return None if self._fast is None else max(HASH_MIN_SIDE_PX, 2 * self._fast.side_px)

    def preprocess(self, picture: Picture) -> torch.Tensor:
        """Return what the model is to see of a picture, CHW: uint8 pixels, or open_clip's own float32 tensor."""
        if self._fast is None:
            return self._exact(Image.fromarray(middle(picture.rgb_HWC)))
        return middle_square(picture, self._fast.side_px)

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
        on_device_BCHW = tensor_BCHW.to(self._device)
        if self._fast is not None:
            on_device_BCHW = normalised(on_device_BCHW, self._fast)
        return _unit(self._model.encode_image(on_device_BCHW.to(self._dtype)))

    @torch.inference_mode()
    def _texts(self, texts: list[str]) -> np.ndarray:
        return _unit(self._model.encode_text(self._tokenize(texts).to(self._device)))


def device_of(config: EmbedConfig) -> torch.device:
    """Return the device to work on; raises ValueError where a GPU was promised and torch finds none."""
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if config.device == "gpu" or given not in ("", "-1"):
        raise BadInput(
            f"embed.device = {config.device!r}: this process was given the GPUs {given or 'none'!r} and torch finds "
            "none: mend the driver or the torch build, or set device: cpu"
        )
    return torch.device("cpu")


def middle_square(picture: Picture, side_px: int) -> torch.Tensor:
    """Return the middle square of the picture with its shorter side resized to `side_px`, uint8 CHW.

    torch's antialiased bicubic resize has Pillow's weights. The scale is that of the picture's extent, not of
    the array, which a reduced decode rounds up: half a pixel there moves the far edge by a fifth of one here.
    """
    rgb_HWC = middle(picture.rgb_HWC)
    extent_HW = [
        float(of_array) if of_array < whole else of_picture
        for of_array, whole, of_picture in zip(
            rgb_HWC.shape[:2], picture.rgb_HWC.shape[:2], picture.extent_HW or rgb_HWC.shape[:2], strict=True
        )
    ]
    shorter = min(extent_HW)
    size_HW = [side_px if extent == shorter else int(side_px * extent / shorter) for extent in extent_HW]
    resized_CHW = torch.nn.functional.interpolate(
        torch.from_numpy(np.require(rgb_HWC, requirements=["C", "W"])).permute(2, 0, 1)[None],
        # a millionth of a pixel on top: the size is the floor of scale times side
        scale_factor=[(size + 1e-6) / extent for size, extent in zip(size_HW, extent_HW, strict=True)],
        mode="bicubic",
        antialias=True,
        recompute_scale_factor=False,
    )[0]
    top, left = (round((side - side_px) / 2) for side in resized_CHW.shape[1:])
    return resized_CHW[:, top : top + side_px, left : left + side_px].contiguous()


def normalised(pixels_BCHW: torch.Tensor, wanted: Preprocessing) -> torch.Tensor:
    """Return uint8 pixels as the float32 tensor that the model was trained on."""
    mean_C11, std_C11 = (
        torch.tensor(values, device=pixels_BCHW.device).view(-1, 1, 1) for values in (wanted.mean, wanted.std)
    )
    return pixels_BCHW.float().div_(255).sub_(mean_C11).div_(std_C11)


def middle(rgb_HWC: np.ndarray, max_aspect: int = 8) -> np.ndarray:
    """Return the middle of a long strip: the transform would enlarge all of it to keep its central square."""
    height, width = rgb_HWC.shape[:2]
    longest = max_aspect * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return rgb_HWC[top : top + longest, left : left + longest]


def _unit(embeddings_BD: torch.Tensor) -> np.ndarray:
    """Return the embeddings L2-normalised in float32."""
    return torch.nn.functional.normalize(embeddings_BD.float(), dim=-1).cpu().numpy()
