"""The loader: the samples of each micro-batch, read by offset, decoded by threads and read ahead.

Shape legend: B batch, C channels, H and W height and width (of pictures in px, of moments in latent pixels).
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import fsspec
import numpy as np
import torch
from PIL import Image

from train.conditioning import time_ids
from train.config import AugmentConfig, TrainConfig
from train.index import Index, Member, Sample, read_latent_members
from train.order import Order, Pick, rank_positions

_FLIP, _JITTER = 11, 12


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank."""

    step: int
    """Global batch that it is a part of."""
    positions: tuple[int, ...]
    """Places in the global batch; they key noise and timesteps."""
    uids: tuple[str, ...]
    """Samples."""
    captions: tuple[str, ...]
    """Captions."""
    time_ids_BT: torch.Tensor
    """Micro-conditioning, fp32."""
    arrays_BCHW: torch.Tensor
    """Posterior moments (source latents) or pictures in -1..1 (source images)."""


class Source(Protocol):
    """Reads what the network sees of one sample."""

    def read(self, sample: Sample, flipped: bool, epoch: int) -> np.ndarray:
        """Return the CHW array of the sample, mirrored where asked for."""


class Loader:
    """Yields the micro-batches of one rank from any step on."""

    def __init__(self, config: TrainConfig, index: Index, source: Source, *, rank: int, world_size: int) -> None:
        self.index = index
        self.order = Order(buckets=index.buckets(), global_batch=config.batch.global_batch, seed=config.seed)
        self._config = config
        self._source = source
        self._places = rank_positions(
            rank=rank,
            world_size=world_size,
            micro_batch=config.batch.samples_a_pass,
            grad_accumulation=config.batch.grad_accumulation,
        )

    def micro_batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the rank's micro-batches of `first_step`, of the next step, and so on up to the last step."""
        with ThreadPoolExecutor(self._config.loader.threads, thread_name_prefix="read") as pool:
            ahead: deque[_Pending] = deque()
            for pending in self._plan(first_step, pool):
                ahead.append(pending)
                if len(ahead) > self._config.loader.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _plan(self, first_step: int, pool: ThreadPoolExecutor) -> Iterator[_Pending]:
        for step in range(first_step, self._config.steps):
            picks = self.order.batch(step)
            for positions in self._places:
                parts = [pool.submit(self.part, picks[position]) for position in positions]
                yield _Pending(step=step, positions=positions, parts=parts)

    def part(self, pick: Pick) -> Part:
        """Read one sample as (seed, epoch, uid) says."""
        return read_part(self._config, self._source, self.index.sample(pick.row), pick.epoch)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One sample of a micro-batch."""

    sample: Sample
    """Its row."""
    time_ids: tuple[float, ...]
    """Its micro-conditioning, the crop mirrored with the picture."""
    array_CHW: np.ndarray
    """Its moments or picture."""


def read_part(config: TrainConfig, source: Source, sample: Sample, epoch: int) -> Part:
    """Return the sample as it is seen in `epoch`; flip and jitter are functions of (seed, epoch, uid)."""
    flipped = flips(config.augment, config.seed, epoch, sample.uid)
    left_px = mirrored_crop_left_px(sample) if flipped else sample.crop_left_px
    ids = time_ids(config.model, sample.original_hw, (sample.crop_top_px, left_px), sample.bucket_hw, sample.aesthetic)
    return Part(sample=sample, time_ids=ids, array_CHW=source.read(sample, flipped, epoch))


def collate(step: int, positions: tuple[int, ...], parts: list[Part]) -> Batch:
    """Stack samples into a micro-batch."""
    return Batch(
        step=step,
        positions=positions,
        uids=tuple(part.sample.uid for part in parts),
        captions=tuple(part.sample.caption for part in parts),
        time_ids_BT=torch.tensor([part.time_ids for part in parts], dtype=torch.float32),
        arrays_BCHW=torch.from_numpy(np.stack([part.array_CHW for part in parts])),
    )


def flips(augment: AugmentConfig, seed: int, epoch: int, uid: str) -> bool:
    """Return whether the sample is mirrored in this epoch."""
    return bool(_rng(seed, _FLIP, epoch, uid).random() < augment.flip_prob)


def mirrored_crop_left_px(sample: Sample) -> int:
    """Return the crop's left edge in the mirrored picture: what was cut off at the right."""
    scale = max(bucket / original for bucket, original in zip(sample.bucket_hw, sample.original_hw, strict=True))
    resized_width_px = round(sample.original_hw[1] * scale)
    return max(0, resized_width_px - sample.bucket_hw[1] - sample.crop_left_px)


