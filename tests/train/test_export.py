"""Single files under the original names, what is compared before an export is published, and the model card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.train.exported import trained
from tests.train.synthetic_root import Tiny
from train.autoencoder import SDXL_VAE
from train.ema import export_ema
from train.export import check as export_check
from train.export import provenance, single_file
from train.export.__main__ import main
from train.export.convert import text_model
from train.export.write import build_pipeline, trained_unet
from train.model import build_unet, meta_unet, unet_arguments
from train.recipes import RECIPES

NUM_KEYS = {"base": 1680 + 248 + (196 + 1) + 390, "refiner": 1220 + 248 + 390}
"""U-Net, autoencoder, CLIP-L with its position numbers, bigG; 2,515 is what the published base holds."""
PUBLISHED = {
    "base": {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.logit_scale": (),
    },
    "refiner": {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.3.attn2.to_k.weight": (768, 1280),
        "model.diffusion_model.input_blocks.11.0.in_layers.0.weight": (1536,),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1536, 1536, 3, 3),
        "model.diffusion_model.label_emb.0.0.weight": (1536, 2560),
        "conditioner.embedders.0.model.positional_embedding": (77, 1280),
    },
}


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def meta_clip(architecture: str) -> torch.nn.Module:
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(architecture))
    clip.visual = None
    return clip


@pytest.mark.parametrize("model", RECIPES)
def test_the_full_networks_have_the_published_names_and_diffusers_finds_all_of_them(model: str) -> None:
    config = RECIPES[model]()
    unet = meta_unet(config)
    with torch.device("meta"):
        vae = AutoencoderKL(**SDXL_VAE)
    towers = [meta_clip(tower.architecture) for tower in config.text_towers]
    with torch.device("meta"):
        clip_l = text_model(towers[0], projection=False) if model == "base" else None
        big_g = text_model(towers[-1], projection=True)
    weights = single_file.original_weights(unet, vae, single_file.text_parts(clip_l, towers[-1]))
    assert len(weights) == NUM_KEYS[model]
    assert {name: tuple(weights[name].shape) for name in PUBLISHED[model]} == PUBLISHED[model]

    assert shapes(convert_ldm_unet_checkpoint(dict(weights), unet_arguments(config))) == shapes(unet.state_dict())
    of_vae = {name: tensor for name, tensor in weights.items() if name.startswith("first_stage_model.")}
    assert shapes(convert_ldm_vae_checkpoint(of_vae, vae.config)) == shapes(vae.state_dict())
    prefix = f"conditioner.embedders.{len(towers) - 1}.model."
    assert shapes(convert_open_clip_checkpoint(big_g, dict(weights), prefix=prefix)) == shapes(big_g.state_dict())
    if clip_l is not None:
        found = shapes(convert_ldm_clip_checkpoint(dict(weights)))
        found = {name.removeprefix("text_model."): shape for name, shape in found.items()}
        assert found.pop("embeddings.position_ids") == (1, 77)
        assert found == {name.removeprefix("text_model."): shape for name, shape in shapes(clip_l.state_dict()).items()}


@pytest.mark.parametrize("model", RECIPES)
def test_an_export_holds_folder_single_file_and_card(
    model: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = trained(tiny, tmp_path, model)
    assert main(["--config", str(file)]) == 0
    assert "U-Net output differs by 0, text encoder output by" in capsys.readouterr().out
    folder = tmp_path / "export" / model
    path = folder / f"sdxl_{model}.safetensors"
    again = build_unet(dataclasses.replace(config, init_from=str(path))).state_dict()
    source = load_file(Path(config.out_folder) / "unet_ema/diffusion_pytorch_model.safetensors")
    assert again.keys() == source.keys() and all(torch.equal(again[name], source[name]) for name in source)
    with safe_open(path, "pt") as opened:
        assert opened.metadata()["modelspec.architecture"] == f"stable-diffusion-xl-v1-{model}"
        assert opened.metadata()["modelspec.prediction_type"] == "epsilon"
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    card = (folder / "README.md").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert "The shards came without tables:\ntheir sources and licences are not known to this program." in card
    assert "There is no record of a whole curation (run.json) beside the shards." in card


def test_half_precision_rounds_every_weight_once(tiny: Tiny, tmp_path: Path) -> None:
    config, file = trained(tiny, tmp_path)
    assert main(["--config", str(file), "--single_file", "bf16"]) == 0
    path = tmp_path / "export/base/sdxl_base.safetensors"
    dtype = torch.bfloat16
    held = {name: tensor.dtype for name, tensor in load_file(path).items()}
    whole_numbers = {name for name, found in held.items() if found == torch.int64}
    assert whole_numbers == {"conditioner.embedders.0.transformer.text_model.embeddings.position_ids"}
    assert set(held.values()) == {dtype, torch.int64}
    loaded = build_unet(dataclasses.replace(config, init_from=str(path))).state_dict()
    source = load_file(Path(config.out_folder) / "unet_ema/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(loaded[name], source[name].to(dtype).float()) for name in source)


def test_a_file_that_computes_something_else_is_not_published(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of two layers are exchanged on their way into the file."""
    _, file = trained(tiny, tmp_path)
    write = single_file.write

    def exchanged(path: Path, weights: dict[str, torch.Tensor], precision: str, told: dict[str, str]) -> None:
        q, k = (f"model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_{x}.weight" for x in "qk")
        write(path, weights | {q: weights[k], k: weights[q]}, precision, told)

    monkeypatch.setattr(single_file, "write", exchanged)
    assert main(["--config", str(file)]) == 1
    assert "NOT published" in capsys.readouterr().out
    assert not (tmp_path / "export/base").exists()


