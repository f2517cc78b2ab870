"""From open_clip's text towers and tokenizer to the classes that diffusers' pipelines load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from train.config import TextTower

START, END = "<|startoftext|>", "<|endoftext|>"


def text_model(tower: Any, *, projection: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Return the transformers model with the weights of an open_clip text tower, in fp32."""
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    model = kind(_text_config(tower))
    weights = _encoder_weights(tower)
    prefix = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    weights = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    if projection:
        weights["text_projection.weight"] = tower.text_projection.T
    model.load_state_dict({name: tensor.detach().float().contiguous() for name, tensor in weights.items()})
    return model.eval()


def write_tokenizer(folder: Path, tower: TextTower) -> CLIPTokenizer:
    """Write the tokenizer of a tower from the merges that open_clip ships, and return it."""
    source = SimpleTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    special = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {special.get(token, token): number for token, number in source.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    merges = sorted(source.bpe_ranks, key=source.bpe_ranks.__getitem__)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in merges))
    # "!" is token 0. As with the published tokenizer_2, an exclamation mark in a prompt is then read as padding.
    padding = END if tower.padding == "end_of_text" else "!"
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in merges],
        pad_token=padding,
        model_max_length=source.context_length,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text_config(tower: Any) -> CLIPTextConfig:
    block = tower.transformer.resblocks[0]
    vocab_size, width = tower.token_embedding.weight.shape
    activation = "quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu"
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=block.mlp.c_fc.out_features,
        projection_dim=tower.text_projection.shape[1],
        num_hidden_layers=len(tower.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        max_position_embeddings=tower.positional_embedding.shape[0],
        hidden_act=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )


def _encoder_weights(tower: Any) -> dict[str, torch.Tensor]:
    weights = {
        "embeddings.token_embedding.weight": tower.token_embedding.weight,
        "embeddings.position_embedding.weight": tower.positional_embedding,
        "final_layer_norm.weight": tower.ln_final.weight,
        "final_layer_norm.bias": tower.ln_final.bias,
    }
    for number, block in enumerate(tower.transformer.resblocks):
        layer = f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            stacked = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), stacked, strict=True):
                weights[f"{layer}.self_attn.{name}.{kind}"] = part
            for theirs, module in (
                ("self_attn.out_proj", block.attn.out_proj),
                ("layer_norm1", block.ln_1),
                ("layer_norm2", block.ln_2),
                ("mlp.fc1", block.mlp.c_fc),
                ("mlp.fc2", block.mlp.c_proj),
            ):
                weights[f"{layer}.{theirs}.{kind}"] = getattr(module, kind)
    return weights
