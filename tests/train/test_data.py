"""Loading: bytes by offset, the same global batch for every world size, mirrored crops, stand-ins for bad samples."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.bad_input import BadInput
from tests.conftest import encoded
from tests.train.synthetic_root import Tiny, member_bytes, picture
from train.autoencoder import check_latents, load_vae
from train.config import AugmentConfig, BatchConfig, LoaderConfig, OrderConfig, TrainConfig
from train.data import slots
from train.data.loader import Batch, Loader, TooManyBad, dropped, order_of
from train.data.samples import (
    STAND_INS,
    ImageSource,
    LatentSource,
    WrongSize,
    all_finite,
    array_of,
    check_buckets,
    check_multiples,
    check_sizes,
    check_variants,
    decode_rgb,
    fit_pixels,
    flips,
    jitter,
    read_part,
    read_pick,
)
from train.data.shards import BadSample, ShardReader
from train.index.build import IndexOf, build_index, is_current
from train.index.build import index_folder as folder_of
from train.index.reader import Index, Member, Sample, open_index
from train.micro_conditioning import mirrored_crop_left_px
from train.recipes import base, refiner
from train.settings import read_train_settings

FACTOR = 4


def settings_of(tiny: Tiny, model: str = "base") -> TrainConfig:
    return read_train_settings(model, ["--config", str(tiny.config)], prog="test", description="")[0]


def index_of(root: Path, split: str = "train", weight: str = "1") -> Index:
    folder = folder_of(str(root), None, split)
    what = IndexOf(root=str(root), split=split, weight=weight)
    if not is_current(what, folder):
        build_index(what, folder)
    return open_index(folder)


def latents_of(root: Path) -> LatentSource:
    return LatentSource(reader=ShardReader(root=str(root)), channels=8, factor=FACTOR)


def images_of(root: Path, augment: AugmentConfig) -> ImageSource:
    return ImageSource(reader=ShardReader(root=str(root)), augment=augment, seed=0)


def read(source: LatentSource | ImageSource, sample: Sample, flipped: bool, visit: int) -> np.ndarray:
    array_CHW = np.empty(source.shape(sample.bucket_hw), source.dtype)
    source.read_into(array_CHW, sample, flipped, visit)
    return array_CHW


def loaders(
    config: TrainConfig, root: Path, world_size: int, micro: int, accumulation: int, steps: int, **loader: int
) -> list[Loader]:
    """The loaders of all ranks."""
    batch = BatchConfig(
        global_batch=world_size * micro * accumulation, micro_batch=micro, grad_accumulation=accumulation
    )
    reading = LoaderConfig(**({"workers": 0} | loader))
    config = dataclasses.replace(config, batch=batch, steps=steps, loader=reading)
    index = index_of(root, weight=config.order.weight)
    return [Loader(config, index, latents_of(root), rank=rank, world_size=world_size) for rank in range(world_size)]


def rows_of(batches: list[Batch]) -> list[tuple]:
    """Return (step, position, uid, time ids, bytes) of every sample, in order."""
    rows = []
    for batch in batches:
        for place, position in enumerate(batch.positions):
            array = batch.arrays_BCHW[place].numpy().tobytes()
            rows.append((batch.step, position, batch.uids[place], batch.time_ids_BT[place].tolist(), array))
    return sorted(rows, key=lambda row: row[:2])


def global_batches(made: list[Loader], first_step: int = 0) -> list[tuple]:
    return rows_of([batch for loader in made for batch in loader.micro_batches(first_step)])


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from([(w, m) for w in (1, 2, 4, 8) for m in (1, 2, 4, 8) if w * m <= 8]),
    first_step=st.integers(0, 3),
    seed=st.integers(0, 3),
)
def test_global_batches_do_not_depend_on_how_the_work_is_shared(
    tiny: Tiny, shape: tuple[int, int], first_step: int, seed: int
) -> None:
    config = dataclasses.replace(settings_of(tiny), seed=seed)
    world_size, micro = shape
    whole = global_batches(loaders(config, tiny.root, 1, 8, 1, steps=4))
    assert len(whole) == 32
    shared = loaders(config, tiny.root, world_size, micro, 8 // (world_size * micro), steps=4)
    assert global_batches(shared, first_step) == whole[8 * first_step :]


@pytest.mark.parametrize("workers", [1, 3])
def test_global_batches_do_not_depend_on_the_number_of_workers(tiny: Tiny, workers: int) -> None:
    config = settings_of(tiny)
    whole = global_batches(loaders(config, tiny.root, 1, 8, 1, steps=4))
    assert global_batches(loaders(config, tiny.root, 2, 2, 2, steps=4, workers=workers, prefetch=2)) == whole


def test_pictures_are_read_by_offset_and_mirrored(tiny: Tiny) -> None:
    sample = index_of(tiny.root).sample(3)
    with tarfile.open(tiny.root / sample.picture.shard) as tar:
        expected = Image.open(io.BytesIO(tar.extractfile(f"{sample.uid}.jpg").read())).convert("RGB")
    source = images_of(tiny.root, AugmentConfig(flip_prob=0.0, jitter=0.0))
    picture = read(source, sample, False, 0)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture.transpose(1, 2, 0), np.asarray(expected))
    assert np.array_equal(read(source, sample, True, 0), picture[:, :, ::-1])


def test_pictures_of_other_sizes_are_fitted_as_the_index_says(tiny: Tiny) -> None:
    gradient = np.linspace(0, 255, 300, dtype=np.float32)[None, :, None].repeat(100, 0).repeat(3, 2)
    fitted = fit_pixels(gradient.astype(np.uint8), (50, 100))
    assert fitted.shape == (50, 100, 3)
    assert np.abs(fitted[25, :, 0].astype(float) - gradient[0, 51:250:2, 0]).max() <= 2  # 25 px cut at either side
    buffer = io.BytesIO()
    Image.fromarray(gradient.astype(np.uint8)).save(buffer, "PNG")
    assert np.array_equal(decode_rgb(buffer.getvalue(), (50, 100)), gradient.astype(np.uint8))
    with pytest.raises(OSError):
        decode_rgb(buffer.getvalue()[:200], (50, 100))


def test_a_flip_chooses_the_mirrored_latent_and_mirrors_the_crop(tiny: Tiny) -> None:
    index, source = index_of(tiny.root), latents_of(tiny.root)
    sample = index.sample(0)
    still, mirrored = (np.load(io.BytesIO(source.reader.read(member))) for member in sample.latents)
    assert np.array_equal(read(source, sample, False, 0), still)
    assert np.array_equal(read(source, sample, True, 0), mirrored)
    assert not np.array_equal(still, mirrored)
    assert mirrored_crop_left_px((100, 300), (50, 100), 10) == 150 - 100 - 10
    always = dataclasses.replace(base(), augment=AugmentConfig(flip_prob=1.0))
    expected = mirrored_crop_left_px(sample.original_hw, sample.bucket_hw, sample.crop_left_px)
    part = read_part(always, source, sample, 0)
    assert part.time_ids[3] == expected
    assert np.array_equal(part.array_CHW, mirrored)
    share = np.mean([flips(AugmentConfig(), 0, visit, sample.uid) for visit in range(400)])
    assert 0.4 < share < 0.6


def test_jitter_is_what_brightness_contrast_and_saturation_are() -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (8, 9, 3), dtype=np.uint8)
    assert np.array_equal(jitter(pixels, 0.0, np.random.default_rng(0)), pixels)
    changed = jitter(pixels, 0.05, np.random.default_rng(4))
    brightness, contrast, saturation = 1 + 0.05 * np.random.default_rng(4).uniform(-1, 1, 3)
    expected = pixels * brightness
    expected = (expected - expected.mean()) * contrast + expected.mean()
    grey = (expected @ np.array([0.299, 0.587, 0.114]))[..., None]
    expected = (expected - grey) * saturation + grey
    assert np.abs(changed - expected).max() <= 0.6  # OpenCV's fixed point
    assert 0.0 < np.abs(changed.astype(float) - pixels).mean() < 12


def test_jitter_differs_by_visit_and_sample_and_repeats_itself(tiny: Tiny) -> None:
    source, sample = images_of(tiny.root, AugmentConfig(jitter=0.2)), index_of(tiny.root).sample(0)
    first, again, later = (read(source, sample, False, visit) for visit in (0, 0, 1))
    another = read(source, dataclasses.replace(sample, uid="f" * 32), False, 0)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)
    assert not np.array_equal(first, another)


def test_latents_of_another_autoencoder_code_or_size_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    vae = load_vae(str(tiny.root / "vae"))
    check_latents(str(tiny.root), vae)
    index = index_of(tiny.root)
    check_sizes(index, latents_of(tiny.root))
    with pytest.raises(ValueError, match=r"latents of another size: .*\(8, 8, 8\), \(8, 4, 4\) expected"):
        check_sizes(index, dataclasses.replace(latents_of(tiny.root), factor=8))
    with pytest.raises(WrongSize):
        read(dataclasses.replace(latents_of(tiny.root), channels=32), index.sample(0), False, 0)
    (tmp_path / "latents").mkdir()
    said = json.loads((tiny.root / "latents/run.json").read_text())
    (tmp_path / "latents/run.json").write_text(json.dumps(said | {"encoding": "something else"}))
    with pytest.raises(ValueError, match="encoding is 'something else'"):
        check_latents(str(tmp_path), vae)
    with torch.no_grad():
        next(vae.parameters()).mul_(1.001)
    with pytest.raises(ValueError, match="vae_fingerprint"):
        check_latents(str(tiny.root), vae)
    with pytest.raises(FileNotFoundError, match="encode the latents"):
        check_latents(str(tmp_path / "nowhere"), vae)


def test_missing_variants_are_refused_at_the_start_and_single_ones_are_bad_samples(tiny: Tiny) -> None:
    index, config = index_of(tiny.root), settings_of(tiny)
    assert index.missing_latents == (0, 0)
    sample = dataclasses.replace(index.sample(0), latents=(None, None), uid="abcd")
    with pytest.raises(BadSample, match="missing: .*no variant 0 of sample abcd"):
        read(latents_of(tiny.root), sample, False, 0)
    check_variants(index, config)
    check_variants(dataclasses.replace(index, missing_latents=(0, 9)), flip_prob(config, 0.0))
    told = "of 30 samples have no variant {} that was made from these shards; encode {}"
    with pytest.raises(BadInput, match=f"9 {told.format(1, 'with flip, or set augment.flip_prob')}"):
        check_variants(dataclasses.replace(index, missing_latents=(0, 9)), flip_prob(config, 0.5))
    with pytest.raises(BadInput, match=f"1 {told.format(0, 'the latents')}"):
        check_variants(dataclasses.replace(index, missing_latents=(1, 1)), config)


def test_latents_of_shards_that_were_exported_anew_do_not_count(tiny: Tiny, tmp_path: Path) -> None:
    for part in ("shards", "latents", "tables"):
        shutil.copytree(tiny.root / part, tmp_path / part)
    before = index_of(tmp_path)
    assert before.digest == index_of(tiny.root).digest and before.missing_latents == (0, 0)
    path = tmp_path / "tables/shards/_run.json"
    said = json.loads(path.read_text())
    said["fragments"]["train-00000"]["receipt"] = "another crop"
    path.write_text(json.dumps(said))
    now = index_of(tmp_path)
    assert now.digest != before.digest and now.missing_latents == (30, 30)
    with pytest.raises(BadInput, match="30 of 30 samples have no variant 0 that was made from these shards"):
        check_variants(now, settings_of(tiny))
    encoded_from = {name: fragment["receipt"] for name, fragment in said["fragments"].items()}
    (tmp_path / "latents/shards.json").write_text(json.dumps(encoded_from))
    assert index_of(tmp_path).missing_latents == (0, 0)


def flip_prob(config: TrainConfig, prob: float) -> TrainConfig:
    return dataclasses.replace(config, augment=dataclasses.replace(config.augment, flip_prob=prob))


def test_buckets_without_whole_latents_are_refused(tiny: Tiny) -> None:
    check_multiples(index_of(tiny.root), 32)
    with pytest.raises(BadInput, match="the bucket 32x32 is no multiple of the autoencoder's 5 px"):
        check_multiples(index_of(tiny.root), 5)


def test_pictures_of_another_stage_are_refused(tiny: Tiny) -> None:
    check_buckets(index_of(tiny.root), 32)
    for side_px in (16, 64):
        with pytest.raises(BadInput, match=rf"most pictures are 32x32 px, but unet.sample_size is for {side_px} px"):
            check_buckets(index_of(tiny.root), side_px)


def test_the_refiner_sees_each_samples_own_score(tiny: Tiny) -> None:
    still = AugmentConfig(flip_prob=0.0)
    sample = index_of(tiny.root).sample(5)
    ids = {
        config.model: read_part(dataclasses.replace(config, augment=still), latents_of(tiny.root), sample, 0).time_ids
        for config in (base(), refiner())
    }
    assert ids["refiner"] == (*sample.original_hw, sample.crop_top_px, sample.crop_left_px, sample.aesthetic)
    assert ids["base"][4:] == sample.bucket_hw


@pytest.fixture
def damaged(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the root: one picture overwritten, one shard cut off, one shard gone; latents as they were."""
    root = tmp_path / "damaged"
    shutil.copytree(tiny.root / "shards", root / "shards")
    shutil.copytree(tiny.root / "tables", root / "tables")
    index = index_of(root)
    broken = index.sample(2).picture
    with (root / broken.shard).open("r+b") as file:
        file.seek(broken.offset)
        file.write(b"\0" * broken.num_bytes)
    shard = root / index.sample(29).picture.shard
    shard.write_bytes(shard.read_bytes()[: index.sample(29).picture.offset + 100])
    (root / index_of(root, "val").sample(0).picture.shard).unlink()
    return root