def test_one_folder_for_both_networks_is_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag is for both: the base's weights would be taken for the refiner's, too."""
    config, file = trained(tiny, tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(file), "--out", config.out_folder])
    assert ended.value.code == 2
    told = f"out = {config.out_folder}: base and refiner cannot lie in one folder; set train.base.out and train.refiner"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_averaged_weights_that_cannot_be_written_leave_those_of_before(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on writes over what it left the last time: on a full disk, half of a file."""
    config, _ = trained(tiny, tmp_path)
    folder = trained_unet(config)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in build_unet(config).parameters()])
    engine, ema = SimpleNamespace(gather_on_first_rank=lambda part: part), SimpleNamespace(part=flat)
    save = UNet2DConditionModel.save_pretrained

    def full(unet: UNet2DConditionModel, place: Path) -> None:
        save(unet, place)
        (place / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export_ema(config, engine, ema, folder)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", save)
    export_ema(config, engine, ema, folder)  # type: ignore[arg-type]
    assert torch.equal(
        load_file(folder / "diffusion_pytorch_model.safetensors")["conv_in.bias"],
        build_unet(config).state_dict()["conv_in.bias"],
    )
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_every_weight_of_the_file_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    weights = {"a": torch.tensor([1.0, 1.0001]), "b": torch.tensor([3])}
    single_file.write(path, weights, "bf16", {})
    assert export_check.holds(path, weights, "bf16")
    assert not export_check.holds(path, weights, "fp32")
    assert not export_check.holds(path, weights | {"a": torch.tensor([1.0, 1.1])}, "bf16")
    save_file(load_file(path) | {"c": torch.zeros(1)}, path)
    assert not export_check.holds(path, weights, "bf16")


@pytest.mark.parametrize(("dropped_text", "zeros"), [("zeros", True), ("empty", False)])
def test_the_unconditional_branch_is_the_one_that_was_trained(
    dropped_text: str, zeros: bool, tiny: Tiny, tmp_path: Path
) -> None:
    config, _ = trained(tiny, tmp_path, dropped_text=dropped_text)
    pipeline, _ = build_pipeline(config)
    assert pipeline.config.force_zeros_for_empty_prompt is zeros
    _, negative_BLD, _, _ = pipeline.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=True)
    assert (float(negative_BLD.abs().max()) == 0.0) is zeros


CURATED = {
    "config": {
        "web": [{"name": "crawl", "url_list": "lists/a.parquet", "evaluation": False}],
        "dumps": [{"name": "held", "folder": "held_out", "evaluation": True}],
        "selection": {"min_side_px": 200, "preset": "none", "quotas": [], "max_nsfw_prob": None},
    },
    "funnel": {"rows_in": 434, "rows_kept": 193, "drops": {"dedup": {"duplicate_exact": 32}, "score": {}}},
    "git_commit": "feedbeef",
}


def curated_root(root: Path) -> None:
    """Tables of four samples, three of them in the train shards, and the record of the run."""
    samples = {"uid": ["a", "b", "c", "d"], "license": ["CC0", None, "CC0", "CC BY"]}
    shards = {"uid": ["a", "b", "c", "d"], "source": ["x", "x", "x", "y"], "split": ["train", "train", "train", "val"]}
    for name, columns in (("samples", samples), ("shards", shards)):
        (root / "tables" / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), root / "tables" / name / "part.parquet")
    (root / "run.json").write_text(json.dumps(CURATED))


def test_the_card_says_what_was_recorded_and_no_more(tiny: Tiny, tmp_path: Path) -> None:
    _, file = trained(tiny, tmp_path)
    curated_root(tmp_path)
    assert main(["--config", str(file), "--single_file", "none"]) == 0
    folder = tmp_path / "export/base"
    assert list(folder.glob("*.safetensors")) == []
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion-xl", "darkroom"],
    }
    for line in (
        "**The text encoders are UNTRAINED random weights: pictures do not follow their captions.**",
        "| steps | 6 of 6 |",
        "| validation loss before | 1.0 |",
        "| validation loss after | 0.25 |",
        "| precision, EMA decay, seed | fp32, 0.9999, 0 |",
        "| code that trained | 0123abcd |",
        "| versions at training | python 3.11.0, torch 2.0 |",
        "3 training samples in the shards.",
        "| x | not recorded | 1 |",
        "| x | CC0 | 2 |",
        "Curation: 434 rows in, 193 kept. Dropped, by the first reason found:",
        "| dedup | duplicate_exact | 32 |",
        "- crawl: list of URLs `lists/a.parquet`",
        "- held: dump `held_out` (for evaluation: kept out of training)",
        "min_side_px: 200",
        "feedbeef):",
    ):
        assert line in body.splitlines(), line
    assert "CC BY" not in body  # of a sample that is not in the train shards
    assert json.loads((folder / "provenance/curation_run.json").read_text()) == CURATED


def test_licences_are_counted_whatever_the_root_is_called(tmp_path: Path) -> None:
    root = tmp_path / "it's [1]*"
    curated_root(root)
    counts = provenance.sources_and_licences(str(root))
    assert counts is not None and counts.by_source == {("x", "CC0"): 2, ("x", None): 1}


def test_licences_are_counted_on_remote_roots_too(tmp_path: Path) -> None:
    curated_root(tmp_path)
    remote = provenance.sources_and_licences(f"local://{tmp_path}")
    assert provenance.sources_and_licences(str(tmp_path)) == remote
    assert remote is not None and remote.by_source == {("x", "CC0"): 2, ("x", None): 1}
