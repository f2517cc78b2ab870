"""Score heads: small networks on L2-normalised image embeddings, read from their published files.

Shape legend: B samples, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.config import HeadSpec
from curate.weights import path_of

Head = Callable[[np.ndarray], np.ndarray]
"""float32 embeddings_BD -> float32 scores (B,)."""


class ScoreOutOfRange(ValueError):
    """A score left its range: an embedding was not normalised, or the head is not for this model."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One affine layer: x @ weight + bias, weight of shape (in, out)."""

    weight: np.ndarray
    bias: np.ndarray


def load_head(spec: HeadSpec, embedding_dim: int) -> Head:
    """Return the head as a function; raises MissingWeights, or ValueError for a file that does not fit."""
    if spec.weights is None:
        return _untrained(spec, embedding_dim)
    path = path_of(spec.weights)
    layers = read_layers(path, embedding_dim)
    if spec.hidden == "none":
        layers = [fold(layers)]

    def head(embeddings_BD: np.ndarray) -> np.ndarray:
        values = embeddings_BD
        for layer in layers[:-1]:
            values = np.maximum(values @ layer.weight + layer.bias, 0)
        values = (values @ layers[-1].weight + layers[-1].bias)[:, 0]
        return 1 / (1 + np.exp(-values)) if spec.output == "sigmoid" else values

    return head


def scores(head: Head, spec: HeadSpec, embeddings_BD: np.ndarray) -> np.ndarray:
    """Return the scores; raises ScoreOutOfRange where one is more than half the range's width outside it."""
    values = head(embeddings_BD.astype(np.float32))
    slack = (spec.high - spec.low) / 2
    if values.size and not (values.min() >= spec.low - slack and values.max() <= spec.high + slack):
        raise ScoreOutOfRange(
            f"score {spec.column}: {values.min():.3g}..{values.max():.3g} is far outside {spec.low:g}..{spec.high:g}: "
            "are the embeddings L2-normalised, and from the head's own model?"
        )
    return values


def read_layers(path: Path, embedding_dim: int) -> list[Layer]:
    """Return the file's affine layers in order, checked to fit each other and the embedding.

    A leading normalisation (x - mean) / sqrt(variance) is folded into the first layer.
    """
    tensors = _tensors(path)
    mean, variance = tensors.pop("norm.mean", None), tensors.pop("norm.variance", None)
    names = sorted((name.removesuffix("weight") for name in tensors if name.endswith("weight")), key=_order)
    layers = [Layer(weight=tensors[f"{name}weight"].T, bias=tensors[f"{name}bias"]) for name in names]
    if mean is not None and variance is not None:
        scale = 1 / np.sqrt(variance)
        first = Layer(weight=layers[0].weight * scale[:, None], bias=layers[0].bias - (mean * scale) @ layers[0].weight)
        layers[0] = first
    width = embedding_dim
    for name, layer in zip(names, layers, strict=True):
        if layer.weight.shape[0] != width:
            raise ValueError(f"{path.name}: layer {name!r} takes {layer.weight.shape[0]} values and gets {width}")
        width = layer.weight.shape[1]
    if width != 1:
        raise ValueError(f"{path.name}: gives {width} values, a score is one")
    return [Layer(weight=x.weight.astype(np.float32), bias=x.bias.astype(np.float32)) for x in layers]


def fold(layers: list[Layer]) -> Layer:
    """Return one affine layer equal to a stack without activations."""
    weight, bias = layers[0].weight.astype(np.float64), layers[0].bias.astype(np.float64)
    for layer in layers[1:]:
        weight, bias = weight @ layer.weight, bias @ layer.weight + layer.bias
    return Layer(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the file's tensors as float64, without unpickling anything but tensors."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            row, offset = archive["weights"].astype(np.float64), archive["biases"].astype(np.float64)
        return {"weight": row.reshape(1, -1), "bias": offset.reshape(1)}
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in "".join(c if c.isdigit() else " " for c in name).split())


def _untrained(spec: HeadSpec, embedding_dim: int) -> Head:
    """Return a seeded random projection squashed into the range: it knows nothing of pictures."""
    seed = int.from_bytes(spec.column.encode(), "little") % 2**32
    weight = np.random.default_rng(seed).standard_normal(embedding_dim).astype(np.float32)

    def head(embeddings_BD: np.ndarray) -> np.ndarray:
        return spec.low + (spec.high - spec.low) / (1 + np.exp(-(embeddings_BD @ weight)))

    return head
