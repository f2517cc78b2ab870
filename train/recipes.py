"""The published SDXL networks and the asked-for schedule, as functions that return complete settings."""

from __future__ import annotations

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


RECIPES = {"base": base, "refiner": refiner}
"""Recipe of each model."""
