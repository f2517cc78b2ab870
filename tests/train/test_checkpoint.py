"""Checkpoints beside the steps: what is published when, what a crash leaves, disks, object stores and world sizes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.train.saving import NUM_ELEMENTS, Vectors, numbers, one_rank, part, saved, state_at, whole
from train.checkpoint.__main__ import main
from train.checkpoint.files import (
    MANIFEST,
    VECTORS,
    BrokenCheckpoint,
    part_name,
    read_range,
    read_state,
    verify,
    write_manifest,
    write_part,
)
from train.checkpoint.newest import find, restore
from train.checkpoint.store import Store, open_store
from train.checkpoint.writer import CheckpointFailed, Writer
from train.launch import run_ranks

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def group() -> Iterator[None]:
    with one_rank():
        yield


def written_by(size: int, folder: Path, step: int = 1) -> str:
    """A checkpoint as `size` ranks write it."""
    store = open_store(folder)
    files = {}
    for rank in range(size):
        name = f"{part_name(rank, size, 'a' * 8)}.safetensors"
        vectors = {vector: part(whole(vector, step), rank, size) for vector in VECTORS}
        files[name] = write_part(store, f"step-00000001/{name}", vectors)
    write_manifest(store, "step-00000001", numbers(step), files)
    return f"{folder}/step-00000001"


def test_what_is_saved_comes_back_and_safetensors_reads_it(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 5)
    verify(checkpoint)
    assert read_state(checkpoint) == numbers(5)
    (file,) = Path(checkpoint).glob("part-*.safetensors")
    loaded = load_file(file)
    assert set(loaded) == set(VECTORS)
    for name in VECTORS:
        assert torch.equal(loaded[name], whole(name, 5))
    engine, ema = state_at(0)
    assert restore(checkpoint, engine, ema) == numbers(5)  # type: ignore[arg-type]
    assert torch.equal(engine.master, whole("master", 5)) and torch.equal(ema.part, whole("ema", 5))
    assert torch.equal(engine.moments["exp_avg_sq"], whole("exp_avg_sq", 5))
    assert (float(engine.moments["step"]), ema.num_updates) == (5.0, 5)
    assert (tmp_path / "latest").read_text() == "step-00000005"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005"]
    assert len(list(Path(checkpoint).iterdir())) == 2  # the part and the manifest: receipts are gone


@pytest.mark.parametrize(("before", "now"), [(8, 4), (4, 8), (2, 4), (4, 2), (1, 3), (7, 5), (256, 96)])
def test_any_number_of_ranks_reads_what_another_wrote(before: int, now: int, tmp_path: Path) -> None:
    checkpoint = written_by(before, tmp_path)
    length = -(-NUM_ELEMENTS // now)
    for name in VECTORS:
        for rank in range(now):
            mine = read_range(checkpoint, name, rank * length, length)
            assert torch.equal(mine, part(whole(name, 1), rank, now))


class Blocked:
    """Holds every write of a large file back until it is released."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        self._write = Store.write

    def __call__(self, store: Store, *args: object) -> dict:
        self.reached.set()
        assert self.released.wait(30)
        return self._write(store, *args)  # type: ignore[arg-type]


@contextlib.contextmanager
def blocked() -> Iterator[Blocked]:
    holds = Blocked()
    with mock.patch.object(Store, "write", lambda store, *args: holds(store, *args)):
        try:
            yield holds
        finally:
            holds.released.set()


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(tmp_path: Path) -> None:
    engine, ema = state_at(1)
    writer = Writer(tmp_path, engine.world, 3)
    with blocked() as holds:
        where = writer.save(engine, ema, numbers(1))  # type: ignore[arg-type]
        assert holds.reached.wait(30)
        engine.master.add_(1.0)  # the next step
        engine.moments["exp_avg"].zero_()
        ema.update(engine.master)
        assert not writer.failed and find(tmp_path, "auto") is None
        holds.released.set()
        writer.finish()
    assert find(tmp_path, "auto") == where
    for name in VECTORS:
        assert torch.equal(read_range(where, name, 0, NUM_ELEMENTS), whole(name, 1))


def test_collectives_belong_to_the_thread_of_the_steps(tmp_path: Path) -> None:
    called: list[tuple[str, str]] = []
    names = ("all_reduce", "barrier", "broadcast", "broadcast_object_list", "all_gather_object")
    engine, ema = state_at(1)
    with contextlib.ExitStack() as stack:
        for name in names:
            plain = getattr(dist, name)

            def noted(*args, _plain=plain, _name=name, **words):  # noqa: ANN001, ANN002, ANN003, ANN202
                called.append((_name, threading.current_thread().name))
                return _plain(*args, **words)

            stack.enter_context(mock.patch.object(dist, name, noted))
        writer = Writer(tmp_path, engine.world, 3)
        for step in (1, 2):
            writer.save(engine, ema, numbers(step))  # type: ignore[arg-type]
        writer.finish()
    assert {thread for _, thread in called} == {threading.main_thread().name}
    assert "all_reduce" in {name for name, _ in called}


