"""A trained image encoder in TensorFlow.js layout (Keras layers, 8-bit weights), run by torch for a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """Return a function from pictures (BCHW, RGB, 0..1) to features (BD), the input of the first Dense layer."""
    said = json.loads((folder / "model.json").read_text())
    layers = said["modelTopology"]["model_config"]["config"]["layers"]
    weights = _weights(folder, said["weightsManifest"][0])

    @torch.inference_mode()
    def features(pictures_BCHW: Tensor) -> Tensor:
        known = {layers[0]["name"]: pictures_BCHW}
        for layer in layers[1:]:
            inputs = [known[node[0]] for node in layer["inbound_nodes"][0]]
            if layer["class_name"] == "Dense":
                return inputs[0]
            known[layer["name"]] = _apply(layer, inputs, weights)
        raise ValueError(f"{folder}: no Dense layer")

    return features


def _weights(folder: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    data = b"".join((folder / path).read_bytes() for path in manifest["paths"])
    found, at = {}, 0
    for one in manifest["weights"]:
        count, how = int(np.prod(one["shape"])), one["quantization"]
        levels = np.frombuffer(data, np.uint8, count, at).astype(np.float32)
        found[one["name"]] = torch.from_numpy((levels * how["scale"] + how["min"]).reshape(one["shape"]))
        at += count
    assert at == len(data), f"{folder}: {len(data) - at} bytes too many"
    return found


def _apply(layer: dict[str, Any], inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    kind, name, config, first = layer["class_name"], layer["name"], layer["config"], inputs[0]
    if kind == "Conv2D":
        return _convolved(first, weights[f"{name}/kernel"].permute(3, 2, 0, 1), config, groups=1)
    if kind == "DepthwiseConv2D":
        kernel = weights[f"{name}/depthwise_kernel"].permute(2, 3, 0, 1)
        return _convolved(first, kernel, config, groups=first.shape[1])
    if kind == "BatchNormalization":
        mean, variance, gamma, beta = (
            weights[f"{name}/{k}"] for k in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return functional.batch_norm(first, mean, variance, gamma, beta, eps=config["epsilon"])
    if kind == "ReLU":
        return first.clamp(0, config["max_value"])
    if kind == "ZeroPadding2D":
        (top, bottom), (left, right) = config["padding"]
        return functional.pad(first, (left, right, top, bottom))
    if kind == "Add":
        return inputs[0] + inputs[1]
    if kind == "AveragePooling2D":
        return functional.avg_pool2d(first, config["pool_size"], config["strides"])
    if kind == "Flatten":
        return first.permute(0, 2, 3, 1).flatten(1)
    raise ValueError(f"{name}: a layer of kind {kind} is not known")


def _convolved(pictures_BCHW: Tensor, kernel: Tensor, config: dict[str, Any], groups: int) -> Tensor:
    assert config["padding"] == "valid" or config["strides"] == [1, 1]
    padding = (kernel.shape[-1] // 2) * (config["padding"] == "same")
    return functional.conv2d(pictures_BCHW, kernel, stride=config["strides"], padding=padding, groups=groups)
