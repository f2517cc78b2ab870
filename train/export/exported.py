"""Where exported networks lie, how a folder comes there whole, and diffusers' pipelines of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from train.config import TrainConfig


def export_folder(config: TrainConfig) -> Path:
    """Return where the diffusers folder goes."""
    return Path(f"{config.root}/export/{config.model}")


def single_file_name(config: TrainConfig) -> str:
    """Return the name of the file with the original names, inside the export folder."""
    return f"sdxl_{config.model}.safetensors"


def draft_of(final: Path) -> Path:
    """Return where to write a folder before it is published; nothing lies there."""
    draft = final.with_name(f".{final.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    return draft


def publish(draft: Path, final: Path) -> None:
    """Put a finished folder in the place of the old one by renames."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(draft, final)
    shutil.rmtree(old, ignore_errors=True)


def load_pipeline(model: str, folder: Path) -> Any:
    """Return diffusers' pipeline of an exported folder, without progress bars."""
    hide_loading_bars()
    pipeline = pipeline_class(model).from_pretrained(folder, add_watermarker=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_single_file(model: str, path: Path) -> Any:
    """Return diffusers' pipeline of an exported single file, in fp32; the shapes come from the folder it lies in."""
    import torch

    hide_loading_bars()
    pipeline = pipeline_class(model).from_single_file(
        str(path), config=str(path.parent), local_files_only=True, torch_dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_class(model: str) -> Any:
    """Return the class of diffusers that runs a network."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    return {"base": StableDiffusionXLPipeline, "refiner": StableDiffusionXLImg2ImgPipeline}[model]


def hide_loading_bars() -> None:
    """Switch off the bars that diffusers, transformers and the hub client draw for each file."""
    import diffusers
    import huggingface_hub.utils
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