def test_a_crash_at_any_write_leaves_the_checkpoint_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = saved(tmp_path, 1)
    crashes = 0
    while True:
        with crash_at(crashes), contextlib.suppress(CheckpointFailed):
            saved(tmp_path, 2)
        found = find(tmp_path, "auto")
        if found != before:
            break
        crashes += 1
        verify(before)
        unfinished = (tmp_path / "step-00000002").exists()
        assert unfinished == ("step-00000002: no manifest.json: it was never finished" in capsys.readouterr().out)
    assert found == f"{tmp_path}/step-00000002"
    assert crashes == 4  # the name of the start, the part, the receipt, the manifest
    for name in VECTORS:  # of the last attempt, and nothing of those before is left beside it
        assert torch.equal(read_range(found, name, 0, NUM_ELEMENTS), whole(name, 2))
    saved(tmp_path, 2)
    assert len(list(Path(found).iterdir())) == 2


@contextlib.contextmanager
def crash_at(number: int) -> Iterator[None]:
    """Let the write of this number, large files and small ones, break off in its middle, and all later ones."""
    done, plain_write, plain_put = [0], Store.write, Store.put

    def counts() -> bool:
        done[0] += 1
        return done[0] - 1 >= number

    def write(store: Store, name: str, pieces: Iterator[memoryview]) -> dict:
        if counts():
            plain_write(store, name, [next(iter(pieces))])
            raise OSError("broken off")
        return plain_write(store, name, pieces)

    def put(store: Store, name: str, data: bytes) -> None:
        if counts():
            raise OSError("broken off")
        plain_put(store, name, data)

    with mock.patch.object(Store, "write", write), mock.patch.object(Store, "put", put):
        try:
            yield
        except ValueError as error:
            assert "broken off" in str(error)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def one_part(checkpoint: Path) -> Path:
    return next(checkpoint.glob("part-*"))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: flip(one_part(path), -1), "part-.*differs from its sha256"),
        (lambda path: flip(one_part(path), 3000), "part-.*differs from its sha256"),
        (lambda path: one_part(path).write_bytes(b""), "part-.* has 0 bytes, but the manifest says 1[67]"),
        (lambda path: one_part(path).unlink(), "part-.* is missing"),
        (lambda path: (path / MANIFEST).unlink(), "no manifest.json: it was never finished"),
        (lambda path: (path / MANIFEST).write_bytes(b""), "manifest.json is damaged: JSONDecodeError"),
        (lambda path: (path / MANIFEST).write_text("[]"), "manifest.json is damaged"),
        (
            lambda path: flip(path / MANIFEST, (path / MANIFEST).read_text().index('"step": 2') + 8),
            "manifest.json is damaged: its contents differ",
        ),
    ],
)
def test_broken_ones_are_passed_over_by_name_and_reason(
    harm, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = saved(tmp_path, 1), saved(tmp_path, 2)
    harm(Path(bad))
    capsys.readouterr()
    assert find(tmp_path, "auto") == good
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"passing over a broken checkpoint: {bad}: ")
    with pytest.raises(BrokenCheckpoint, match=f"step-00000002: {why}"):
        find(tmp_path, bad)
    assert find(tmp_path, "none") is None


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint = Path(saved(tmp_path, 1))
    body = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(body | {"format": 99}))
    with pytest.raises(BrokenCheckpoint, match="format 99, but this version reads format 2"):
        verify(checkpoint)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 1)
    engine, ema = state_at(0)
    smaller = Vectors(engine.world, engine.master, engine.moments, torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="1003 parameters, but unet has 12"):
        restore(checkpoint, smaller, ema)  # type: ignore[arg-type]


