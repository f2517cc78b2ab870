#!/usr/bin/env python3
"""mosaicml-streaming on the samples of a root: prints samples/s. Run with the peers' Python by train_data.py.

    .venv-peers/bin/python infra/bench/streaming_reader.py ROOT latents|pictures BATCH WORKERS

Writes the samples as MDS, one stream for each bucket, beside the tars, unless that was done before.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def augmented(jpeg: bytes, height_px: int, width_px: int) -> np.ndarray:
    """Decode, resize, flip and jitter as a training script with Pillow and torchvision does; uint8 CHW."""
    from torchvision.transforms import v2

    with Image.open(io.BytesIO(jpeg)) as image:
        picture = image.convert("RGB").resize((width_px, height_px), Image.Resampling.BILINEAR)
    jitter = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.05, 0.05, 0.05)])
    return np.asarray(jitter(picture)).transpose(2, 0, 1).copy()


def main() -> None:
    root, kind, batch, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    from streaming import Stream, StreamingDataset
    from torch.utils.data import DataLoader

    class Samples(StreamingDataset):
        def __getitem__(self, at: int) -> np.ndarray:
            sample = super().__getitem__(at)
            if kind == "latents":
                return sample["moments"]
            return augmented(sample["jpg"], sample["height"], sample["width"])

    if not (root / "mds").exists():
        write(root, kind)
    streams = [Stream(local=str(folder)) for folder in sorted((root / "mds").iterdir())]
    data = Samples(streams=streams, batch_size=batch, shuffle=True, batching_method="per_stream")
    loader = DataLoader(data, batch_size=batch, num_workers=workers, prefetch_factor=4, drop_last=True)
    times, sizes = [], []
    for arrays in loader:
        times.append(time.perf_counter())
        sizes.append(len(arrays))
    half = len(times) // 2
    print(sum(sizes[half:]) / (times[-1] - times[half - 1]))


def write(root: Path, kind: str) -> None:
    from streaming import MDSWriter

    columns = {"moments": "ndarray"} if kind == "latents" else {"jpg": "bytes", "height": "int", "width": "int"}
    tars = sorted((root / ("latents" if kind == "latents" else "shards") / "train").glob("*.tar"))
    for bucket in sorted({path.name.split("-")[0] for path in tars}):
        with MDSWriter(out=str(root / f"mds/{bucket}"), columns=columns) as writer:
            for path in tars:
                if path.name.startswith(f"{bucket}-"):
                    for sample in samples(path, kind):
                        writer.write(sample)


def samples(path: Path, kind: str) -> list[dict]:
    found = []
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for name, data in members.items():
        if kind == "latents":
            found.append({"moments": np.load(io.BytesIO(data))})
        elif name.endswith(".jpg"):
            said = json.loads(members[name.replace(".jpg", ".json")])
            found.append({"jpg": data, "height": said["bucket_height_px"], "width": said["bucket_width_px"]})
    return found


if __name__ == "__main__":
    main()
