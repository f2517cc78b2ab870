"""What FID, KID, CMMD and the CLIP score look at: features of uint8 pictures by published networks.

Shape legend: B pictures, H and W height and width in px, D feature width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from curate import clip
from curate.weights import checked_path_of
from train.config_evaluation import EvaluateConfig

INCEPTION_LAYER = "2048"
INCEPTION_RESIZER = "bilinear to 299 x 299 as in TensorFlow 1, by torch-fidelity"


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of some pictures, in their order, fp32 on the CPU."""

    inception_ND: np.ndarray
    """The pooling layer of FID's Inception, D = 2048; D = 0 where it is left out."""
    clip_ND: np.ndarray
    """CLIP's image embeddings, of length 1."""
    clip_score_N: np.ndarray
    """100 max(0, cosine) of picture and caption."""


class Extractor:
    """The networks, on one device."""

    def __init__(self, config: EvaluateConfig, device: torch.device) -> None:
        self._device = device
        self._inception = None if config.inception is None else _inception(config.inception).to(device)
        self._clip = clip.load_clip(config.clip, device)
        self._tokenize = clip.tokenizer(config.clip)
        self._preprocess = clip.preprocessing(self._clip)
        self.clip_resizer = clip.resizer(self._clip)

    @torch.no_grad()
    def __call__(self, pixels_BHW3: np.ndarray, captions: Sequence[str]) -> Features:
        """Return the features of uint8 pictures of one size and how well they fit their captions."""
        images = [self._preprocess(Image.fromarray(picture)) for picture in pixels_BHW3]
        clip_BD = self._clip.encode_image(torch.stack(images).to(self._device), normalize=True)
        text_BD = self._clip.encode_text(self._tokenize(list(captions)).to(self._device), normalize=True)
        cosines_B = (clip_BD * text_BD).sum(dim=1)
        return Features(
            inception_ND=self._pooled(pixels_BHW3),
            clip_ND=clip_BD.float().cpu().numpy(),
            clip_score_N=(100.0 * cosines_B.clamp(min=0.0)).float().cpu().numpy(),
        )

    def _pooled(self, pixels_BHW3: np.ndarray) -> np.ndarray:
        if self._inception is None:
            return np.empty((len(pixels_BHW3), 0), np.float32)
        pixels_B3HW = torch.from_numpy(np.ascontiguousarray(pixels_BHW3.transpose(0, 3, 1, 2)))
        return self._inception(pixels_B3HW.to(self._device))[0].float().cpu().numpy()


def joined(parts: Sequence[Features]) -> Features:
    """Return the features of all parts, one behind the other."""
    return Features(
        inception_ND=np.concatenate([part.inception_ND for part in parts]),
        clip_ND=np.concatenate([part.clip_ND for part in parts]),
        clip_score_N=np.concatenate([part.clip_score_N for part in parts]),
    )


def _inception(name: str) -> Any:
    """Return FID's own network; torch-fidelity, which unpickles files freely, is given one with the tensors alone."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        tensors = f"{folder}/inception.pth"
        torch.save(torch.load(checked_path_of(name), map_location="cpu", weights_only=True), tensors)
        return FeatureExtractorInceptionV3(name, [INCEPTION_LAYER], feature_extractor_weights_path=tensors)