def test_bad_samples_are_named_and_replaced_the_same_way_everywhere(damaged: Path, tiny: Tiny) -> None:
    config = dataclasses.replace(settings_of(tiny), root=str(damaged), source="images")
    index, source = index_of(damaged), images_of(damaged, config.augment)
    stand_in, bad = read_pick(config, index, source, 2, 5)
    assert [(one.row, one.reason, one.uid) for one in bad] == [(2, "corrupt", index.sample(2).uid)]
    assert index.sample(2).picture.shard in bad[0].message
    assert stand_in.sample.row != 2
    assert stand_in.sample.bucket_hw == index.sample(2).bucket_hw
    assert read_pick(config, index, source, 2, 5)[0].sample == stand_in.sample
    assert len({read_pick(config, index, source, 2, visit)[0].sample.row for visit in range(20)}) > 5
    assert read_pick(config, index, source, 29, 0)[1][0].reason == "truncated"
    with pytest.raises(BadInput, match="16 samples of the bucket 32x32 in a row are bad, the last one: missing"):
        read_pick(config, index_of(damaged, "val"), source, 0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_one_line_of_the_same_type(damaged: Path, tiny: Tiny, workers: int) -> None:
    config = dataclasses.replace(settings_of(tiny), root=str(damaged), source="images")
    config = dataclasses.replace(config, batch=BatchConfig(global_batch=1, micro_batch=1), steps=4)
    config = dataclasses.replace(config, loader=LoaderConfig(workers=workers))
    index, source = index_of(damaged, "val"), images_of(damaged, config.augment)
    loader = Loader(config, index, source, rank=0, world_size=1)
    with pytest.raises(BadInput, match=r"^16 samples of the bucket .*--check$"):
        list(loader.micro_batches(0))


def test_a_bad_sample_alone_in_its_group_is_replaced_from_its_bucket(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.root / "shards", tmp_path / "shards")
    shutil.copytree(tiny.root / "tables", tmp_path / "tables")
    uid = index_of(tiny.root).sample(2).uid
    index = index_of(tmp_path, weight=f"CASE WHEN uid = '{uid}' THEN 2 ELSE 1 END")
    alone = next(row for row in range(len(index)) if index.sample(row).uid == uid)
    assert len(index.alike(alone)) == 1
    with (tmp_path / index.sample(alone).picture.shard).open("r+b") as file:
        file.seek(index.sample(alone).picture.offset)
        file.write(b"\0" * 64)
    config = dataclasses.replace(settings_of(tiny), source="images")
    stand_in, bad = read_pick(config, index, images_of(tmp_path, config.augment), alone, 0)
    assert len(bad) == STAND_INS // 2 + 1
    assert stand_in.sample.bucket_hw == index.sample(alone).bucket_hw
    assert stand_in.sample.uid != uid


def test_bad_samples_are_counted_up_to_the_rate_then_an_error(damaged: Path, tiny: Tiny, tmp_path: Path) -> None:
    config = dataclasses.replace(settings_of(tiny), root=str(damaged), source="images", steps=8)
    log = tmp_path / "bad.jsonl"

    def load(rate: float, steps: int = 8) -> Loader:
        strict = dataclasses.replace(config, steps=steps, loader=LoaderConfig(workers=0, max_bad_rate=rate))
        batch = dataclasses.replace(strict, batch=BatchConfig(global_batch=4, micro_batch=4))
        source = images_of(damaged, config.augment)
        return Loader(batch, index_of(damaged), source, rank=0, world_size=1, bad_log=log)

    loader = load(0.001)
    batches = list(loader.micro_batches(0))
    assert len(batches) == 8
    assert loader.bad["truncated"] >= 1 and loader.bad["corrupt"] >= 1
    assert loader.bad.total() == len(log.read_text().splitlines()) <= 10
    with pytest.raises(TooManyBad, match=r"max_bad_rate = 0.0: 1 of \d+ samples are bad"):
        list(load(0.0).micro_batches(0))
    with pytest.raises(TooManyBad, match=r"max_bad_rate = 0.0002: 3 of \d+ samples are bad"):  # 2 of 10,000 may be
        list(load(0.0002, steps=60).micro_batches(0))


def test_the_check_finds_every_planted_fault(damaged: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    from train.data.check import main

    shutil.copytree(tiny.root / "latents", damaged / "latents")
    for split in ("train", "val"):
        index_of(damaged, split)
        index_of(tiny.root, split)
    extra = damaged / "shards/train/32x32-00001.tar"
    shutil.copy(damaged / "shards/train/32x32-00000.tar", extra)
    assert main(["--root", str(damaged), "--check"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(line["split"], line["reason"]) for line in lines if "reason" in line}
    assert found == {
        ("train", "corrupt"),
        ("train", "truncated"),
        ("train", "archive"),
        ("train", "not_indexed"),
        ("val", "missing"),
    }
    uids = {line.get("uid") for line in lines if line.get("reason") == "corrupt"}
    assert uids == {index_of(damaged).sample(2).uid}
    assert main(["--root", str(tiny.root), "--check"]) == 0
    with pytest.raises(SystemExit) as ended:
        main(["--root", str(damaged / "nowhere"), "--check"])
    assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["--root", str(tiny.root), "--check", "--workers", "0"])
    assert (ended.value.code, capsys.readouterr().err) == (2, "train.data: workers = 0: must be at least 1\n")


def test_the_check_finds_entries_that_point_at_other_members(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.data.check import main
    from train.index.reader import ROW

    for part in ("shards", "tables", "latents"):
        shutil.copytree(tiny.root / part, tmp_path / part)
    index_of(tmp_path, "val")
    group = index_of(tmp_path).groups[0]
    rows = np.memmap(Path(index_of(tmp_path).folder) / "rows.bin", ROW, "r+")
    first = rows[group.first_row : group.first_row + 4]
    same = first["shard"] == first["shard"][0]
    assert same.all()
    first["offset"][0] += 512  # into the picture
    for name in ("offset", "num_bytes"):
        first[name][2:] = first[name][2:][::-1].copy()  # another sample's picture
    first["latent_offsets"][1] = first["latent_offsets"][1][::-1].copy()  # the mirrored moments, and the reverse
    rows.flush()
    assert main(["--root", str(tmp_path), "--check"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["row"] - group.first_row, line["reason"]) for line in lines if "row" in line] == [
        (0, "misplaced"),
        (1, "misplaced"),
        (1, "misplaced"),
        (2, "misplaced"),
        (3, "misplaced"),
    ]


def test_the_check_finds_a_picture_that_does_not_fill_its_bucket(tiny: Tiny) -> None:
    from train.data.check import _check_picture

    sample = index_of(tiny.root).sample(0)
    data = member_bytes(tiny.root, vars(sample.picture))
    _check_picture(data, sample, fills=True)
    other = dataclasses.replace(sample, bucket_hw=(sample.bucket_hw[0], sample.bucket_hw[1] + 8))
    _check_picture(data, other, fills=False)  # a tar of somebody else's is fitted when it is read
    with pytest.raises(BadSample, match="in the bucket"):
        _check_picture(data, other, fills=True)


def test_table_offsets_point_at_the_pictures(tiny: Tiny) -> None:
    picture = index_of(tiny.root, "val").sample(0).picture
    assert member_bytes(tiny.root, vars(picture))[:2] == b"\xff\xd8"


def test_the_order_reaches_every_row_of_the_index(tiny: Tiny) -> None:
    config = settings_of(tiny)
    index = index_of(tiny.root)
    order = order_of(config, index)
    rows = [row for step in range(order.batches_before(4)) for row in order.batch(step).rows.tolist()]
    assert sorted(rows) == sorted(list(range(len(index))) * 4)


def test_rows_that_no_stream_reaches_are_counted_as_dropped(tiny: Tiny) -> None:
    config, index = settings_of(tiny), index_of(tiny.root)
    order = order_of(config, index)
    assert dropped(order, index) == 0
    assert dropped(dataclasses.replace(order, groups=order.groups[:1]), index) == order.groups[1].num_rows == 9
    weighted = index_of(tiny.root, weight="CASE WHEN aesthetic > 5 THEN 0 ELSE 1 END")
    assert weighted.left_out > 0 and dropped(order_of(config, weighted), weighted) == 0
    index_of(tiny.root)  # the fixture's own index again


@given(place=st.integers(0, 22), bits=st.integers(0, 65535), length=st.integers(23, 40), first=st.integers(0, 3))
def test_what_is_not_finite_is_found_wherever_it_is(place: int, bits: int, length: int, first: int) -> None:
    array = np.linspace(-60000, 60000, length + first, dtype=np.float16)[first:]
    assert all_finite(array)
    array[place] = np.uint16(bits).view(np.float16)
    assert all_finite(array) == bool(np.isfinite(array).all())
    assert all_finite(np.frombuffer(array.tobytes(), np.float16)) == all_finite(array)


def npy_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "|u1", "<i8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (1,) * 30], ids=str)
def test_what_numpy_saves_is_read_as_it_is(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = array_of(npy_of(array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


SOUND = npy_of(np.ones((8, 4, 4), np.float16))
HEADERS = ("(8, 4, 4", "(True, 4, 4)", f"({10**40},)", "(8, 4, -4)", "(9, 4, 4)", "8", "(8, , 4)", "[8, 4, 4]")


@pytest.mark.parametrize("shape", HEADERS)
def test_headers_that_lie_are_value_errors(shape: str) -> None:
    header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with pytest.raises(ValueError):
        array_of(SOUND[:10] + header + SOUND[128:])
    with pytest.raises(ValueError, match="no .npy of numbers"):
        array_of(npy_of(np.asfortranarray(np.ones((8, 4), np.float16))))


@dataclasses.dataclass
class Held:
    """A reader of one member."""

    data: bytes

    def read(self, member: Member) -> bytes:
        return self.data

    def read_into(self, member: Member, buffers: list) -> None:
        start = 0
        for buffer in buffers:
            buffer[:] = self.data[start : start + len(buffer)]
            start += len(buffer)


BYTES = st.one_of(st.integers(0, 255), st.sampled_from(b"()[]{}'\",:"))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["NPY", "JPEG", "PNG", "WEBP"]),
    changes=st.lists(st.tuples(st.integers(0, 300), BYTES), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(1, 300)),
)
def test_damage_of_any_kind_makes_a_bad_sample(kind: str, changes: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(SOUND if kind == "NPY" else encoded(picture(1, (40, 48)), kind))
    for at, byte in changes:
        data[at % min(len(data), 130 if kind == "NPY" else 301)] = byte
    held = Held(bytes(data[:cut]))
    sources = {"NPY": LatentSource(reader=held, channels=8, factor=8)}
    source = sources.get(kind) or ImageSource(reader=held, augment=AugmentConfig(), seed=0)
    member = Member(shard="a.tar", offset=512, num_bytes=len(held.data))
    sample = dataclasses.replace(SAMPLE, picture=member, latents=(member, None))
    with contextlib.suppress(BadSample):
        read(source, sample, False, 0)


SAMPLE = Sample(
    row=0,
    uid="0" * 32,
    caption="",
    picture=Member(shard="a.tar", offset=512, num_bytes=0),
    latents=(None, None),
    bucket_hw=(32, 32),
    original_hw=(40, 48),
    crop_top_px=0,
    crop_left_px=3,
    aesthetic=5.0,
)


def test_a_micro_batch_stays_as_it_is_while_somebody_sees_it(tiny: Tiny) -> None:
    config = settings_of(tiny)
    (whole,) = loaders(config, tiny.root, 1, 4, 1, steps=60, workers=2, prefetch=2)
    kept, copies, places = [], [], set()
    for batch in whole.micro_batches(0):
        places.add(batch.arrays_BCHW.data_ptr())
        if batch.step < 20:  # more than there are slots for
            kept.append(batch.arrays_BCHW[1:2])
            copies.append(kept[-1].clone())
    assert len(places) < 40  # slots are used again
    assert all(torch.equal(view, copy) for view, copy in zip(kept, copies, strict=True))


def test_too_little_shared_memory_is_told_before_it_is_written_to(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    (loader,) = loaders(settings_of(tiny), tiny.root, 1, 4, 1, steps=1, workers=2, prefetch=3)
    needed = (2 * 3 + 4) * 4 * 8 * 8 * 16 * 2  # slots of 4 moments in float16, in the wider bucket
    left = SimpleNamespace(free=needed - 1, total=4 * needed - 1)
    monkeypatch.setattr(slots.shutil, "disk_usage", lambda _folder: left)
    told = r"take 0.00 GB of shared memory for each of {} ranks here, but /dev/shm has 0.00 of 0.00 GB left; give the"
    with pytest.raises(BadInput, match=told.format(1)):
        next(loader.micro_batches(0))
    left.free = left.total
    next(loader.micro_batches(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # none of the four has taken its part yet
    with pytest.raises(BadInput, match=told.format(4)):
        next(loader.micro_batches(0))


@settings(max_examples=6, deadline=None)
@given(
    shape=st.sampled_from([(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 1, 4), (4, 2, 1), (8, 1, 1)]),
    workers=st.sampled_from([1, 2, 3]),
    prefetch=st.integers(1, 3),
    first_step=st.integers(0, 6),
)
def test_the_order_does_not_depend_on_ranks_micro_batch_accumulation_and_workers_together(
    tiny: Tiny, shape: tuple[int, int, int], workers: int, prefetch: int, first_step: int
) -> None:
    config = settings_of(tiny)
    index = index_of(tiny.root)
    whole = global_batches(loaders(config, tiny.root, 1, 8, 1, steps=8))
    shapes = {index.sample(row).bucket_hw for step in range(8) for row in order_of_batches(config, index, step)}
    assert len(shapes) == 2  # both aspect buckets come up
    shared = loaders(config, tiny.root, *shape, steps=8, workers=workers, prefetch=prefetch)
    assert global_batches(shared, first_step) == whole[8 * first_step :]


def order_of_batches(config: TrainConfig, index: Index, step: int) -> list[int]:
    eight = dataclasses.replace(config, batch=BatchConfig(global_batch=8, micro_batch=8))
    return order_of(eight, index).batch(step).rows.tolist()


@pytest.fixture(scope="module")
def mixed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny root with two sources."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copytree(tiny.root / "tables", root / "tables")
    for part in ("shards", "latents"):
        (root / part).symlink_to(tiny.root / part)
    path = root / "tables/shards/train-00000.parquet"
    rows = pq.read_table(path)
    names = pa.array(["photos" if number % 3 == 0 else "web" for number in range(rows.num_rows)])
    pq.write_table(rows.set_column(rows.column_names.index("source"), "source", names), path)
    return root


@settings(max_examples=6, deadline=None)
@given(
    shape=st.sampled_from([(1, 4, 2), (2, 4, 1), (2, 1, 4), (4, 2, 1), (8, 1, 1)]),
    workers=st.sampled_from([0, 2]),
    first_step=st.integers(0, 6),
)
def test_weights_and_mixing_do_not_depend_on_how_the_work_is_shared(
    tiny: Tiny, mixed: Path, shape: tuple[int, int, int], workers: int, first_step: int
) -> None:
    weight = "CASE WHEN aesthetic >= 5 THEN 1.5 ELSE 1 END"
    shares = OrderConfig(mixing={"web": 0.4, "photos": 0.6}, weight=weight, piece_rows=2, window_pieces=2)
    config = dataclasses.replace(settings_of(tiny), order=shares)
    whole = global_batches(loaders(config, mixed, 1, 8, 1, steps=8))
    index = index_of(mixed, weight=weight)
    sources = {index.sample(row).uid: index.group_of(row).source for row in range(len(index))}
    shown = Counter(sources[uid] for _, _, uid, *_ in whole)
    assert len(index.groups) == 8 and abs(shown["photos"] - 0.6 * 64) <= 4, shown
    shared = loaders(config, mixed, *shape, steps=8, workers=workers)
    assert global_batches(shared, first_step) == whole[8 * first_step :]
