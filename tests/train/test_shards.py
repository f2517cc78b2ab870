"""Shards from S3 (moto's server) through the bounded cache: the same bytes, few requests, never too full."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests.train.synthetic_root import Tiny, write_root
from tests.train.test_data import global_batches, index_of, latents_of, loaders, settings_of
from train import shards
from train.config import BatchConfig, LoaderConfig, OrderConfig
from train.data import Loader
from train.index import Member, open_index
from train.index_build import IndexOf, build_index
from train.read_ahead import cache_advice
from train.recipes import base
from train.samples import LatentSource
from train.shards import BadSample, BlockCache, ShardReader, shard_reader


@pytest.fixture(scope="module")
def bucket(tiny: Tiny):
    """A bucket with the tiny root's latents, its URL in s3fs's terms."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    shards._filesystem.cache_clear()
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.mkdir("pictures")
    store.put(str(tiny.root / "latents"), "pictures/root/latents", recursive=True)
    yield "s3://pictures/root"
    server.stop()
    shards._filesystem.cache_clear()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


def cache(folder: Path, max_bytes: int = 10**6, block_bytes: int = 4096) -> BlockCache:
    return BlockCache(folder=str(folder), version="1", max_bytes=max_bytes, block_bytes=block_bytes)


def test_remote_bytes_are_the_local_ones_with_and_without_cache(bucket: str, tiny: Tiny, tmp_path: Path) -> None:
    index, local = index_of(tiny.root), ShardReader(root=str(tiny.root))
    plain, cached = ShardReader(root=bucket), ShardReader(root=bucket, cache=cache(tmp_path, block_bytes=1000))
    for row in range(len(index)):
        for member in index.sample(row).latents:
            assert plain.read(member) == cached.read(member) == cached.read(member) == local.read(member)


def test_the_cache_never_holds_more_and_keeps_what_was_used_last(
    bucket: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    fetch = shards.fetch_range
    monkeypatch.setattr(shards, "fetch_range", lambda *where: asked.append(where[2]) or fetch(*where))
    small = cache(tmp_path, max_bytes=5 * 4096)
    shard = index_of(tiny.root).sample(0).latents[0].shard
    for block in range(5):
        small.read(bucket, shard, block)
        assert small.used_bytes() <= 5 * 4096
    small.read(bucket, shard, 0)
    small.read(bucket, shard, 5)  # block 1 goes: 0 was used after it
    assert small.used_bytes() == 5 * 4096
    assert len(asked) == 6
    small.read(bucket, shard, 0)
    assert len(asked) == 6
    small.read(bucket, shard, 1)
    assert len(asked) == 7


def test_what_a_killed_writer_left_is_written_over(
    bucket: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    small = cache(tmp_path, max_bytes=5 * 4096)
    shard = index_of(tiny.root).sample(0).latents[0].shard
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shards.os, "replace", killed)
        small.read(bucket, shard, 0)
    small.read(bucket, shard, 1)
    files = [path for path in Path(small.folder).rglob("*") if path.is_file() and ".locks" not in path.parts]
    assert len(files) == 1


def test_a_block_is_fetched_once_by_many_at_the_same_time(
    bucket: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    fetch = shards.fetch_range
    monkeypatch.setattr(shards, "fetch_range", lambda *where: asked.append(where[2]) or fetch(*where))
    one = cache(tmp_path)
    shard = index_of(tiny.root).sample(0).latents[0].shard
    with ThreadPoolExecutor(8) as pool:
        data = list(pool.map(lambda _: one.read(bucket, shard, 2), range(8)))
    assert len(set(data)) == 1
    assert asked == [2 * 4096]


def test_missing_and_truncated_remote_shards_are_told_apart(bucket: str, tmp_path: Path) -> None:
    fsspec.filesystem("s3").pipe("pictures/root/short.tar", b"x" * 700)
    for reader in (ShardReader(root=bucket), ShardReader(root=bucket, cache=cache(tmp_path, block_bytes=512))):
        for offset in (600, 5000):
            with pytest.raises(BadSample, match="^truncated: .*short.tar"):
                reader.read(Member(shard="short.tar", offset=offset, num_bytes=200))
        with pytest.raises(BadSample, match="^missing: .*gone.tar"):
            reader.read(Member(shard="gone.tar", offset=0, num_bytes=10))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_s3_reads_ahead_and_sees_the_local_batches(
    bucket: str, tiny: Tiny, tmp_path: Path, workers: int
) -> None:
    config = settings_of(tiny)
    whole = global_batches(loaders(config, tiny.root, 1, 8, 1, steps=4))
    reading = LoaderConfig(workers=workers, cache_folder=str(tmp_path), cache_gb=0.004, block_mb=1, read_ahead_steps=2)
    remote = dataclasses.replace(
        config, root=bucket, steps=4, loader=reading, batch=BatchConfig(global_batch=8, micro_batch=8)
    )
    index = index_of(tiny.root)
    local = latents_of(tiny.root)
    source = LatentSource(
        reader=shard_reader(bucket, reading, index.digest), channels=local.channels, factor=local.factor
    )
    assert source.reader.cache is not None
    assert global_batches([Loader(remote, index, source, rank=0, world_size=1)]) == whole
    assert 0 < source.reader.cache.used_bytes() <= 4_000_000


def test_a_cache_too_small_for_the_windows_is_told(tmp_path: Path) -> None:
    write_root(tmp_path, {(32, 32): 11, (32, 64): 5})
    what = IndexOf(root=str(tmp_path), split="train")
    build_index(what, tmp_path / "index")
    index = open_index(tmp_path / "index")
    members = [[Member(shard="a", offset=0, num_bytes=1_000_000)] * 2]
    config = dataclasses.replace(base(), order=OrderConfig(piece_rows=2, window_pieces=4))  # 8 and 5 rows of 2 MB
    roomy, tight = (dataclasses.replace(config, loader=LoaderConfig(cache_gb=gb, block_mb=1)) for gb in (0.026, 0.013))
    assert cache_advice(roomy, index, lambda row: members[0], 1.0) is None
    assert cache_advice(tight, index, lambda row: members[0], 0.5) is None
    told = cache_advice(tight, index, lambda row: members[0], 1.0)
    assert told is not None and told.endswith("set order.window_pieces to 2")
