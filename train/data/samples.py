"""One sample as the network sees it: bytes to moments or pixels, flip and jitter, and who stands in for a bad one.

Shape legend: C channels, H and W height and width (of pictures in px, of moments in latent pixels).
"""

from __future__ import annotations

import functools
import io
import math
import re
from dataclasses import dataclass
from typing import Protocol

import cv2
import numba
import numpy as np
import simplejpeg
from PIL import Image

from curate.bad_input import BadInput
from curate.image import DECODER_ERRORS
from train.config import AugmentConfig, TrainConfig
from train.data.shards import BadSample, ShardReader
from train.index.reader import Index, Member, Sample
from train.micro_conditioning import mirrored_crop_left_px, time_ids
from train.permutation import key

_FLIP, _JITTER, _STAND_IN = 11, 12, 13
STAND_INS = 16
"""How many samples in a row may be bad before that is an error of its own."""
MAX_HEADER_BYTES = 4096
"""Longest header of a .npy file that holds moments."""
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<dtype>[<>|][iu][1248]|[<>]f[248])',"
    rb" 'fortran_order': False, 'shape': \((?P<shape>(?:[0-9]+, ?)*[0-9]*)\), \} *\n",
    re.DOTALL,
)
"""What np.save writes before numbers that lie by rows, in its format 1.0."""
LUMA_RGB = np.array([0.299, 0.587, 0.114])


class WrongSize(BadSample):
    """Moments of another size than their bucket's."""


