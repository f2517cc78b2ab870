"""A small root folder as curation leaves it, made without curation: pictures, shards, tables, latents."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

CLIP_JSON = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, "layers": 3},
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A root and the YAML file that trains on it."""

    root: Path
    config: Path

    def variant(self, folder: Path, model: str = "base", **changes: Any) -> Path:
        """Write the YAML file again with other values and another output folder."""
        document = yaml.safe_load(self.config.read_text())
        document["train"][model] |= {"out": str(folder / "out")} | changes
        path = folder / "darkroom.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(document))
        return path


def picture(seed: int, bucket: tuple[int, int]) -> Image.Image:
    """A smooth coloured field with a bright square, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((bucket[1], bucket[0]), Image.Resampling.BICUBIC)
    left, top = rng.integers(0, bucket[1] // 2), rng.integers(0, bucket[0] // 2)
    image.paste(tuple(rng.integers(0, 255, 3).tolist()), (int(left), int(top), int(left) + 8, int(top) + 8))
    return image


def write_root(root: Path, buckets: dict[tuple[int, int], int], *, num_val: int = 4) -> list[dict]:
    """Write shards and their table; `buckets` says how many train samples each shape has."""
    rows = []
    number = 0
    for split in ("train", "val"):
        for bucket, count in buckets.items():
            path = root / f"shards/{split}/{bucket[0]}x{bucket[1]}-00000.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            count = count if split == "train" else num_val // len(buckets)
            with tarfile.open(path, "w") as tar:
                for _ in range(count):
                    rows.append(_sample(tar, root, path, split, bucket, number))
                    number += 1
    _table(root, "shards", rows)
    return rows


def write_latents(root: Path, rows: list[dict], vae: torch.nn.Module) -> None:
    """Encode every sample as it is and mirrored, as the encode step does."""
    from train.autoencoder import encode_moments, latent_facts, pixels

    entries = []
    for split in ("train", "val"):
        path = root / f"latents/{split}/all-00000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for row in (row for row in rows if row["split"] == split):
                image = Image.open(io.BytesIO(member_bytes(root, row)))
                for variant, flipped in enumerate((image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
                    buffer = io.BytesIO()
                    np.save(buffer, encode_moments(vae, pixels(flipped)[None])[0])
                    offset = _add(tar, f"{row['uid']}.v{variant}.npy", buffer.getvalue())
                    place = {"shard": str(path.relative_to(root)), "offset": offset, "num_bytes": buffer.tell()}
                    entries.append({"uid": row["uid"], "split": split, "variant": variant} | place)
    _table(root, "latents", entries)
    (root / "latents/run.json").write_text(json.dumps(latent_facts(vae)))
    shards = json.loads((root / "tables/shards/_run.json").read_text())["fragments"]
    (root / "latents/shards.json").write_text(json.dumps({name: said["receipt"] for name, said in shards.items()}))


def write_clip(folder: Path, name: str, width: int) -> str:
    """Write an open_clip model config with a text tower of this width, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(CLIP_JSON | {"embed_dim": width, "text_cfg": CLIP_JSON["text_cfg"] | {"width": width}}))
    return str(path)


def member_bytes(root: Path, row: dict) -> bytes:
    """Read a member by its offset."""
    with (root / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        return file.read(row["num_bytes"])


def _sample(tar: tarfile.TarFile, root: Path, path: Path, split: str, bucket: tuple[int, int], number: int) -> dict:
    uid = hashlib.sha256(f"{split} {number}".encode()).hexdigest()[:32]
    caption = f"picture number {number} of a coloured field"
    buffer = io.BytesIO()
    picture(number, bucket).save(buffer, "JPEG", quality=95)
    offset = _add(tar, f"{uid}.jpg", buffer.getvalue())
    _add(tar, f"{uid}.txt", caption.encode())
    _add(tar, f"{uid}.json", b"{}")
    return {
        "uid": uid,
        "split": split,
        "shard": str(path.relative_to(root)),
        "offset": offset,
        "num_bytes": buffer.tell(),
        "bucket_height_px": bucket[0],
        "bucket_width_px": bucket[1],
        "original_height_px": bucket[0] * 3,
        "original_width_px": bucket[1] * 4,
        "crop_top_px": 0,
        "crop_left_px": bucket[1] // 6,
        "aesthetic": 4.0 + number % 5 * 0.5,
        "caption": caption,
        "source": "synthetic",
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    offset = tar.offset + len(header.tobuf(tar.format))
    tar.addfile(header, io.BytesIO(data))
    return offset


def _table(root: Path, name: str, rows: list[dict]) -> None:
    """Write a table in two fragments, one for each split, and the manifest that names them."""
    schema = {"offset": pa.int64(), "num_bytes": pa.int64(), "aesthetic": pa.float32(), "variant": pa.int8()}
    schema |= {key: pa.int32() for key in rows[0] if key.endswith("_px")}
    fragments = {}
    for split in ("train", "val"):
        mine = [row for row in rows if row["split"] == split]
        columns = {key: pa.array([row[key] for row in mine], schema.get(key, pa.string())) for key in rows[0]}
        path = root / f"tables/{name}/{split}-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        fragments[path.stem] = {"rows": len(mine), "receipt": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    (root / f"tables/{name}/_run.json").write_text(json.dumps({"fragments": fragments}))
