"""Writes diffusers folders and single files of what was trained, and publishes them once they agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.export.exported import draft_of, export_folder, hide_loading_bars, publish, single_file_name


def export(config: TrainConfig, single_file: str = "fp32") -> bool:
    """Write one folder, load all of it back, print what was compared, and return whether it agrees.

    `single_file` is the precision of the weights in the file with the original names, or "none" to write none.
    """
    from train.export import check as export_check
    from train.export import model_card

    hide_loading_bars()
    pipeline, text = build_pipeline(config)
    final = export_folder(config)
    draft = draft_of(final)
    _write_folder(config, pipeline, draft)
    wanted = export_check.reference(config, pipeline, text)
    checks = [export_check.check_folder(config, draft, wanted)]
    if single_file != "none":
        path = draft / single_file_name(config)
        weights = _write_single_file(config, pipeline, text, path, single_file)
        checks.append(export_check.check_single_file(config, path, wanted, weights, single_file))
    agrees = all(check.agrees for check in checks)
    if agrees:
        model_card.write_card(config, draft, [check.line for check in checks])
        publish(draft, final)
    where = final if agrees else f"NOT published, see {draft}"
    print(f"{config.model}: {where}; " + "; ".join(check.line for check in checks), flush=True)
    return agrees


def _write_folder(config: TrainConfig, pipeline: Any, draft: Path) -> None:
    from train.export.convert import write_tokenizer

    pipeline.save_pretrained(draft)
    for name, tower in _tokenizer_names(config):
        write_tokenizer(draft / name, tower)


def _write_single_file(config: TrainConfig, pipeline: Any, text: Any, path: Path, precision: str) -> dict[str, Any]:
    """Write the file with the original names, and return the weights that went into it, not rounded."""
    from train.export import single_file

    towers = single_file.text_parts(pipeline.text_encoder, text.towers[-1])
    weights = single_file.original_weights(pipeline.unet, pipeline.vae, towers)
    single_file.write(path, weights, precision, single_file.facts(config))
    return weights


def build_pipeline(config: TrainConfig) -> tuple[Any, Any]:
    """Return diffusers' pipeline with the trained U-Net, and the open_clip towers that it was trained with."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from train.autoencoder import load_vae
    from train.conditioning import TextEncoder
    from train.diffusion import sampler_schedule
    from train.export.convert import text_model

    text = TextEncoder(config.text_towers, torch.device("cpu"), torch.float32)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(trained_unet(config)),
        "vae": load_vae(str(config.vae)),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": text_model(text.towers[-1], projection=True),
        "tokenizer_2": _tokenizer(config.text_towers[-1]),
        "scheduler": EulerDiscreteScheduler(**sampler_schedule(config.objective)),
        "add_watermarker": False,
    }
    # without a negative prompt the pipelines guide away from what training showed where the text was dropped
    parts["force_zeros_for_empty_prompt"] = config.objective.dropped_text == "zeros"
    if config.model == "refiner":
        return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True), text
    parts |= {
        "text_encoder": text_model(text.towers[0], projection=False),
        "tokenizer": _tokenizer(config.text_towers[0]),
    }
    return StableDiffusionXLPipeline(**parts), text


def trained_unet(config: TrainConfig) -> Path:
    """Return where training left the averaged weights."""
    return Path(config.out_folder) / "unet_ema"


def _tokenizer_names(config: TrainConfig) -> list[tuple[str, Any]]:
    names = ("tokenizer", "tokenizer_2")[-len(config.text_towers) :]
    return list(zip(names, config.text_towers, strict=True))


def _tokenizer(tower: Any) -> Any:
    """Return the tokenizer of a tower by way of a temporary folder."""
    import tempfile

    from train.export.convert import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        return write_tokenizer(Path(folder), tower)
