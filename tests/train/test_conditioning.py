"""Text towers against transformers on the same weights; micro-conditioning through bf16."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from curate.bad_input import BadInput
from tests.train.synthetic_root import write_clip
from train.conditioning import TextEncoder, drop_text, encode_tokens, pad
from train.config import TextTower, TrainConfig, UNetConfig
from train.export import single_file
from train.export.convert import text_model, write_tokenizer
from train.micro_conditioning import time_ids
from train.model import build_unet, meta_unet, output_layers, predict
from train.recipes import CLIP_BIGG, CLIP_L, base

CAPTIONS = ["a photograph of a cat, sitting on a red chair", "", "It's 1333 x 513?  Ünïcode  ", "word " * 200]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTower, TextTower]:
    folder = tmp_path_factory.mktemp("clip")
    return tuple(
        TextTower(architecture=write_clip(folder, name, width), weights=None, allow_untrained=True, padding=padding)
        for name, width, padding in (("cond_a", 32, "end_of_text"), ("cond_b", 48, "zero"))
    )


def test_towers_equal_transformers_on_the_same_weights(towers: tuple[TextTower, TextTower], tmp_path: Path) -> None:
    text = TextEncoder(towers, torch.device("cpu"), torch.float32)
    text_BLD, pooled_BD = text(CAPTIONS)
    assert text_BLD.shape == (4, 77, 80)
    assert pooled_BD.shape == (4, 48)
    sequences = []
    for number, (spec, tower) in enumerate(zip(towers, text.towers, strict=True)):
        theirs = text_model(tower, projection=number == 1)
        tokens = write_tokenizer(tmp_path / str(number), spec)(
            CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            output = theirs(tokens, output_hidden_states=True)
        sequences.append(output.hidden_states[-2])
    assert (text_BLD - torch.cat(sequences, dim=-1)).abs().max() <= 1e-5
    assert (pooled_BD - output.text_embeds).abs().max() <= 1e-5


@pytest.mark.parametrize(("tower", "millions"), [(CLIP_L, 123.06), (CLIP_BIGG, 694.66)])
def test_text_halves_have_their_published_sizes(tower: TextTower, millions: float) -> None:
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(tower.architecture))
    clip.visual = None
    counted = {name: parameter.numel() for name, parameter in clip.named_parameters() if name != "logit_scale"}
    if tower == CLIP_L:  # transformers' CLIPTextModel has no projection, and the base takes no pooled text of CLIP-L
        del counted["text_projection"]
    assert sum(counted.values()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_padding_after_the_end_of_text() -> None:
    tokens = torch.tensor([[49406, 5, 49407, 0, 0], [49406, 5, 6, 7, 49407]])
    assert pad(tokens, "zero").tolist() == tokens.tolist()
    assert pad(tokens, "end_of_text").tolist() == [[49406, 5, 49407, 49407, 49407], [49406, 5, 6, 7, 49407]]


def test_penultimate_layer_is_not_the_last_one(towers: tuple[TextTower, TextTower]) -> None:
    tower = TextEncoder(towers[:1], torch.device("cpu"), torch.float32).towers[0]
    tokens = torch.tensor([[49406, 320, 2368, 49407] + [49407] * 73])
    sequence, _ = encode_tokens(tower, tokens)
    tower.transformer.resblocks = tower.transformer.resblocks[:-1]
    embedded = tower.token_embedding(tokens) + tower.positional_embedding
    assert torch.allclose(sequence, tower.transformer(embedded, attn_mask=tower.attn_mask), atol=1e-6)


def test_time_ids_of_base_and_refiner() -> None:
    arguments = ((1333, 513), (3, 7), (1024, 960), 5.5)
    assert time_ids("base", *arguments) == (1333, 513, 3, 7, 1024, 960)
    assert time_ids("refiner", *arguments) == (1333, 513, 3, 7, 5.5)


def test_dropped_text_is_zero_and_the_rest_untouched() -> None:
    text, pooled = torch.randn(3, 2, 4), torch.randn(3, 5)
    dropped_text, dropped_pooled = drop_text(text, pooled, torch.tensor([False, True, False]))
    assert dropped_text[1].abs().sum() == 0
    assert dropped_pooled[1].abs().sum() == 0
    assert torch.equal(dropped_text[[0, 2]], text[[0, 2]])
    assert torch.equal(dropped_pooled[[0, 2]], pooled[[0, 2]])


def tiny_config() -> TrainConfig:
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_heads=(2, 2),
        cross_attention_dim=80,
        pooled_dim=48,
        layers_per_block=1,
        norm_groups=8,
    )
    return dataclasses.replace(base(), unet=unet)


def test_sizes_survive_a_bf16_network() -> None:
    unet = build_unet(tiny_config()).to(torch.bfloat16)
    seen = []
    unet.add_time_proj.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    ids = torch.tensor([[1333.0, 513.0, 0.0, 0.0, 1024.0, 1024.0]])
    shapes = (torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 77, 80), torch.randn(1, 48))
    predict(unet, torch.bfloat16, *shapes, ids)
    numbers, sinusoid = seen[0]
    assert numbers.tolist() == [1333.0, 513.0, 0.0, 0.0, 1024.0, 1024.0]
    assert sinusoid.dtype == torch.float32
    assert ids.to(torch.bfloat16)[0, :2].tolist() == [1336.0, 512.0]  # what the cast would have done


def test_a_fresh_network_predicts_zero_and_learns() -> None:
    unet = build_unet(tiny_config())
    assert all(float(layer.weight.abs().sum()) == float(layer.bias.abs().sum()) == 0.0 for layer in output_layers(unet))
    assert len(list(output_layers(unet))) == 8 + 4 + 1  # res-blocks, transformers, final convolution
    shapes = (torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 77, 80), torch.randn(1, 48))
    output = predict(unet, torch.float32, *shapes, torch.zeros(1, 6))
    assert float(output.abs().max()) == 0.0
    (output - 1).square().mean().backward()
    assert float(unet.conv_out.weight.grad.abs().max()) > 0.0


def test_start_from_a_folder_needs_the_same_shape(tmp_path: Path) -> None:
    config = tiny_config()
    unet = build_unet(dataclasses.replace(config, seed=3))
    unet.save_pretrained(tmp_path)
    loaded = build_unet(dataclasses.replace(config, init_from=str(tmp_path)))
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), loaded.parameters(), strict=True))
    wider = dataclasses.replace(config.unet, cross_attention_dim=96)
    with pytest.raises(ValueError, match="init_from"):
        build_unet(dataclasses.replace(config, unet=wider, init_from=str(tmp_path)))
    heads = tuple(2 * number for number in config.unet.attention_heads)  # the same shapes, another function
    with pytest.raises(BadInput, match="its attention_head_dim is"):
        build_unet(
            dataclasses.replace(
                config, unet=dataclasses.replace(config.unet, attention_heads=heads), init_from=str(tmp_path)
            )
        )
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(dict(list(load_file(weights).items())[1:]), weights)
    with pytest.raises(BadInput, match="1 parameters differ from unet, first"):
        build_unet(dataclasses.replace(config, init_from=str(tmp_path)))
    assert meta_unet(config).conv_in.weight.is_meta


def test_start_from_a_single_file_or_a_pipeline_folder(tmp_path: Path) -> None:
    config = tiny_config()
    unet = build_unet(dataclasses.replace(config, seed=3))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(torch.randn_like(parameter))
    original = {f"{single_file.UNET}{name}": tensor for name, tensor in single_file.unet_weights(unet).items()}
    assert len(original) == len(unet.state_dict())
    save_file(original | {"first_stage_model.x": torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    unet.save_pretrained(tmp_path / "pipeline/unet")
    for start in ("sdxl.safetensors", "pipeline"):
        loaded = build_unet(dataclasses.replace(config, init_from=str(tmp_path / start))).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in unet.state_dict().items())
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "pickle.ckpt").write_bytes(b"x")
    for start, error, told in (
        ("other.safetensors", ValueError, "is it an SDXL checkpoint"),
        ("pickle.ckpt", ValueError, "convert it to .safetensors"),
        ("nowhere", FileNotFoundError, "neither a file nor a folder"),
    ):
        with pytest.raises(error, match=told):
            build_unet(dataclasses.replace(config, init_from=str(tmp_path / start)))
