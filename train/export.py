"""python -m train.export: full diffusers folders of base and refiner, loaded back and compared."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.command_line import DONE, FAILED, stop, told_in_one_line
from curate.config_help import About
from train.config import TIME_IDS, TrainConfig
from train.recipes import RECIPES
from train.settings import read_train_settings

PROG = "train.export"
ABOUT = About(
    command="python -m train.export",
    example="python -m train.export --config darkroom.yaml",
    reads="<root>/train/base/unet_ema/ and refiner/unet_ema/, the autoencoder and the text towers",
    writes="<root>/export/base/ and refiner/, each loaded back and compared first",
)
TEXT_TOLERANCE = 1e-4


def main(argv: Sequence[str]) -> int:
    """Export every network that was trained; exit code 1 where a loaded folder computes something else."""
    settings = {
        model: read_train_settings(model, argv, prog=PROG, description="Export diffusers folders.", about=ABOUT)[0]
        for model in RECIPES
    }
    trained = {model: config for model, config in settings.items() if (trained_unet(config) / "config.json").exists()}
    if not trained:
        stop(PROG, f"nothing to export: no {trained_unet(settings['base'])}; train first (python -m train.run base)")
    with told_in_one_line(PROG, "the folders of before are untouched: run it again"):
        return DONE if all([export(config) for config in trained.values()]) else FAILED


def export(config: TrainConfig) -> bool:
    """Write one folder, load it back, print what was compared, and return whether it agrees."""
    hide_loading_bars()
    pipeline, text = build_pipeline(config)
    final = export_folder(config)
    draft = final.with_name(f".{final.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    pipeline.save_pretrained(draft)
    for name, tower in _tokenizer_names(config):
        from train.convert import write_tokenizer

        write_tokenizer(draft / name, tower)
    unet_difference, text_difference = compare(config, draft, pipeline.unet, text)
    agrees = unet_difference == 0.0 and text_difference <= TEXT_TOLERANCE
    if agrees:
        publish(draft, final)
    where = final if agrees else f"NOT published, see {draft}"
    print(
        f"{config.model}: {where}; loaded back by {type(pipeline).__name__}:"
        f" U-Net output differs by {unet_difference:g}, text encoder output by {text_difference:.1e}",
        flush=True,
    )
    return agrees


def build_pipeline(config: TrainConfig) -> tuple[Any, Any]:
    """Return diffusers' pipeline with the trained U-Net, and the open_clip towers that it was trained with."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from train.autoencoder import load_vae
    from train.conditioning import TextEncoder
    from train.convert import text_model

    text = TextEncoder(config.text_towers, torch.device("cpu"), torch.float32)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(trained_unet(config)),
        "vae": load_vae(str(config.vae)),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": text_model(text.towers[-1], projection=True),
        "tokenizer_2": _tokenizer(config.text_towers[-1]),
        "scheduler": EulerDiscreteScheduler(**scheduler_arguments(config)),
        "add_watermarker": False,
    }
    if config.model == "refiner":
        return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True), text
    parts |= {
        "text_encoder": text_model(text.towers[0], projection=False),
        "tokenizer": _tokenizer(config.text_towers[0]),
    }
    return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True), text


def compare(config: TrainConfig, folder: Path, unet: Any, text: Any) -> tuple[float, float]:
    """Load the folder and return the largest differences of a U-Net forward and of the text embeddings."""
    import torch

    loaded = load_pipeline(config.model, folder)
    with torch.no_grad():
        captions = ["a photograph of a cat, sitting on a red chair", ""]
        text_BLD, pooled_BD = text(captions)
        theirs_BLD, _, theirs_BD, _ = loaded.encode_prompt(
            captions, do_classifier_free_guidance=False, device="cpu", num_images_per_prompt=1
        )
        inputs = _unet_inputs(config, text_BLD, pooled_BD)
        unet_difference = (unet(**inputs)[0] - loaded.unet(**inputs)[0]).abs().max()
    text_difference = max((text_BLD - theirs_BLD).abs().max(), (pooled_BD - theirs_BD).abs().max())
    return float(unet_difference), float(text_difference)


def hide_loading_bars() -> None:
    """Switch off the bars that diffusers, transformers and the hub client draw for each file."""
    import diffusers
    import huggingface_hub.utils
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


def load_pipeline(model: str, folder: Path) -> Any:
    """Return diffusers' pipeline of an exported folder, without progress bars."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    hide_loading_bars()
    kind = {"base": StableDiffusionXLPipeline, "refiner": StableDiffusionXLImg2ImgPipeline}[model]
    pipeline = kind.from_pretrained(folder, add_watermarker=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scheduler_arguments(config: TrainConfig) -> dict[str, Any]:
    """Return the sampler's schedule: the one of training."""
    objective = config.objective
    return {
        "num_train_timesteps": objective.num_timesteps,
        "beta_start": objective.beta_start,
        "beta_end": objective.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[objective.prediction],
        "rescale_betas_zero_snr": objective.zero_terminal_snr,
        "timestep_spacing": "trailing" if objective.zero_terminal_snr else "leading",
        "steps_offset": 1,
    }


def trained_unet(config: TrainConfig) -> Path:
    """Return where training left the averaged weights."""
    return Path(config.out_folder) / "unet_ema"


def export_folder(config: TrainConfig) -> Path:
    """Return where the diffusers folder goes."""
    return Path(f"{config.root}/export/{config.model}")


def publish(draft: Path, final: Path) -> None:
    """Put a finished folder in the place of the old one by renames."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(draft, final)
    shutil.rmtree(old, ignore_errors=True)


def _unet_inputs(config: TrainConfig, text_BLD: Any, pooled_BD: Any) -> dict[str, Any]:
    import torch

    unet = config.unet
    shape = (len(text_BLD), unet.latent_channels, unet.sample_size, unet.sample_size)
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(shape, generator=generator),
        "timestep": torch.full((len(text_BLD),), config.objective.timestep_high),
        "encoder_hidden_states": text_BLD,
        "added_cond_kwargs": {
            "text_embeds": pooled_BD,
            "time_ids": torch.full((len(text_BLD), TIME_IDS[config.model]), 513.0),
        },
        "return_dict": False,
    }


def _tokenizer_names(config: TrainConfig) -> list[tuple[str, Any]]:
    names = ("tokenizer", "tokenizer_2")[-len(config.text_towers) :]
    return list(zip(names, config.text_towers, strict=True))


def _tokenizer(tower: Any) -> Any:
    """Return the tokenizer of a tower by way of a temporary folder."""
    import tempfile

    from train.convert import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        return write_tokenizer(Path(folder), tower)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
