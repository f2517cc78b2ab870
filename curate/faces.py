"""Faces: found by OpenCV's cascades or its small network, blurred as img2dataset blurs bounding boxes.

Shape legend: H height, W width, C channels, N boxes. A box is (x_min, y_min, x_max, y_max) as shares of
width and height, 0..1.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from curate.weights import checked_path_of

CASCADES = ("haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml")
LONGER_SIDE_PX = 1024
"""Pictures are looked at in this size at most."""
NEIGHBOURS = 4
"""Overlapping finds that a face needs of a cascade."""
YUNET = "face_yunet"
"""Name of the network in infra/weights.yaml."""
MIN_SCORE = 0.6
"""Score that a face needs of the network, 0..1: the default of OpenCV Zoo's wrapper."""


def find(rgb_HWC: np.ndarray, min_face_share: float, detector: Literal["cascades", "yunet"]) -> np.ndarray:
    """Return the boxes of faces, float64 (N, 4), sorted; raises MissingWeights where the detector's are absent.

    `min_face_share` is the smallest face as a share of the shorter side.
    """
    factor = min(1.0, LONGER_SIDE_PX / max(rgb_HWC.shape[:2]))
    seen_HWC = np.ascontiguousarray(rgb_HWC)
    if factor < 1:
        seen_HWC = cv2.resize(seen_HWC, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    smallest_px = round(min_face_share * min(seen_HWC.shape[:2]))
    found = {"cascades": _by_cascades, "yunet": _by_yunet}[detector](seen_HWC, smallest_px)
    return np.array(sorted(found), float).reshape(-1, 4)


def blur(rgb_HWC: np.ndarray, boxes_N4: np.ndarray) -> np.ndarray:
    """Return the picture with the boxes blurred and their edges faded, as `img2dataset.blurrer` does.

    Each box grows by a tenth of its longer side d on all sides; with the largest d the picture and the boxes'
    mask are blurred by a Gaussian of 2 ceil(d / 10) + 1 pixels, and mixed by the mask (Yang et al. 2022, A Study
    of Face Obfuscation in ImageNet). What the mask does not reach is not touched.
    """
    height_px, width_px = rgb_HWC.shape[:2]
    sides = np.array([width_px, height_px, width_px, height_px])
    corners = (np.clip(boxes_N4, 0, 1) * sides.astype(boxes_N4.dtype)).astype(int)
    longer = np.maximum(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    if not len(longer) or longer.max() <= 0:
        return rgb_HWC
    kernel_px = max(3, 2 * math.ceil(0.1 * int(longer.max())) + 1)
    grown = (corners + np.array([-0.1, -0.1, 0.1, 0.1]) * longer[:, None]).astype(int)
    grown = np.clip(grown, 0, sides - 1)
    left, top = (int(value) for value in np.maximum(grown[:, :2].min(axis=0) - kernel_px, 0))
    right, bottom = (int(v) for v in np.minimum(grown[:, 2:].max(axis=0) + kernel_px, [width_px, height_px]))
    mask_HW1 = np.zeros((bottom - top, right - left), np.float32)
    for x0, y0, x1, y1 in grown:
        mask_HW1[y0 - top : y1 - top, x0 - left : x1 - left] = 1
    done = rgb_HWC.copy()
    done[top:bottom, left:right] = _mixed(rgb_HWC[top:bottom, left:right], mask_HW1, kernel_px)
    return done


def _mixed(rgb_HWC: np.ndarray, mask_HW: np.ndarray, kernel_px: int) -> np.ndarray:
    sharp_HWC = rgb_HWC.astype(np.float32) / 255
    blurred_HWC = cv2.GaussianBlur(sharp_HWC, (kernel_px, kernel_px), sigmaX=0)
    weight_HW1 = cv2.GaussianBlur(mask_HW, (kernel_px, kernel_px), sigmaX=0)[..., None]
    return ((sharp_HWC * (1 - weight_HW1) + blurred_HWC * weight_HW1) * 255).astype(np.uint8)


def _by_cascades(rgb_HWC: np.ndarray, smallest_px: int) -> list[tuple[float, ...]]:
    """Frontal faces, and profiles from both sides."""
    grey_HW = cv2.equalizeHist(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY))
    smallest_px = max(20, smallest_px)
    frontal, profile = (_cascade(name) for name in CASCADES)
    mirrored_HW = np.ascontiguousarray(grey_HW[:, ::-1])
    found = [*_boxes(frontal, grey_HW, smallest_px), *_boxes(profile, grey_HW, smallest_px)]
    return found + [(1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in _boxes(profile, mirrored_HW, smallest_px)]


def _by_yunet(rgb_HWC: np.ndarray, smallest_px: int) -> list[tuple[float, ...]]:
    """YuNet (Wu et al. 2023) as OpenCV runs it: rows of x, y, width, height, five landmarks and a score."""
    height_px, width_px = rgb_HWC.shape[:2]
    network = _yunet()
    network.setInputSize((width_px, height_px))
    rows = network.detect(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR))[1]
    sides = np.array([width_px, height_px, width_px, height_px], float)
    boxes = [] if rows is None else [(x, y, x + w, y + h) for x, y, w, h in rows[:, :4] if max(w, h) >= smallest_px]
    return [tuple(np.clip(np.array(box) / sides, 0, 1)) for box in boxes]


def _boxes(cascade: cv2.CascadeClassifier, grey_HW: np.ndarray, smallest_px: int) -> list[tuple[float, ...]]:
    height_px, width_px = grey_HW.shape
    found = cascade.detectMultiScale(grey_HW, 1.1, NEIGHBOURS, minSize=(smallest_px, smallest_px))
    return [(x / width_px, y / height_px, (x + w) / width_px, (y + h) / height_px) for x, y, w, h in found]


@cache
def _yunet() -> Any:
    path = str(checked_path_of(YUNET))
    return cv2.FaceDetectorYN.create(path, "", (320, 320), score_threshold=MIN_SCORE)


@cache
def _cascade(name: str) -> cv2.CascadeClassifier:
    path = Path(cv2.data.haarcascades) / name  # type: ignore[attr-defined]
    found = cv2.CascadeClassifier(str(path))
    if found.empty():
        raise FileNotFoundError(f"{path}: OpenCV came without this cascade: install opencv-python-headless again")
    return found
