"""FID, KID, CMMD and CLIP score of what the network draws, computed by all ranks together."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from curate.weights import default_weights_dir, known_sha256, registered
from train.config import TrainConfig
from train.config_evaluation import EvaluateConfig
from train.data.samples import ImageSource, read_pick
from train.data.shards import shard_reader
from train.engine import World
from train.evaluate import distances
from train.evaluate.cases import Case, batches, cases_of_samples
from train.evaluate.denoise import Painter
from train.evaluate.features import INCEPTION_RESIZER, Extractor, Features, joined
from train.index.reader import Index
from train.index.ready import index_of_split, validation_index
from train.model import predict
from train.objective import Frozen
from train.precision import DTYPES
from train.validation import unchanged

FEATURES = "features"
"""Folder of a run with the features of real pictures, one file for each set of pictures and networks."""
EVALUATIONS = "evaluations.jsonl"
"""File of a run with one line for each evaluation."""
SAY_EVERY_S = 30.0


class Scorer:
    """Measures a painter's pictures of an index's captions against the index's own pictures."""

    def __init__(self, config: TrainConfig, index: Index, world: World, say: Callable[[str], None]) -> None:
        self._config = config
        self._index = index
        self._world = world
        self._say = say
        self._cases = cases_of_samples(index, config.evaluate.samples)
        self._mine = self._cases[world.rank :: world.size]

    def scores(self, painter: Painter) -> dict[str, Any]:
        """Return the record of one evaluation, on every rank; the networks that measure are loaded for its time."""
        how = self._config.evaluate
        extractor = Extractor(how, self._world.device)
        real = self._real(extractor)
        pictures = painter.pictures(self._mine, how.draw)
        drawn = self._of_all_ranks("drawn", self._extracted(extractor, pictures))
        told: list[dict[str, Any]] = [measured(real, drawn, how, extractor.clip_resizer) if real and drawn else {}]
        dist.broadcast_object_list(told, src=0)
        begin = "noise" if self._config.model == "base" else "real pictures with noise"
        return told[0] | {"begins_with": begin, "draw": asdict(how.draw)}

    def _real(self, extractor: Extractor) -> Features | None:
        """Return rank 0 the features of the real pictures, from the run's folder where they were computed before."""
        path = self._real_path()
        known = [path.exists()]
        dist.broadcast_object_list(known, src=0)  # one file system may be slower than another to show it
        if known[0]:
            return _load(path) if self._world.rank == 0 else None
        real = self._of_all_ranks("real", self._extracted(extractor, self._real_pictures()))
        if real is not None:
            _save(real, path)
        return real

    def _real_path(self) -> Path:
        """Return a name that changes with the pictures and with the networks that look at them."""
        how = self._config.evaluate
        names = [name for name in (how.inception, how.clip.weights) if name is not None]
        weights = [known_sha256(registered(name), default_weights_dir()) for name in names]
        of = [self._index.digest, len(self._cases), how.inception, asdict(how.clip), weights]
        name = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
        return Path(self._config.out_folder) / FEATURES / f"real-{name}.npz"

    def _real_pictures(self) -> Iterator[tuple[list[Case], np.ndarray]]:
        config = unchanged(self._config)
        reader = shard_reader(config.data_root, config.loader, self._index.digest)
        source = ImageSource(reader=reader, augment=config.augment, seed=config.seed)
        for some in batches(self._mine, config.evaluate.draw.batch_size):
            rows = [case.row for case in some if case.row is not None]
            parts = [read_pick(config, self._index, source, row, 0)[0] for row in rows]
            yield some, np.stack([part.array_CHW.transpose(1, 2, 0) for part in parts])

    def _extracted(
        self, extractor: Extractor, pictures: Iterator[tuple[list[Case], np.ndarray]]
    ) -> Iterator[tuple[list[Case], Features]]:
        for some, pixels_BHW3 in pictures:
            yield some, extractor(pixels_BHW3, [case.caption for case in some])

    def _of_all_ranks(self, what: str, parts: Iterator[tuple[list[Case], Features]]) -> Features | None:
        """Return rank 0 the features of all cases in their order; it says how far it is."""
        numbers: list[int] = []
        features: list[Features] = []
        said = time.monotonic()
        for some, found in parts:
            numbers.extend(case.number for case in some)
            features.append(found)
            if time.monotonic() - said > SAY_EVERY_S:
                self._say(f"evaluation: {len(numbers)} of {len(self._mine)} {what} pictures of this rank")
                said = time.monotonic()
        gathered: list[Any] | None = [None] * self._world.size if self._world.rank == 0 else None
        dist.gather_object((numbers, joined(features) if features else None), gathered, dst=0)
        return _in_order([part for part in gathered if part[1] is not None]) if gathered else None


def evaluate_folder(config: TrainConfig, weights: Path, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the record of a diffusers U-Net folder, on every rank."""
    frozen = Frozen(config, world.device)
    factor = frozen.latent_factor
    train = index_of_split(config, "train", factor=factor, rank=world.rank, say=say)
    index = validation_index(config, train, factor=factor, rank=world.rank, say=say)
    dtype = DTYPES[config.precision]
    unet = UNet2DConditionModel.from_pretrained(weights).to(device=world.device, dtype=dtype).eval()
    painter = Painter(config, frozen, index, functools.partial(predict, unet, dtype))
    return Scorer(config, index, world, say).scores(painter) | {"weights": str(weights)}


def measured(real: Features, drawn: Features, how: EvaluateConfig, clip_resizer: str) -> dict[str, Any]:
    """Return all distances, and what they depend on."""
    told: dict[str, Any] = {
        "samples": len(drawn.clip_score_N),
        "cmmd": distances.cmmd(real.clip_ND, drawn.clip_ND),
        "clip_score": float(drawn.clip_score_N.mean()),
        "clip_score_real": float(real.clip_score_N.mean()),
        "clip": how.clip.architecture,
        "clip_weights": how.clip.weights or f"UNTRAINED random weights, seed {how.clip.seed}",
        "clip_resizer": clip_resizer,
    }
    if how.inception is None:
        return told
    mean, deviation = distances.kid(
        real.inception_ND,
        drawn.inception_ND,
        subsets=how.kid_subsets,
        subset_size=how.kid_subset_size,
        seed=how.draw.seed,
    )
    return told | {
        "fid": distances.fid(real.inception_ND, drawn.inception_ND),
        "kid": mean,
        "kid_deviation": deviation,
        "inception": how.inception,
        "inception_resizer": INCEPTION_RESIZER,
    }


def append(record: dict[str, Any], folder: Path, step: int | None) -> None:
    """Add a line to evaluations.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / EVALUATIONS).open("a") as lines:
        lines.write(json.dumps({"step": step} | record) + "\n")


def _in_order(parts: Sequence[tuple[list[int], Features]]) -> Features:
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]))
    every = joined([features for _, features in parts])
    return Features(**{name: array[order] for name, array in vars(every).items()})


def _save(features: Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.partial.npz")
    np.savez(draft, **vars(features))
    os.replace(draft, path)


def _load(path: Path) -> Features:
    with np.load(path) as arrays:
        return Features(**{name: arrays[name] for name in arrays.files})
