"""The published SDXL networks and the asked-for schedule, as functions that return complete settings."""

from __future__ import annotations

from dataclasses import replace

from curate.bad_input import BadInput
from train.config import ObjectiveConfig, TextTower, TrainConfig, UNetConfig

CLIP_L = TextTower(architecture="ViT-L-14-quickgelu", weights="clip_vit_l14_openai", padding="end_of_text")
CLIP_BIGG = TextTower(architecture="ViT-bigG-14", weights="clip_vit_bigg14_laion2b", padding="zero")


def base() -> TrainConfig:
    """Return the base: 2,567,463,684 parameters, both text towers, every noise scale."""
    return TrainConfig(
        model="base",
        unet=UNetConfig(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_heads=(5, 10, 20),
            cross_attention_dim=2048,
            pooled_dim=1280,
        ),
        text_towers=(CLIP_L, CLIP_BIGG),
        vae="sdxl_vae",
        objective=ObjectiveConfig(timestep_low=0, timestep_high=999),
    )


def refiner() -> TrainConfig:
    """Return the refiner: 2,259,526,660 parameters, one text tower, the aesthetic score, the first 200 noise scales."""
    return TrainConfig(
        model="refiner",
        unet=UNetConfig(
            block_out_channels=(384, 768, 1536, 1536),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(4, 4, 4, 4),
            attention_heads=(6, 12, 24, 24),
            cross_attention_dim=1280,
            pooled_dim=1280,
        ),
        text_towers=(CLIP_BIGG,),
        vae="sdxl_vae",
        objective=ObjectiveConfig(timestep_low=0, timestep_high=199),
    )


def staged(config: TrainConfig, stage_px: int) -> TrainConfig:
    """Return the settings of one of the original's three stages, each of which starts from the one before.

    600,000 steps at 256 px from scratch, another 200,000 at 512 px, both with size and crop conditioning and batches of
    2048, then about 1024 x 1024 px in aspect buckets with offset noise 0.05 (Podell et al. 2023, section 2.5, which
    gives no number of steps for the last stage: 200,000 is a choice). Stages of the refiner were not published. The
    shards of a stage are exported at its resolution, into a root of their own.
    """
    if stage_px not in STAGES_STEPS:
        raise BadInput(f"stage = {stage_px}: must be one of {', '.join(str(px) for px in STAGES_STEPS)}")
    return replace(
        config,
        unet=replace(config.unet, sample_size=stage_px // 8),
        objective=replace(config.objective, offset_noise=0.05 if stage_px == 1024 else 0.0),
        steps=STAGES_STEPS[stage_px],
    )


RECIPES = {"base": base, "refiner": refiner}
"""Recipe of each model."""
STAGES_STEPS = {256: 600_000, 512: 200_000, 1024: 200_000}
"""Optimiser steps of each stage, by its resolution in px; the paper gives the first two."""