class Source(Protocol):
    """Reads what the network sees of one sample."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the arrays."""

    def shape(self, bucket_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Return (C, H, W) of the samples of a bucket."""

    def read_into(self, out_CHW: np.ndarray, sample: Sample, flipped: bool, visit: int) -> None:
        """Fill the array with the sample, mirrored where asked for; raises BadSample."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One sample of a micro-batch."""

    sample: Sample
    """Its row."""
    time_ids: tuple[float, ...]
    """Its micro-conditioning, the crop mirrored with the picture."""
    array_CHW: np.ndarray
    """Its moments or picture."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A sample that could not be used."""

    uid: str
    """Its identity."""
    row: int
    """Its row of the index."""
    reason: str
    """missing, truncated or corrupt."""
    message: str
    """What was found, with the shard's name."""


def read_pick(
    config: TrainConfig, index: Index, source: Source, row: int, visit: int, out_CHW: np.ndarray | None = None
) -> tuple[Part, list[Bad]]:
    """Return the sample of a row (in `out_CHW` where given), or its stand-in, and whatever was bad on the way.

    The stand-in is a function of (seed, row, visit), so every rank and every resumed run takes the same
    one: from the same bucket, source and weight, and after half of the attempts from the whole bucket.
    Raises BadInput where no stand-in is whole.
    """
    bad: list[Bad] = []
    candidate = row
    for attempt in range(STAND_INS):
        sample = index.sample(candidate)
        try:
            return read_part(config, source, sample, visit, out_CHW), bad
        except BadSample as error:
            bad.append(Bad(uid=sample.uid, row=candidate, reason=error.reason, message=str(error)))
        rows = index.alike(row) if attempt < STAND_INS // 2 else index.in_bucket(row)
        candidate = rows[key(config.seed, _STAND_IN, row, visit, attempt) % len(rows)]
    height_px, width_px = index.group_of(row).bucket_hw
    raise BadInput(
        f"{STAND_INS} samples of the bucket {height_px}x{width_px} in a row are bad, the last one: {bad[-1].message};"
        f" look with python -m train.data --root {config.root} --check"
    )


def read_part(
    config: TrainConfig, source: Source, sample: Sample, visit: int, out_CHW: np.ndarray | None = None
) -> Part:
    """Return the sample as it is seen at a visit; flip and jitter are functions of (seed, visit, uid)."""
    if out_CHW is None:
        out_CHW = np.empty(source.shape(sample.bucket_hw), source.dtype)
    flipped = flips(config.augment, config.seed, visit, sample.uid)
    left_px = sample.crop_left_px
    if flipped:
        left_px = mirrored_crop_left_px(sample.original_hw, sample.bucket_hw, left_px)
    ids = time_ids(config.model, sample.original_hw, (sample.crop_top_px, left_px), sample.bucket_hw, sample.aesthetic)
    source.read_into(out_CHW, sample, flipped, visit)
    return Part(sample=sample, time_ids=ids, array_CHW=out_CHW)


def flips(augment: AugmentConfig, seed: int, visit: int, uid: str) -> bool:
    """Return whether the sample is mirrored at this visit."""
    return key(seed, _FLIP, visit, int(uid[:16], 16)) < augment.flip_prob * 2.0**64


@dataclass(frozen=True, kw_only=True)
class LatentSource:
    """Posterior moments from latent shards; the flip chooses the mirrored variant."""

    reader: ShardReader
    """Where the shards are."""
    channels: int
    """Channels of the moments: twice those of the latent."""
    factor: int
    """Pixels of the picture for each latent pixel, along a side."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the arrays."""
        return np.dtype(np.float16)

    def shape(self, bucket_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Return (C, H, W) of the moments of a bucket."""
        return self.channels, bucket_hw[0] // self.factor, bucket_hw[1] // self.factor

    def read_into(self, out_CHW: np.ndarray, sample: Sample, flipped: bool, visit: int) -> None:
        """Fill the array with the moments."""
        member = sample.latents[int(flipped)]
        if member is None:
            raise BadSample("missing", f"tables/latents: no variant {int(flipped)} of sample {sample.uid}")
        header_bytes = member.num_bytes - out_CHW.nbytes
        if not 0 < header_bytes <= MAX_HEADER_BYTES or not self._read_straight(member, header_bytes, out_CHW):
            self._refuse(member, out_CHW)
        if not all_finite(out_CHW):
            raise BadSample("corrupt", f"{member.shard} at {member.offset}: moments that are not finite")

    def _read_straight(self, member: Member, header_bytes: int, out_CHW: np.ndarray) -> bool:
        """Read the moments into their place and return whether that is what they are."""
        header = bytearray(header_bytes)
        self.reader.read_into(member, [header, out_CHW.data.cast("B")])
        try:
            return _npy_header(bytes(header)) == (out_CHW.dtype, out_CHW.shape, header_bytes)
        except ValueError as error:
            raise BadSample("corrupt", f"{member.shard} at {member.offset}: {error}") from error

    def _refuse(self, member: Member, out_CHW: np.ndarray) -> None:
        """Raise BadSample that says what lies there instead."""
        try:
            found = array_of(self.reader.read(member))
        except ValueError as error:
            raise BadSample("corrupt", f"{member.shard} at {member.offset}: {error}") from error
        told = f"{found.dtype} moments of shape {found.shape}, {out_CHW.shape} expected in {out_CHW.dtype}"
        raise WrongSize("corrupt", f"{member.shard} at {member.offset}: {told}")


def array_of(npy: bytes) -> np.ndarray:
    """Return the array of a .npy file without a copy; raises ValueError where it is none, or is too short."""
    dtype, shape, start = _npy_header(npy[: npy.find(b"\n", 10) + 1])
    count = math.prod(shape)
    if start + count * dtype.itemsize > len(npy):
        raise ValueError(f"a .npy of {dtype} and shape {shape} in {len(npy)} bytes")
    return np.frombuffer(npy, dtype, count, start).reshape(shape)


def all_finite(array: np.ndarray) -> bool:
    """Return whether every number is finite; by float16's exponent bits, four at a time, faster than isfinite."""
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    if array.size % 4 == 0 and array.flags.c_contiguous and array.flags.writeable:
        words = array.reshape(-1).view(np.uint64)
        if words.flags.aligned:
            return _all_finite_fp16(words)
    padded = np.append(array, np.zeros(-array.size % 4, np.float16))  # what the compiled loop takes
    return _all_finite_fp16(padded.view(np.uint64))


@numba.njit("boolean(uint64[::1])", cache=True)
def _all_finite_fp16(words):
    """Add 1 to each exponent: where all its bits are set, as in infinities and NaN, that reaches the sign's place."""
    seen = np.uint64(0)
    for at in range(len(words)):
        seen |= (words[at] & np.uint64(0x7C007C007C007C00)) + np.uint64(0x0400040004000400)
    return seen & np.uint64(0x8000800080008000) == 0


@functools.lru_cache(maxsize=1024)
def _npy_header(first_bytes: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """Return type, shape and where the numbers begin, of what np.save writes; raises ValueError for all else.

    numpy's own reader takes the header for Python, and on damage raises whatever its parsers do.
    """
    found = NPY_HEADER.match(first_bytes)
    if found is None or 10 + int.from_bytes(found["length"], "little") != found.end():
        raise ValueError("no .npy of numbers, by rows, in version 1.0")
    shape = tuple(int(side) for side in found["shape"].split(b",") if side.strip())
    return np.dtype(found["dtype"].decode()), shape, found.end()


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Pictures from train shards, fitted to their bucket, mirrored and lightly jittered."""

    reader: ShardReader
    """Where the shards are."""
    augment: AugmentConfig
    """Strength of the jitter."""
    seed: int
    """Seed of the jitter."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the arrays."""
        return np.dtype(np.uint8)

    def shape(self, bucket_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Return (C, H, W) of the pictures of a bucket."""
        return 3, *bucket_hw

    def read_into(self, out_CHW: np.ndarray, sample: Sample, flipped: bool, visit: int) -> None:
        """Fill the array with the picture."""
        data = self.reader.read(sample.picture)
        try:
            pixels_HWC = decode_rgb(data, sample.bucket_hw)
        except DECODER_ERRORS as error:
            raise BadSample("corrupt", f"{sample.picture.shard} at {sample.picture.offset}: {error}") from error
        pixels_HWC = fit_pixels(pixels_HWC, sample.bucket_hw)
        if self.augment.jitter:
            pixels_HWC = jitter(pixels_HWC, self.augment.jitter, _rng(self.seed, _JITTER, visit, sample.uid))
        if flipped:
            pixels_HWC = pixels_HWC[:, ::-1]
        for channel in range(3):
            out_CHW[channel] = pixels_HWC[..., channel]


def check_data(index: Index, source: Source, config: TrainConfig, latent_factor: int) -> None:
    """Raise BadInput where the samples are not what the settings ask for, before the first step."""
    check_multiples(index, latent_factor)
    check_buckets(index, config.unet.sample_size * latent_factor)
    if config.source == "latents":
        check_variants(index, config)
    check_sizes(index, source)


def check_multiples(index: Index, latent_factor: int) -> None:
    """Raise BadInput where the latents of a bucket would not be whole."""
    for height_px, width_px in (group.bucket_hw for group in index.groups):
        if height_px % latent_factor or width_px % latent_factor:
            raise BadInput(
                f"shards: the bucket {height_px}x{width_px} is no multiple of the autoencoder's {latent_factor} px:"
                " export again, or mend bucket_height_px and bucket_width_px in the JSON of the samples"
            )


def check_buckets(index: Index, side_px: int) -> None:
    """Raise BadInput where the pictures are of another stage: of twice the area that the network is for, or of half."""
    height_px, width_px = max(index.groups, key=lambda group: group.num_rows).bucket_hw
    if not 0.5 < height_px * width_px / side_px**2 < 2:
        raise BadInput(
            f"shards: most pictures are {height_px}x{width_px} px, but unet.sample_size is for {side_px} px:"
            " name the stage they were exported for (--stage), or export again (export.resolution_px)"
        )


def check_variants(index: Index, config: TrainConfig) -> None:
    """Raise BadInput where more samples lack moments that will be asked for than may be bad."""
    allowed = config.loader.max_bad_rate * len(index)
    wanted = (True, config.augment.flip_prob > 0)
    for variant, fix in enumerate(("encode the latents", "encode with flip, or set augment.flip_prob to 0")):
        lacking = index.missing_latents[variant]
        if wanted[variant] and lacking > allowed:
            told = f"{lacking} of {len(index)} samples have no variant {variant} that was made from these shards"
            raise BadInput(f"tables/latents: {told}; {fix} (python pipelines/encode.py)")


def check_sizes(index: Index, source: Source) -> None:
    """Raise ValueError where the first sample of a group has moments of another size than its bucket's."""
    for group in index.groups:
        try:
            source.read_into(
                np.empty(source.shape(group.bucket_hw), source.dtype), index.sample(group.first_row), False, 0
            )
        except WrongSize as error:
            told = "encode the latents again (python pipelines/encode.py), or set unet.latent_channels"
            raise BadInput(f"latents of another size: {error}; {told}") from error
        except BadSample:
            continue  # counted when it is read for training


def decode_rgb(data: bytes, bucket_hw: tuple[int, int]) -> np.ndarray:
    """Return a picture as uint8 HWC; a JPEG of twice the bucket's size or more is decoded at a reduced one."""
    if data[:2] == b"\xff\xd8":
        try:
            height_px, width_px = (2 * side for side in bucket_hw)
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height_px, min_width=width_px)
        except ValueError:
            pass  # CMYK and the like, which Pillow reads, and what is broken, which Pillow names
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def fit_pixels(pixels_HWC: np.ndarray, bucket_hw: tuple[int, int]) -> np.ndarray:
    """Return the picture scaled to cover its bucket and cropped at the centre, as the index says it will be."""
    height_px, width_px = pixels_HWC.shape[:2]
    if (height_px, width_px) == bucket_hw:
        return pixels_HWC
    factor = max(bucket_hw[0] / height_px, bucket_hw[1] / width_px)
    scaled_hw = max(bucket_hw[0], round(height_px * factor)), max(bucket_hw[1], round(width_px * factor))
    filter_ = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled_HWC = cv2.resize(pixels_HWC, (scaled_hw[1], scaled_hw[0]), interpolation=filter_)
    top, left = (scaled_hw[0] - bucket_hw[0]) // 2, (scaled_hw[1] - bucket_hw[1]) // 2
    return scaled_HWC[top : top + bucket_hw[0], left : left + bucket_hw[1]]


def jitter(pixels_HWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the uint8 picture with brightness, contrast and saturation each changed by up to `strength`.

    All three are affine in the pixel, so they are one 3 x 4 matrix and one rounding.
    """
    brightness, contrast, saturation = 1.0 + strength * rng.uniform(-1.0, 1.0, 3)
    mean = float(np.mean(cv2.mean(pixels_HWC)[:3])) * brightness
    colour = saturation * np.eye(3) + (1.0 - saturation) * np.ones((3, 1)) * LUMA_RGB
    matrix = np.concatenate([colour * brightness * contrast, np.full((3, 1), mean * (1.0 - contrast))], axis=1)
    return cv2.transform(np.ascontiguousarray(pixels_HWC), matrix)


def _rng(seed: int, purpose: int, visit: int, uid: str) -> np.random.Generator:
    return np.random.default_rng(key(seed, purpose, visit, int(uid[:16], 16)))