def test_the_newest_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    for step in (1, 2):
        saved(tmp_path, step)
    (tmp_path / "step-00000001" / MANIFEST).unlink()  # killed while it was written, or while it was removed
    for step in (3, 4, 5):
        saved(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000004", "step-00000005"]


def test_a_part_that_fills_the_disk_is_removed_at_once(tmp_path: Path) -> None:
    """The next start writes its name into a lock and its curves before it looks at checkpoints."""
    engine, ema = state_at(1)
    writer = Writer(tmp_path, engine.world, 3)

    def full(file: IO[bytes], piece: memoryview) -> None:
        file.write(piece[:100])
        raise OSError(28, "No space left on device")

    with mock.patch("train.checkpoint.store._write_all", full):
        writer.save(engine, ema, numbers(1))  # type: ignore[arg-type]
        with pytest.raises(CheckpointFailed, match="No space left on device"):
            writer.finish()
    assert list((tmp_path / "step-00000001").iterdir()) == []


def test_what_earlier_starts_never_finished_does_not_fill_the_disk(tmp_path: Path) -> None:
    """There may be room for those that are kept and one more: a part of a killed start would let none be written."""
    saved(tmp_path, 1)
    broken = one_part(Path(saved(tmp_path, 3)))
    broken.write_bytes(b"")  # has a manifest: someone may mend it
    place = tmp_path / "step-00000002"
    place.mkdir()
    (place / f"{part_name(0, 1, 'a' * 8)}.safetensors").write_bytes(b"half of it")
    (place / "notes.txt").write_text("not of a checkpoint")
    full = OSError(28, "No space left on device")
    with mock.patch.object(Store, "put", side_effect=full), pytest.raises(ValueError, match="No space left"):
        Writer(tmp_path, state_at(1)[0].world, keep=1)
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    assert broken.exists() and find(tmp_path, "auto") == f"{tmp_path}/step-00000001"


def test_what_was_passed_over_never_costs_the_one_just_written(tmp_path: Path) -> None:
    saved(tmp_path, 9)
    broken = one_part(tmp_path / "step-00000009")
    broken.write_bytes(b"")
    found = saved(tmp_path, 6, keep=1)
    assert find(tmp_path, "auto") == found
    assert find(tmp_path, "auto") == saved(tmp_path, 6, keep=1)
    assert saved(tmp_path, 9, keep=1) == find(tmp_path, "auto")  # written again in its turn


def test_two_ranks_publish_together_and_one_that_cannot_write_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert run_ranks("tests.train.ranks_that_save", [str(tmp_path)], 2) == 0
    told = f"{tmp_path}: a checkpoint could not be written: rank 1: OSError: [Errno 28] No space left on device"
    assert [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)] == [told, told]
    for rank in (0, 1):
        said = (tmp_path / f"blind-{rank}").read_text()
        assert f"checkpoints = {tmp_path}/of-rank-{rank}: a rank does not see what rank 0 writes there" in said
    for name in VECTORS:
        assert torch.equal(read_range(tmp_path / "step-00000002", name, 0, NUM_ELEMENTS), whole(name, 2))


def test_a_store_that_cannot_be_written_is_named_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="checkpoints = .*/file/below: cannot write there: "):
        Writer(tmp_path / "file/below", state_at(0)[0].world, 1)


def test_an_object_store_holds_checkpoints_too(s3, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "s3://bucket/run/checkpoints"
    for step in (1, 2, 3):
        saved(folder, step, keep=2)
    assert s3.cat_file("bucket/run/checkpoints/latest") == b"step-00000003"
    assert len(s3.ls("bucket/run/checkpoints/step-00000003")) == 2
    assert [path.rsplit("/", 1)[-1] for path in s3.ls("bucket/run/checkpoints")] == [
        "latest",
        "step-00000002",
        "step-00000003",
    ]
    newest = find(folder, "auto")
    assert newest == f"{folder}/step-00000003"
    for name in VECTORS:
        assert torch.equal(read_range(newest, name, 100, 300), whole(name, 3)[100:400])
    engine, ema = state_at(0)
    assert restore(newest, engine, ema) == numbers(3)  # type: ignore[arg-type]
    assert torch.equal(engine.master, whole("master", 3))
    s3.rm("bucket/run/checkpoints/step-00000003/manifest.json")
    assert find(folder, "auto") == f"{folder}/step-00000002"
    assert "step-00000003: no manifest.json: it was never finished" in capsys.readouterr().out


def test_a_bucket_that_is_not_there_is_named(s3) -> None:
    with pytest.raises(ValueError, match="checkpoints = s3://nowhere/run: cannot write there: "):
        Writer("s3://nowhere/run", state_at(0)[0].world, 1)


def test_the_command_says_which_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    old, new = (saved(folder, step) for step in (1, 2))
    assert main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert main([str(tmp_path)]) == 0 and capsys.readouterr().out == shown  # the run's folder
    assert f"{old}: whole, step 1, {NUM_ELEMENTS:,} parameters, 0.000 GB in 1 parts\n{new}: whole, step 2," in shown
    (file,) = Path(new).glob("part-*")
    file.write_bytes(file.read_bytes()[:-4])
    assert main([str(folder), "--json"]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["whole"] and first["ema_updates"] == 1 and first["num_bytes"] > 16 * NUM_ELEMENTS
    assert not second["whole"] and second["why"].startswith(f"{file.name} has")
    assert main([old]) == 0 and main([new]) == 1
    (Path(old) / "manifest.json").unlink()
    assert main([old]) == 1
    assert f"{old}: NOT whole: no manifest.json" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "elsewhere")])
    assert ended.value.code == 2 and "elsewhere: nothing there; name the checkpoints" in capsys.readouterr().err