class LatentSource:
    """Posterior moments from latent shards; the flip chooses the mirrored variant."""

    def __init__(self, root: str, split: str) -> None:
        self._reader = ShardReader(root)
        self._members = read_latent_members(root, split)

    def read(self, sample: Sample, flipped: bool, epoch: int) -> np.ndarray:
        """Return the moments; raises ValueError where the variant was not encoded."""
        member = self._members.get((sample.uid, int(flipped)))
        if member is None:
            raise ValueError(
                f"tables/latents: no variant {int(flipped)} of sample {sample.uid};"
                " encode with flip, or set augment.flip_prob to 0"
            )
        return np.load(io.BytesIO(self._reader.read(member)), allow_pickle=False).astype(np.float32)


class ImageSource:
    """Pictures from train shards, mirrored and lightly jittered."""

    def __init__(self, root: str, augment: AugmentConfig, seed: int) -> None:
        self._reader = ShardReader(root)
        self._augment = augment
        self._seed = seed

    def read(self, sample: Sample, flipped: bool, epoch: int) -> np.ndarray:
        """Return the picture in -1..1."""
        member = Member(shard=sample.shard, offset=sample.offset, num_bytes=sample.num_bytes)
        with Image.open(io.BytesIO(self._reader.read(member))) as image:
            pixels_HWC = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
        rng = _rng(self._seed, _JITTER, epoch, sample.uid)
        pixels_HWC = jitter(pixels_HWC, self._augment.jitter, rng)
        if flipped:
            pixels_HWC = pixels_HWC[:, ::-1]
        return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)) * 2.0 - 1.0


def jitter(pixels_HWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the picture (0..1) with brightness, contrast and saturation each changed by up to `strength`."""
    brightness, contrast, saturation = 1.0 + strength * rng.uniform(-1.0, 1.0, 3).astype(np.float32)
    pixels_HWC = pixels_HWC * brightness
    pixels_HWC = (pixels_HWC - pixels_HWC.mean()) * contrast + pixels_HWC.mean()
    grey_HW1 = (pixels_HWC @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    return np.clip((pixels_HWC - grey_HW1) * saturation + grey_HW1, 0.0, 1.0)


class ShardReader:
    """Reads members of tars by their offset, local or remote."""

    def __init__(self, root: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(root)

    def read(self, member: Member) -> bytes:
        """Return the member's bytes; raises ValueError where the shard ends before them."""
        path = f"{self._root}/{member.shard}"
        data = self._fs.cat_file(path, start=member.offset, end=member.offset + member.num_bytes)
        if len(data) != member.num_bytes:
            raise ValueError(f"{path}: {len(data)} bytes at {member.offset}, the table says {member.num_bytes}")
        return data


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A micro-batch that is being read."""

    step: int
    positions: tuple[int, ...]
    parts: list[Future[Part]]

    def result(self) -> Batch:
        """Wait for the samples."""
        return collate(self.step, self.positions, [part.result() for part in self.parts])


def _rng(seed: int, purpose: int, epoch: int, uid: str) -> np.random.Generator:
    return np.random.default_rng((seed, purpose, epoch, int(uid, 16)))
