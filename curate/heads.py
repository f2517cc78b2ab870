"""Score heads: small networks on L2-normalised image embeddings, read from their published files.

What a head is, its layers, activations, range and direction, stands in infra/weights.yaml and is checked against
the tensors of its file: nothing is guessed from them.

Shape legend: B samples, D embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curate.bad_input import BadInput
from curate.config import HeadSpec
from curate.tf_checkpoint import read_saved_model
from curate.weights import checked_path_of, registered

NORM_TOLERANCE = 0.01
"""A unit embedding in float16 is off by less than a tenth of this."""
ROWS_AT_ONCE = 1024
"""Rows whose layers stay in the processor's cache."""


class ScoreOutOfRange(BadInput):
    """An embedding is not of unit length, or a score left its range."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the registry says of a head."""

    clip: str
    """Entry of the CLIP model whose image embeddings the head reads."""
    layers: tuple[int, ...]
    """Widths from the embedding to the output."""
    hidden: Literal["none", "relu"]
    """Activation between the layers."""
    output: Literal["none", "sigmoid", "softmax"]
    """Activation behind the last layer; softmax is the second of two prompts' probability."""
    normalisation: bool = False
    """The file holds a mean and a variance that the embedding is normalised with first."""
    logit_scale: float = 1.0
    """What the last layer's values are multiplied by before the activation."""
    meaning: str
    unit: str
    low: float
    """No unit embedding scores below this."""
    high: float
    """No unit embedding scores above this."""
    direction: str

    def __post_init__(self) -> None:
        width = 2 if self.output == "softmax" else 1
        _require(self.hidden in ("none", "relu"), "hidden", self.hidden, "must be none or relu")
        _require(
            self.output in ("none", "sigmoid", "softmax"), "output", self.output, "must be none, sigmoid or softmax"
        )
        _require(
            len(self.layers) > 1 and self.layers[-1] == width,
            "layers",
            list(self.layers),
            f"must lead from the embedding's width to {width}",
        )
        _require(self.low < self.high, "low", self.low, f"must be below high = {self.high}")
        _require(
            self.output == "none" or (self.low, self.high) == (0, 1),
            "low, high",
            (self.low, self.high),
            "a probability has the range 0, 1",
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One affine layer: x @ weight + bias, weight of shape (in, out)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head that is ready to score: affine layers with ReLU between them, and one value at the end."""

    column: str
    layers: tuple[Layer, ...]
    probability: bool
    """The value is a logit: a sigmoid brings it into low..high."""
    low: float
    high: float


def network_of(name: str, registry_file: Path | None = None) -> Network:
    """Return the network of a registered head; raises UnknownWeights, or ValueError naming what is wrong."""
    weight = registered(name, registry_file)
    try:
        if weight.head is None:
            raise BadInput("the entry has no `head`: it is no head")
        said = dict(weight.head)
        known = {field.name for field in dataclasses.fields(Network)}
        _require(set(said) <= known, "head", sorted(set(said) - known), f"the fields are {', '.join(sorted(known))}")
        return Network(**said | {"layers": tuple(said.get("layers", ()))})
    except (TypeError, ValueError) as error:
        raise BadInput(f"weights {name!r}: {error}") from error


def load_head(spec: HeadSpec, embedding_dim: int) -> Head:
    """Return the head; raises MissingWeights, WrongChecksum, or ValueError for a file that is not what is stated."""
    if spec.weights is None:
        return _untrained(spec, embedding_dim)
    return read_head(checked_path_of(spec.weights), network_of(spec.weights), spec.column, embedding_dim)


def read_head(path: Path, network: Network, column: str, embedding_dim: int) -> Head:
    """Return the head of a file, checked against its network; raises ValueError naming the file and the misfit."""
    if network.layers[0] != embedding_dim:
        raise BadInput(
            f"score.heads.{column}: the head takes embeddings of {network.layers[0]} values, of {network.clip}, "
            f"and gets {embedding_dim}: set embed.clip to that model, or take another head"
        )
    layers = read_layers(path, network)
    if network.hidden == "none":
        layers = [fold(layers)]
    last = layers[-1]
    if network.output == "softmax":  # of two logits: the sigmoid of their difference
        last = Layer(weight=last.weight[:, 1:] - last.weight[:, :1], bias=last.bias[1:] - last.bias[:1])
    layers[-1] = Layer(weight=last.weight * network.logit_scale, bias=last.bias * network.logit_scale)
    return Head(
        column=column,
        layers=tuple(Layer(weight=x.weight.astype(np.float32), bias=x.bias.astype(np.float32)) for x in layers),
        probability=network.output != "none",
        low=network.low,
        high=network.high,
    )


def read_layers(path: Path, network: Network) -> list[Layer]:
    """Return the file's affine layers in order, float64; raises ValueError where they are not the stated ones.

    A normalisation (x - mean) / sqrt(variance) is folded into the first layer.
    """
    tensors = dict(_tensors(path, network))
    mean, variance = tensors.pop("mean", None), tensors.pop("variance", None)
    layers = _in_order(path, tensors)
    found = [layer.weight.shape for layer in layers]
    stated = list(zip(network.layers, network.layers[1:], strict=False))
    if found != stated or any(layer.bias.shape != layer.weight.shape[1:] for layer in layers):
        raise BadInput(f"{path.name}: has layers {_shown(found)}, and {_shown(stated)} are stated")
    if (mean is not None and variance is not None) != network.normalisation:
        has = "holds no" if network.normalisation else "holds a"
        raise BadInput(
            f"{path.name}: {has} normalisation of its input, and normalisation: {network.normalisation} is stated"
        )
    if mean is None or variance is None:
        return layers
    if mean.shape != (network.layers[0],) or variance.shape != mean.shape or not (variance > 0).all():
        raise BadInput(f"{path.name}: its normalisation is not {network.layers[0]} means and positive variances")
    scale = 1 / np.sqrt(variance)
    first = layers[0]
    layers[0] = Layer(weight=first.weight * scale[:, None], bias=first.bias - (mean * scale) @ first.weight)
    return layers


def fold(layers: Sequence[Layer]) -> Layer:
    """Return one affine layer equal to a stack without activations."""
    weight, bias = layers[0].weight.astype(np.float64), layers[0].bias.astype(np.float64)
    for layer in layers[1:]:
        weight, bias = weight @ layer.weight, bias @ layer.weight + layer.bias
    return Layer(weight=weight, bias=bias)


class Scorer:
    """All heads at once: their first layers are one product."""

    def __init__(self, heads: Sequence[Head]) -> None:
        import torch

        self._torch, self._heads = torch, tuple(heads)
        if not heads:
            return
        self._first = _on_torch(torch, [head.layers[0] for head in heads])
        widths = [len(head.layers[0].bias) for head in heads]
        self._edges = [(sum(widths[:at]), sum(widths[: at + 1])) for at in range(len(widths))]
        self._rest = [[_on_torch(torch, [layer]) for layer in head.layers[1:]] for head in heads]

    def score(self, embeddings_BD: np.ndarray) -> dict[str, np.ndarray]:
        """Return float32 (B,) by column for unit embeddings, float16 or float32; raises ScoreOutOfRange."""
        found = {head.column: np.empty(len(embeddings_BD), np.float32) for head in self._heads}
        rows = self._torch.from_numpy(np.require(embeddings_BD, requirements=["C", "W"]))
        with self._torch.inference_mode():
            for at in range(0, len(rows) if found else 0, ROWS_AT_ONCE):
                values = self._values(rows[at : at + ROWS_AT_ONCE].float())
                for column, scored in values.items():
                    found[column][at : at + len(scored)] = scored.numpy()
        for head in self._heads:
            _check_range(head, found[head.column])
        return found

    def _values(self, embeddings_BD: Any) -> dict[str, Any]:
        torch = self._torch
        lengths = torch.linalg.vector_norm(embeddings_BD, dim=1)
        if not bool(((lengths - 1).abs() <= NORM_TOLERANCE).all()):
            worst = float(lengths[(lengths - 1).abs().argmax()]) if bool(lengths.isfinite().all()) else float("nan")
            raise ScoreOutOfRange(
                f"an embedding has the length {worst:.4g} and heads score unit embeddings only: it was not "
                "L2-normalised; make the features again with python pipelines/embed.py"
            )
        first = torch.addmm(self._first[1], embeddings_BD, self._first[0])
        found = {}
        for head, (start, end), rest in zip(self._heads, self._edges, self._rest, strict=True):
            values = first[:, start:end]
            for weight, bias in rest:
                values = torch.addmm(bias, values.relu(), weight)
            scored = values[:, 0]
            found[head.column] = (
                scored.sigmoid().mul_(head.high - head.low).add_(head.low) if head.probability else scored
            )
        return found


def _check_range(head: Head, values: np.ndarray) -> None:
    if values.size and not (values.min() >= head.low and values.max() <= head.high):
        raise ScoreOutOfRange(
            f"score {head.column}: {values.min():.4g}..{values.max():.4g} is outside {head.low:g}..{head.high:g}: "
            "the embeddings are not L2-normalised, or not of the head's own model"
        )


def _on_torch(torch: Any, layers: Sequence[Layer]) -> tuple[Any, Any]:
    """Return layers with the same input as one, (weight, bias)."""
    weight = np.concatenate([layer.weight for layer in layers], axis=1)
    bias = np.concatenate([layer.bias for layer in layers])
    return torch.from_numpy(np.ascontiguousarray(weight)), torch.from_numpy(bias)


def _tensors(path: Path, network: Network) -> Mapping[str, np.ndarray]:
    """Return float64 tensors as `mean`, `variance`, `<layer>.weight` (in, out) and `<layer>.bias`; nothing else.

    Of a pickle, tensors are all that is read.
    """
    return {name: tensor.astype(np.float64) for name, tensor in _READERS[path.suffix](path, network).items()}


def _read_npz(path: Path, network: Network) -> dict[str, np.ndarray]:
    """sigmoid(x @ weights + biases), as Stability AI's detectors are saved."""
    with np.load(path, allow_pickle=False) as archive:
        if set(archive.files) != {"weights", "biases"}:
            raise BadInput(f"{path.name}: holds {sorted(archive.files)}, and weights and biases are read")
        return {"0.weight": archive["weights"].reshape(-1, 1), "0.bias": archive["biases"].reshape(1)}


def _read_npy(path: Path, network: Network) -> dict[str, np.ndarray]:
    """Embeddings of prompts, one in each row: logits without bias."""
    prompts = np.load(path, allow_pickle=False)
    if prompts.ndim != 2:
        raise BadInput(f"{path.name}: has shape {prompts.shape}, and rows of prompts are read")
    return {"0.weight": prompts.T, "0.bias": np.zeros(len(prompts))}


def _read_pth(path: Path, network: Network) -> dict[str, np.ndarray]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return _as_saved_by_torch({name: tensor.numpy() for name, tensor in state.items()})


def _read_safetensors(path: Path, network: Network) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return _as_saved_by_torch(load_file(path))


def _as_saved_by_torch(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torch keeps weights as (out, in)."""
    found = {}
    for name, tensor in state.items():
        known = name.removeprefix("norm.")
        found[known] = tensor.T if known.endswith("weight") else tensor
    return found


def _read_keras(path: Path, network: Network) -> dict[str, np.ndarray]:
    """The variables of a zipped SavedModel, without its metrics and its normalisation's count."""
    found = {}
    for name, tensor in read_saved_model(path).items():
        layer, _, kind = name.rpartition("/")
        if not layer.startswith("layer_with_weights-") or kind == "count":
            continue
        found[kind if kind in ("mean", "variance") else f"{layer}.{kind.replace('kernel', 'weight')}"] = tensor
    return found


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pth": _read_pth,
    ".safetensors": _read_safetensors,
    ".zip": _read_keras,
}


def _in_order(path: Path, tensors: Mapping[str, np.ndarray]) -> list[Layer]:
    """Return the layers by the numbers in their names; raises ValueError where a tensor belongs to none."""
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_numbers)
    prefixes = [f"{name}." if name else "" for name in names]
    missing = [f"{p}{kind}" for p in prefixes for kind in ("weight", "bias") if f"{p}{kind}" not in tensors]
    surplus = sorted(set(tensors) - {f"{p}{kind}" for p in prefixes for kind in ("weight", "bias")})
    if missing or surplus:
        raise BadInput(f"{path.name}: tensors {missing} are missing and {surplus} are unknown: no affine layers")
    return [Layer(weight=tensors[f"{p}weight"], bias=tensors[f"{p}bias"]) for p in prefixes]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in "".join(c if c.isdigit() else " " for c in name).split())


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "none"


def _require(condition: bool, field: str, value: object, fix: str) -> None:
    if not condition:
        raise BadInput(f"head.{field} = {value!r}: {fix}")


def _untrained(spec: HeadSpec, embedding_dim: int) -> Head:
    """Return a seeded random projection squashed into the range: it knows nothing of pictures."""
    seed = int.from_bytes(spec.column.encode(), "little") % 2**32
    weight = np.random.default_rng(seed).standard_normal((embedding_dim, 1)).astype(np.float32)
    layer = Layer(weight=weight, bias=np.zeros(1, np.float32))
    return Head(column=spec.column, layers=(layer,), probability=True, low=spec.low, high=spec.high)
