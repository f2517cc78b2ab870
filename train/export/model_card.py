"""The model card of an export: README.md with what the runs recorded of data, training and files, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from curate.commit import git_commit
from train.config import TrainConfig
from train.export.provenance import curation_record, sources_and_licences
from train.report import versions

CARD, SUMS, PROVENANCE = "README.md", "SHA256SUMS", "provenance"
FRONT = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["stable-diffusion-xl", "darkroom"]}
NOT_RECORDED = "not recorded"


def write_card(config: TrainConfig, folder: Path, compared: list[str]) -> None:
    """Write the card, the runs' own records and the checksums of all files into an export folder."""
    trained = json.loads((Path(config.out_folder) / "run.json").read_text())
    (folder / PROVENANCE).mkdir()
    shutil.copy(Path(config.out_folder) / "run.json", folder / PROVENANCE / "train_run.json")
    curated = curation_record(config.data_root)
    if curated is not None:
        (folder / PROVENANCE / "curation_run.json").write_text(json.dumps(curated, indent=1))
    sums = checksums(folder)
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    lines = [
        *_front(config, trained),
        *_network(config, trained),
        *_training(trained),
        *_data(config, curated),
        *["", "## Loaded back and compared", ""],
        *[f"- {line}" for line in compared],
        *_files(sums),
    ]
    (folder / CARD).write_text("\n".join(lines) + "\n")


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path inside."""
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _front(config: TrainConfig, trained: dict[str, Any]) -> Iterator[str]:
    yield f"---\n{yaml.safe_dump(FRONT, sort_keys=False)}---"
    yield f"# SDXL {config.model}, trained with Darkroom"
    yield ""
    yield "A program wrote every line below from what the runs recorded. Nothing is said about the quality, fitness or"
    yield "licence of these weights; the licences of the training data are under Data, where they are known."
    if trained["text_towers_untrained"]:
        yield ""
        yield "**The text encoders are UNTRAINED random weights: pictures do not follow their captions.**"


def _network(config: TrainConfig, trained: dict[str, Any]) -> Iterator[str]:
    said = trained["config"]
    objective = said["objective"]
    towers = [
        f"{tower['architecture']}: {tower['weights'] or 'UNTRAINED random weights'}" for tower in said["text_towers"]
    ]
    yield from _table(
        "Network",
        {
            "U-Net": f"{trained['parameters']:,} parameters",
            "prediction": objective["prediction"],
            "timesteps": f"{objective['timestep_low']}..{objective['timestep_high']} of {objective['num_timesteps']}",
            "terminal SNR": "zero" if objective["zero_terminal_snr"] else "not zero",
            "text encoders": "; ".join(towers),
            "without a caption": f"{objective['dropped_text']} in place of the text embeddings",
            "autoencoder": f"{said['vae']}, scaling factor {trained['scaling_factor']:g}",
            "latent side": f"{config.unet.sample_size}",
            "weights in this folder": "the moving average over the steps (EMA)",
        },
    )


def _training(trained: dict[str, Any]) -> Iterator[str]:
    said = trained["config"]
    batch, optimizer = said["batch"], said["optimizer"]
    yield from _table(
        "Training",
        {
            "started from": said["init_from"] or "random weights",
            "steps": f"{trained.get('steps_done', NOT_RECORDED)} of {said['steps']}",
            "global batch": batch["global_batch"],
            "micro-batch x accumulation x ranks": f"{batch['micro_batch']} x {batch['grad_accumulation']}"
            f" x {trained['world_size']} ({trained['device']})",
            "learning rate": f"AdamW, warm-up {optimizer['warmup_steps']} steps to {optimizer['lr_peak']:g}, cosine to"
            f" {optimizer['lr_final']:g}; weight decay {optimizer['weight_decay']:g}, clip {optimizer['clip_norm']:g}",
            "precision, EMA decay, seed": f"{said['precision']}, {said['ema_decay']}, {said['seed']}",
            "validation loss before": trained["val_loss_before"],
            "validation loss after": trained.get("val_loss_after", NOT_RECORDED),
            "seconds since the last start": trained.get("seconds", NOT_RECORDED),
            "code that trained": trained.get("git_commit") or NOT_RECORDED,
            "code that exported": git_commit() or NOT_RECORDED,
            "versions at training": _joined(trained["versions"]),
            "versions at export": _joined(versions()),
        },
    )
    yield ""
    yield "The validation loss is that of the averaged weights on fixed samples and noise. All settings:"
    yield f"`{PROVENANCE}/train_run.json`."


def _data(config: TrainConfig, curated: dict[str, Any] | None) -> Iterator[str]:
    counts = sources_and_licences(config.data_root)
    yield from ["", "## Data", ""]
    yield f"{counts.samples:,} training samples in the shards." if counts else "The shards came without tables:"
    if counts is None:
        yield "their sources and licences are not known to this program."
    else:
        yield from ["", "| source | licence as the source gave it | training samples |", "|---|---|---|"]
        for (source, licence), count in counts.by_source.items():
            yield f"| {_cell(source)} | {_cell(licence or NOT_RECORDED)} | {count:,} |"
    yield ""
    if curated is None:
        yield "There is no record of a whole curation (run.json) beside the shards."
        return
    yield from _curation(curated)


def _curation(curated: dict[str, Any]) -> Iterator[str]:
    """Yield what came in, what was dropped and why, and the cut-offs."""
    funnel, said = curated["funnel"], curated["config"]
    yield f"Curation: {funnel['rows_in']:,} rows in, {funnel['rows_kept']:,} kept. Dropped, by the first reason found:"
    yield from ["", "| step | reason | rows |", "|---|---|---|"]
    for step, reasons in funnel["drops"].items():
        for reason, count in reasons.items():
            yield f"| {step} | {reason} | {count:,} |"
    yield ""
    yield "Lists and dumps that were read:"
    yield ""
    for source in said["web"]:
        yield f"- {source['name']}: list of URLs `{source['url_list']}`" + _held_out(source)
    for source in said["dumps"]:
        yield f"- {source['name']}: dump `{source['folder']}`" + _held_out(source)
    yield ""
    yield f"Cut-offs of the selection (all settings, models and versions: `{PROVENANCE}/curation_run.json`; code: "
    yield f"{curated.get('git_commit') or NOT_RECORDED}):"
    yield ""
    yield f"```yaml\n{yaml.safe_dump(_set(said['selection']), sort_keys=True)}```"


def _files(sums: dict[str, str]) -> Iterator[str]:
    yield from ["", "## Files", "", f"`sha256sum -c {SUMS}` checks all of them; the weights are", ""]
    yield from ["| file | SHA-256 |", "|---|---|"]
    for name, digest in sums.items():
        if name.endswith(".safetensors"):
            yield f"| `{name}` | `{digest}` |"


def _table(title: str, values: dict[str, Any]) -> Iterator[str]:
    yield from ["", f"## {title}", "", "| | |", "|---|---|"]
    for name, value in values.items():
        yield f"| {name} | {_cell(value)} |"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _joined(said: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in said.items())


def _held_out(source: dict[str, Any]) -> str:
    return " (for evaluation: kept out of training)" if source["evaluation"] else ""


def _set(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that do something."""
    return {name: value for name, value in settings.items() if value not in (None, [], "none")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
