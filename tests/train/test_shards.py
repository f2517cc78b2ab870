"""Shards from S3 (moto's server) through the bounded cache: the same bytes, few requests, never too full."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests.train.synthetic_root import Tiny, write_root
from tests.train.test_data import global_batches, index_of, latents_of, loaders, settings_of
from train.config import BatchConfig, LoaderConfig, OrderConfig
from train.data import shards
from train.data.loader import Loader
from train.data.read_ahead import ReadAhead, cache_advice
from train.data.samples import LatentSource
from train.data.shards import BadSample, BlockCache, ShardReader, shard_reader
from train.index.build import IndexOf, build_index, is_current
from train.index.reader import Member, open_index
from train.recipes import base

REPOSITORY = Path(__file__).parents[2]


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
    for part in ("latents", "shards", "tables"):
        store.put(str(tiny.root / part), f"pictures/root/{part}", recursive=True)
    store.put(str(tiny.root / "shards"), "pictures/tars/shards", recursive=True)
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


def block_of(shard: str, number: int) -> Member:
    """All of a block of `cache`."""
    return Member(shard=shard, offset=number * 4096, num_bytes=4096)


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
        small.read(bucket, block_of(shard, block))
        assert small.used_bytes() <= 5 * 4096
    small.read(bucket, block_of(shard, 0))
    small.read(bucket, block_of(shard, 5))  # block 1 goes: 0 was used after it
    assert small.used_bytes() == 5 * 4096
    assert len(asked) == 6
    small.read(bucket, block_of(shard, 0))
    assert len(asked) == 6
    small.read(bucket, block_of(shard, 1))
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
        small.read(bucket, block_of(shard, 0))
    small.read(bucket, block_of(shard, 1))
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
        data = list(pool.map(lambda _: one.read(bucket, block_of(shard, 2)), range(8)))
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


def test_stretches_of_kept_blocks_are_put_together(bucket: str, tiny: Tiny, tmp_path: Path) -> None:
    one, shard = cache(tmp_path), index_of(tiny.root).sample(0).latents[0].shard
    whole = b"".join(one.read(bucket, block_of(shard, number)) for number in range(3))
    (held,) = [path for path in tmp_path.iterdir() if path.is_file() and path.read_bytes() == whole[4096:8192]]
    held.write_bytes(b"\0" * 100 + whole[4196:8192])  # bytes that nobody asks for
    for first, last in ((4196, 4200), (5000, 8192), (5000, 9000), (8192, 9000)):
        member = Member(shard=shard, offset=first, num_bytes=last - first)
        assert one.read(bucket, member) == whole[first:last]
    assert (
        one.read(bucket, Member(shard=shard, offset=4000, num_bytes=200))
        == whole[4000:4096] + b"\0" * 100 + whole[4196:4200]
    )


def test_blocks_are_fetched_some_steps_ahead_once_each_whatever_the_store_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step n needs two stretches of block n and one of block n + 1; block 3 cannot be fetched."""
    asked: list[int] = []

    def fetch(_root: str, _shard: str, offset: int, num_bytes: int) -> bytes:
        asked.append(offset // 4096)
        if offset == 3 * 4096:
            raise ConnectionError("the store is busy")
        return b"x" * num_bytes

    def members_of(step: int) -> list[Member]:
        return [Member(shard="a.tar", offset=4096 * step + at, num_bytes=9) for at in (5, 50, 4096)]

    monkeypatch.setattr(shards, "fetch_range", fetch)
    reader = ShardReader(root="memory://pictures", cache=cache(tmp_path))
    config = dataclasses.replace(base(), steps=7, loader=LoaderConfig(read_ahead_steps=2, threads=3))
    ahead = ReadAhead(config, reader, members_of, 1)
    for reached, blocks in ((1, {1, 2, 3}), (3, {1, 2, 3, 4, 5}), (4, {1, 2, 3, 4, 5, 6})):
        ahead.reached(reached)
        assert settled(asked) == blocks
    assert [asked.count(block) for block in range(1, 7)] == [1, 1, 2, 1, 1, 1]  # 3 is asked for by steps 2 and 3
    assert "read ahead: a.tar: the store is busy" in capsys.readouterr().err
    ahead.stop()
    ahead.reached(6)
    assert settled(asked) == {1, 2, 3, 4, 5, 6}


def settled(asked: list[int]) -> set[int]:
    """What was asked for when nothing new has come for a while."""
    count = -1
    while count != len(asked):
        count = len(asked)
        time.sleep(0.3)
    return set(asked)


def test_an_index_built_from_s3_is_the_local_one_and_the_check_reads_all_of_it(
    bucket: str, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/shards").symlink_to(tiny.root / "shards")
    for name, there, here in (("root", bucket, tiny.root), ("tars", "s3://pictures/tars", tmp_path / "tars")):
        for split in ("train", "val"):
            places = [IndexOf(root=str(root), split=split, resolution_px=64) for root in (there, here)]
            folders = [tmp_path / f"{name}-{place}" / split for place in ("there", "here")]
            for what, folder in zip(places, folders, strict=True):
                build_index(what, folder)
                assert is_current(what, folder)
            for file in ("rows.bin", "captions.bin", "shards.txt"):
                assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes() != b""
    command = [sys.executable, "-m", "train.data", "--root", bucket, "--index", str(tmp_path / "root-there"), "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["split"], line["rows"], line["faults"]) for line in told] == [("train", 30, 0), ("val", 4, 0)]


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
