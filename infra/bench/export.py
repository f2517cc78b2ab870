"""Export beside its peers, on one thread, in turns in the same run. One JSON line for each way.

`write`: samples of picture, caption and JSON into tars of bounded size: Darkroom, webdataset's ShardWriter, `tarfile`.
`render`: photographs decoded, resized to cover 512 x 512, cropped at the centre, encoded at quality 95: Darkroom's
settings and img2dataset's resizer (center_crop, area, 4:2:0, its defaults). PSNR is of the decoded result against the
original resized by Pillow in floats with Lanczos, and against the mean over areas (OpenCV, floats), not encoded.
Rates are by CPU seconds of the process; the best of the repetitions counts.

    python infra/bench/export.py [--photos ../shared/data/photos_hires] [--samples 20000] [--repeat 3]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import webdataset  # noqa: E402
from img2dataset.resizer import Resizer  # noqa: E402
from PIL import Image  # noqa: E402

from curate.config import CurationConfig, ExportConfig  # noqa: E402
from pipelines.export import Tars, render  # noqa: E402

SIDE_PX = 512
BUCKET = (SIDE_PX, SIDE_PX)
SETTINGS = {
    "darkroom": ExportConfig(),
    "darkroom_420": ExportConfig(jpeg_chroma="420"),
    "darkroom_area": ExportConfig(downscale="area"),
    "darkroom_exact": ExportConfig(decode="exact"),
    "darkroom_exact_area": ExportConfig(decode="exact", downscale="area"),
}


def photos(folder: Path) -> list[bytes]:
    """Return the JPEGs of a folder whose sides are all at least 512 px."""
    found = [path.read_bytes() for path in sorted(folder.rglob("*.jp*g"))]
    return [data for data in found if min(Image.open(io.BytesIO(data)).size) >= SIDE_PX]


def ways() -> dict[str, Callable[[bytes], bytes]]:
    resizer = Resizer(SIDE_PX, "center_crop", False)

    def ours(settings: ExportConfig) -> Callable[[bytes], bytes]:
        config = CurationConfig(root="", export=replace(settings, pass_through=False))
        return lambda data: render(data, BUCKET, config)[0]

    return {"img2dataset": lambda data: resizer(io.BytesIO(data))[0]} | {
        name: ours(settings) for name, settings in SETTINGS.items()
    }


def references(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture's centre at 512 x 512 by Lanczos and by area, float (512, 512, 3)."""
    pixels_HWC = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.float32)
    height_px, width_px = pixels_HWC.shape[:2]
    factor = SIDE_PX / min(height_px, width_px)
    size = (max(SIDE_PX, round(width_px * factor)), max(SIDE_PX, round(height_px * factor)))
    channels = [Image.fromarray(pixels_HWC[..., c]).resize(size, Image.Resampling.LANCZOS) for c in range(3)]
    both = np.stack([np.asarray(c) for c in channels], -1), cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - SIDE_PX) // 2, (size[0] - SIDE_PX) // 2
    lanczos, area = (one[top : top + SIDE_PX, left : left + SIDE_PX].clip(0, 255) for one in both)
    return lanczos, area


def psnr_db(data: bytes, reference_HWC: np.ndarray) -> float:
    pixels_HWC = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
    return float(10 * np.log10(255**2 / np.mean((pixels_HWC - reference_HWC) ** 2)))


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def bench_render(files: list[bytes], repeat: int) -> None:
    wanted, by_name = [references(data) for data in files], ways()
    seconds = {name: float("inf") for name in by_name}
    for _ in range(repeat):
        for name, way in by_name.items():
            seconds[name] = min(seconds[name], cpu_seconds(lambda way=way: [way(data) for data in files]))
    for name, way in by_name.items():
        made = [way(data) for data in files]
        quality = [[psnr_db(data, one) for one in both] for data, both in zip(made, wanted, strict=True)]
        lanczos, area = np.mean(quality, axis=0)
        say(
            "render",
            name,
            images=len(files),
            images_per_cpu_s=round(len(files) / seconds[name], 1),
            times_img2dataset=round(seconds["img2dataset"] / seconds[name], 2),
            psnr_lanczos_db=round(lanczos, 2),
            psnr_area_db=round(area, 2),
            mean_kb=round(sum(map(len, made)) / len(made) / 1e3, 1),
        )


def samples(count: int) -> list[dict[str, bytes]]:
    """Return members of samples: noise of 20 kB for the picture, a caption, a JSON."""
    noise = np.random.default_rng(0).bytes(64 * 20_000)
    said = json.dumps({"original_width_px": 1024, "original_height_px": 768, "aesthetic": 5.5}).encode()
    return [
        {
            f"{at:032x}.jpg": noise[(at % 64) * 20_000 :][:20_000],
            f"{at:032x}.txt": b"a picture of a thing, number %d" % at,
            f"{at:032x}.json": said,
        }
        for at in range(count)
    ]


def write_ours(rows: list[dict[str, bytes]], folder: Path) -> None:
    tars = Tars("shards/x", 1e9)
    for row in rows:
        tars.add(row)
    for path in tars.close().values():
        path.unlink()


def write_webdataset(rows: list[dict[str, bytes]], folder: Path) -> None:
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=5_000_000, maxsize=1e9, verbose=0) as writer:
        for row in rows:
            key = next(iter(row)).partition(".")[0]
            writer.write({"__key__": key} | {name.partition(".")[2]: data for name, data in row.items()})


def write_tarfile(rows: list[dict[str, bytes]], folder: Path) -> None:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for row in rows:
            for name, data in row.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def bench_write(count: int, repeat: int) -> None:
    rows, writers = samples(count), (write_webdataset, write_tarfile, write_ours)
    seconds = {writer.__name__: float("inf") for writer in writers}
    for _ in range(repeat):
        for writer in writers:
            with tempfile.TemporaryDirectory() as folder:
                took = cpu_seconds(lambda writer=writer, folder=folder: writer(rows, Path(folder)))
            seconds[writer.__name__] = min(seconds[writer.__name__], took)
    for name, took in seconds.items():
        times = round(seconds["write_webdataset"] / took, 2)
        say("write", name, samples=count, samples_per_cpu_s=round(count / took), times_webdataset=times)


def say(what: str, way: str, **figures: Any) -> None:
    print(
        json.dumps({"bench": "export", "what": what, "way": way, **figures, "machine": platform.machine()}), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos_hires"))
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    bench_write(arguments.samples, arguments.repeat)
    files = photos(arguments.photos)
    if not files:
        raise SystemExit(f"export.py: no JPEGs of {SIDE_PX} px and more in {arguments.photos}: give --photos a folder")
    bench_render(files, arguments.repeat)


if __name__ == "__main__":
    main()
