"""The files of a checkpoint: parts of the flat fp32 state, and the manifest that is written last and makes it exist.

`step-00000120/part-00000-of-00002.1f0c9a3e.safetensors` holds one rank's stretch of the flat weights, both moments
and the averaged weights; the eight digits name the start of the run that wrote it, so that what another start left
under the same step is never mixed with it. `manifest.json` has the state and every part's length, size and sha256.
The parts in a row are the whole vectors in the order of the network's parameters, whatever the number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from curate.bad_input import BadInput
from train.checkpoint.store import CHUNK_BYTES, Store, open_store

MANIFEST, POINTER, FORMAT = "manifest.json", "latest", 2
MOMENTS = ("exp_avg", "exp_avg_sq")
VECTORS = ("master", *MOMENTS, "ema")
READERS = 8
"""Parts that are hashed at the same time."""


class BrokenCheckpoint(BadInput):
    """A checkpoint was never finished, lacks files, or their contents differ from the manifest."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The few numbers beside the vectors; seed and step are all of the random state and of the data position."""

    step: int
    """Optimiser steps done, and the next global batch."""
    seed: int
    """Seed of the run."""
    ema_updates: int
    """Updates of the averaged weights."""
    num_elements: int
    """Parameters, without the padding."""
    adam_step: float
    """AdamW's own counter, without skipped steps."""
    config: dict[str, Any]
    """Settings of the run."""
    data_digest: str = "-"
    """Identity of the train index, whose samples the steps are counted over, and of the autoencoder."""


def folder_of(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"step-{step:08d}"


def part_name(rank: int, world_size: int, attempt: str) -> str:
    """Return a part's name without its ending."""
    return f"part-{rank:05d}-of-{world_size:05d}.{attempt}"


def write_part(store: Store, name: str, vectors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write one rank's fp32 vectors of equal length, in CPU memory, and return the manifest's entry of the file."""
    lengths = {tensor.numel() for tensor in vectors.values()}
    assert len(lengths) == 1 and all(tensor.dtype == torch.float32 for tensor in vectors.values())
    return {"num_elements": lengths.pop()} | store.write(name, _safetensors(vectors))


def write_manifest(store: Store, folder: str, state: State, files: dict[str, Any]) -> None:
    """Make the checkpoint exist."""
    body = {"format": FORMAT, "state": vars(state), "files": files}
    store.put(f"{folder}/{MANIFEST}", json.dumps(body | {"digest": _digest(body)}, indent=1).encode())


def read_manifest(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint's manifest; raises BrokenCheckpoint where it is missing or damaged."""
    where = os.fspath(checkpoint)
    try:
        body = json.loads(open_store(where).get(MANIFEST))
        digest = body.pop("digest")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BrokenCheckpoint(f"{where}: no {MANIFEST}: it was never finished, or is no checkpoint") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"{where}: {MANIFEST} is damaged: {error!r}") from error
    if body.get("format") != FORMAT:
        raise BrokenCheckpoint(f"{where}: format {body.get('format')}, but this version reads format {FORMAT}")
    if digest != _digest(body):
        raise BrokenCheckpoint(f"{where}: {MANIFEST} is damaged: its contents differ from its digest")
    return body


def read_state(checkpoint: str | os.PathLike[str]) -> State:
    """Return the numbers of a checkpoint; raises BrokenCheckpoint where there is no whole manifest."""
    return State(**read_manifest(checkpoint)["state"])


def verify(checkpoint: str | os.PathLike[str]) -> None:
    """Read every byte; raise BrokenCheckpoint where a file is missing or is not what the manifest says."""
    store, files = open_store(checkpoint), read_manifest(checkpoint)["files"]
    with ThreadPoolExecutor(READERS) as threads:
        faults = threads.map(lambda name: _fault(store, name, files[name]), files)
    if found := [fault for fault in faults if fault]:
        raise BrokenCheckpoint(f"{os.fspath(checkpoint)}: {'; '.join(found)}")


def read_range(checkpoint: str | os.PathLike[str], name: str, start: int, size: int) -> torch.Tensor:
    """Return `size` elements of a flat fp32 vector from `start` on; beyond the end lies padding of zeros."""
    store, files = open_store(checkpoint), read_manifest(checkpoint)["files"]
    out = torch.zeros(size)
    offset = 0
    for file in sorted(files):
        length = files[file]["num_elements"]
        low, high = max(start, offset), min(start + size, offset + length)
        if low < high:
            place = _start_of(store, file, name) + 4 * (low - offset)
            store.read_into(file, place, _bytes_of(out[low - start : high - start]))
        offset += length
    return out


def _safetensors(vectors: dict[str, torch.Tensor]) -> Iterator[memoryview]:
    """Yield a safetensors file by pieces: the library writes local files only, and would have to be read back to hash.

    Format: https://huggingface.co/docs/safetensors, eight bytes with the header's length, the header, the data.
    """
    header, end = {}, 0
    for name, tensor in vectors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in vectors.values():
        data = _bytes_of(tensor)
        for low in range(0, len(data), CHUNK_BYTES):
            yield data[low : low + CHUNK_BYTES]


def _start_of(store: Store, file: str, name: str) -> int:
    """Return where a vector's bytes begin in a part."""
    length = bytearray(8)
    store.read_into(file, 0, memoryview(length))
    header = bytearray(int.from_bytes(length, "little"))
    store.read_into(file, 8, memoryview(header))
    return 8 + len(header) + json.loads(header)[name]["data_offsets"][0]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    return memoryview(tensor.numpy()).cast("B")


def _fault(store: Store, name: str, entry: dict[str, Any]) -> str | None:
    """Return what is wrong with a file, or None."""
    digest, num_bytes = hashlib.sha256(), 0
    try:
        for chunk in store.chunks(name):
            digest.update(chunk)
            num_bytes += len(chunk)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error}"
    if num_bytes != entry["num_bytes"]:
        return f"{name} has {num_bytes} bytes, but the manifest says {entry['num_bytes']}"
    return None if digest.hexdigest() == entry["sha256"] else f"{name} differs from its sha256 in the manifest"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
