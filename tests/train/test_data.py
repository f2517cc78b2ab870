"""Loading: bytes by offset, the same global batch for every world size, mirrored crops, refused latents."""

from __future__ import annotations

import dataclasses
import io
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.synthetic_root import Tiny, member_bytes
from train.config import AugmentConfig, BatchConfig, TrainConfig
from train.data import ImageSource, LatentSource, Loader, flips, jitter, mirrored_crop_left_px
from train.index import check_latents, read_index
from train.recipes import base, refiner
from train.settings import read_train_settings


def settings_of(tiny: Tiny, model: str = "base") -> TrainConfig:
    return read_train_settings(model, ["--config", str(tiny.config)], prog="test", description="")[0]


def global_batches(config: TrainConfig, world_size: int, micro: int, accumulation: int, first_step: int = 0) -> list:
    """Return (step, position, uid, time ids, array) of every sample of every rank, in order."""
    batch = BatchConfig(global_batch=8, micro_batch=micro, grad_accumulation=accumulation)
    config = dataclasses.replace(config, batch=batch, steps=5)
    index = read_index(config.root, "train", needs_aesthetic=False)
    source = LatentSource(config.root, "train")
    rows = []
    for rank in range(world_size):
        for part in Loader(config, index, source, rank=rank, world_size=world_size).micro_batches(first_step):
            for place, position in enumerate(part.positions):
                array = part.arrays_BCHW[place].numpy().tobytes()
                rows.append((part.step, position, part.uids[place], part.time_ids_BT[place].tolist(), array))
    return sorted(rows, key=lambda row: row[:2])


def test_global_batches_do_not_depend_on_how_the_work_is_shared(tiny: Tiny) -> None:
    config = settings_of(tiny)
    whole = global_batches(config, world_size=1, micro=8, accumulation=1)
    assert len(whole) == 40
    assert global_batches(config, world_size=2, micro=2, accumulation=2) == whole
    assert global_batches(config, world_size=4, micro=1, accumulation=2) == whole
    assert global_batches(config, world_size=8, micro=1, accumulation=1) == whole
    assert global_batches(config, world_size=2, micro=4, accumulation=1, first_step=3) == whole[24:]


def test_pictures_are_read_by_offset_locally_and_from_another_store(tiny: Tiny) -> None:
    index = read_index(str(tiny.root), "train", needs_aesthetic=True)
    sample = index.sample(3)
    with tarfile.open(tiny.root / sample.shard) as tar:
        expected = Image.open(io.BytesIO(tar.extractfile(f"{sample.uid}.jpg").read())).convert("RGB")
    still = AugmentConfig(flip_prob=0.0, jitter=0.0)
    picture = ImageSource(str(tiny.root), still, 0).read(sample, False, 0)
    mirrored = ImageSource(str(tiny.root), still, 0).read(sample, True, 0)
    assert np.allclose(picture.transpose(1, 2, 0), np.asarray(expected) / 127.5 - 1.0, atol=1e-5)
    assert np.array_equal(mirrored, picture[:, :, ::-1])
    store = fsspec.filesystem("memory")
    store.pipe(f"/elsewhere/{sample.shard}", (tiny.root / sample.shard).read_bytes())
    assert np.array_equal(ImageSource("memory://elsewhere", still, 0).read(sample, False, 0), picture)


def test_a_flip_chooses_the_mirrored_latent_and_mirrors_the_crop(tiny: Tiny) -> None:
    sample = read_index(str(tiny.root), "train", needs_aesthetic=False).sample(0)
    source = LatentSource(str(tiny.root), "train")
    assert not np.array_equal(source.read(sample, False, 0), source.read(sample, True, 0))
    wide = dataclasses.replace(sample, original_hw=(100, 300), bucket_hw=(50, 100), crop_left_px=10)
    assert mirrored_crop_left_px(wide) == 150 - 100 - 10
    share = np.mean([flips(AugmentConfig(), 0, epoch, sample.uid) for epoch in range(400)])
    assert 0.4 < share < 0.6


def test_jitter_is_minor_and_can_be_off() -> None:
    pixels = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    assert np.allclose(jitter(pixels, 0.0, np.random.default_rng(0)), pixels, atol=1e-6)
    changed = jitter(pixels, 0.05, np.random.default_rng(0))
    assert 0.0 < np.abs(changed - pixels).mean() < 0.06


def test_latents_of_another_autoencoder_are_refused(tiny: Tiny) -> None:
    from train.autoencoder import fingerprint, load_vae

    vae = load_vae(str(tiny.root / "vae"))
    check_latents(str(tiny.root), fingerprint(vae), vae.config.scaling_factor)
    with torch.no_grad():
        next(vae.parameters()).mul_(1.001)
    with pytest.raises(ValueError, match="vae_fingerprint"):
        check_latents(str(tiny.root), fingerprint(vae), vae.config.scaling_factor)


def test_missing_variants_scores_and_tables_are_named(tiny: Tiny, tmp_path) -> None:
    sample = read_index(str(tiny.root), "train", needs_aesthetic=False).sample(0)
    with pytest.raises(ValueError, match="no variant 0 of sample abcd"):
        LatentSource(str(tiny.root), "train").read(dataclasses.replace(sample, uid="abcd"), False, 0)
    with pytest.raises(FileNotFoundError, match="tables/shards"):
        read_index(str(tmp_path), "train", needs_aesthetic=False)


def test_the_refiner_sees_each_samples_own_score(tiny: Tiny) -> None:
    from train.data import read_part

    still = AugmentConfig(flip_prob=0.0)
    index = read_index(str(tiny.root), "train", needs_aesthetic=True)
    source = LatentSource(str(tiny.root), "train")
    sample = index.sample(5)
    ids = {
        config.model: read_part(dataclasses.replace(config, augment=still), source, sample, 0).time_ids
        for config in (base(), refiner())
    }
    assert ids["refiner"] == (*sample.original_hw, sample.crop_top_px, sample.crop_left_px, sample.aesthetic)
    assert ids["base"][4:] == sample.bucket_hw


def test_table_offsets_point_at_the_pictures(tiny: Tiny) -> None:
    row = read_index(str(tiny.root), "val", needs_aesthetic=False).table.to_pylist()[0]
    assert member_bytes(tiny.root, row)[:2] == b"\xff\xd8"
