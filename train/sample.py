"""python -m train.sample: captions to pictures, the base for the high noise and the refiner for the rest."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from curate.bad_input import BadInput
from curate.command_line import DONE, stop, told_in_one_line
from curate.config import require
from curate.config_file import read_settings
from curate.config_help import About
from train.config import TrainConfig
from train.export.exported import export_folder
from train.prompts import prompts_of_file
from train.recipes import RECIPES
from train.settings import read_train_settings, section

PROG = "train.sample"
ABOUT = About(
    command="python -m train.sample",
    example="python -m train.sample --prompts prompts.txt --sampler dpmpp_2m_karras --out grid.png",
    reads="<root>/export/base/ and refiner/; captions of the index without --prompts",
    writes="<root>/samples.png",
)
CAPTION_LINE_PX, CAPTION_LINES = 12, 3
CAPTION_ROWS = 10_000
SIDE_STEP_PX = 8
"""diffusers' pipelines draw no other sides."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn, and how."""

    root: str
    """Folder with `export/`; `samples.png` goes there, too."""
    prompts: str | None = None
    """File with one prompt a line; null takes captions of the train shards."""
    out: str | None = None
    """PNG to write; null means `<root>/samples.png`."""
    pictures: str | None = None
    """Folder for the pictures, each as a PNG of its own that carries prompt and seed; null writes the grid only."""
    sampler: Literal[
        "euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "unipc"
    ] = "euler"
    """diffusers' scheduler; heun draws with the base alone."""
    steps: int = 20
    """Sampler steps of base and refiner together."""
    guidance: float = 5.0
    """Scale of classifier-free guidance; 1 is none."""
    split: float = 0.8
    """Share of the noise scales that the base takes, from the noise down, above 0; at 1 the refiner does nothing."""
    seed: int = 0
    """Seed of the first picture's noise; the next picture takes the next one."""
    batch_size: int = 4
    """Pictures that are drawn together; it changes speed and memory, and the pictures by rounding only."""
    count: int = 9
    """Pictures, where captions of the shards are the prompts."""
    size_px: int | None = None
    """Side of the pictures; null is the side that the base was trained at."""

    def __post_init__(self) -> None:
        require(0.0 < self.split <= 1.0, "split", self.split, "must be above 0 and at most 1")
        require(self.steps > 0, "steps", self.steps, "must be at least 1")
        require(self.guidance >= 1, "guidance", self.guidance, "must be at least 1")
        require(self.batch_size > 0, "batch_size", self.batch_size, "must be at least 1")
        require(self.count > 0, "count", self.count, "must be at least 1")
        fits = self.size_px is None or (self.size_px > 0 and self.size_px % SIDE_STEP_PX == 0)
        require(fits, "size_px", self.size_px, f"must be a multiple of {SIDE_STEP_PX} above 0")
        require(self.out is None or self.out.endswith(".png"), "out", self.out, "must end in .png")


def main(argv: Sequence[str]) -> int:
    """Read the settings, draw the pictures, write the grid."""
    settings, flags = read_settings(
        SampleConfig, argv, prog=PROG, description="Draw a grid of pictures.", section=_root_of, about=ABOUT
    )
    file = [word for path in flags.config or [] for word in ("--config", path)]
    base, refiner = (
        read_train_settings(model, [*file, "--root", settings.root], prog=PROG, description="")[0] for model in RECIPES
    )
    if not export_folder(base).exists():
        stop(PROG, f"no {export_folder(base)}: run python -m train.export first")
    with told_in_one_line(PROG, "nothing was written: run it again"):
        prompts = read_prompts(settings, base.index_parent)
        images = draw(base, refiner, prompts, settings)
        out = Path(settings.out or f"{settings.root}/samples.png")
        out.parent.mkdir(parents=True, exist_ok=True)
        grid(images, prompts).save(out)
        if settings.pictures is not None:
            save_pictures(images, prompts, settings, Path(settings.pictures))
        print(f"{len(images)} pictures: {out}{_untrained_note(base)}")
    return DONE


def draw(base: TrainConfig, refiner: TrainConfig, prompts: list[str], settings: SampleConfig) -> list[Image.Image]:
    """Return one picture for each prompt; without an exported refiner the base does every step, and this is said."""
    from train.draw import Drawing, draw_pixels

    refine = export_folder(refiner).exists() and settings.split < 1.0
    if not refine:
        print("the base draws alone (no exported refiner, or split 1)")
    drawing = Drawing(
        sampler=settings.sampler,
        steps=settings.steps,
        guidance=settings.guidance,
        split=settings.split,
        seed=settings.seed,
        batch_size=settings.batch_size,
        side_px=_side_px(base, settings),
    )
    pixels = draw_pixels(export_folder(base), export_folder(refiner) if refine else None, prompts, drawing)
    return [Image.fromarray((picture * 255.0).round().astype("uint8")) for picture in pixels]


def save_pictures(images: list[Image.Image], prompts: list[str], settings: SampleConfig, folder: Path) -> None:
    """Write each picture as a PNG that carries what it was drawn from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        seed = settings.seed + number
        told = {"prompt": prompt, "seed": seed, "sampler": settings.sampler, "steps": settings.steps}
        told |= {"guidance": settings.guidance, "split": settings.split}
        text = PngInfo()
        for name, value in told.items():
            text.add_itxt(name, str(value))
        image.save(folder / f"{number:05d}-seed{seed}.png", pnginfo=text)


def read_prompts(settings: SampleConfig, index_parent: str) -> list[str]:
    """Return the lines of a file, or captions from all over the index."""
    if settings.prompts is not None:
        return prompts_of_file(settings.prompts, "prompts")
    from train.index.reader import open_index

    index = open_index(Path(index_parent) / "train")
    looked_at = min(len(index), CAPTION_ROWS)
    captions = dict.fromkeys(index.sample(number * len(index) // looked_at).caption for number in range(looked_at))
    prompts = [caption for caption in captions if caption][: settings.count]
    if not prompts:
        raise BadInput("prompts = None: no caption in the index of train; name a file with prompts")
    return prompts


def grid(images: list[Image.Image], captions: list[str], cell_px: int = 192) -> Image.Image:
    """Return the pictures in a near-square grid, each enlarged to `cell_px` with its caption below."""
    columns = math.ceil(math.sqrt(len(images)))
    height_px = cell_px + CAPTION_LINE_PX * CAPTION_LINES + 4
    sheet = Image.new("RGB", (columns * cell_px, math.ceil(len(images) / columns) * height_px), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = number % columns * cell_px, number // columns * height_px
        scale = cell_px / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        sheet.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
        pen.multiline_text((left + 2, top + cell_px + 1), wrap(caption, cell_px // 6), fill="black", spacing=1)
    return sheet


def wrap(caption: str, width: int) -> str:
    """Return the caption in a few lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(caption, width, max_lines=CAPTION_LINES, placeholder=" ..."))


def _side_px(config: TrainConfig, settings: SampleConfig) -> int:
    vae = json.loads((export_folder(config) / "vae/config.json").read_text())
    return settings.size_px or config.unet.sample_size * 2 ** (len(vae["block_out_channels"]) - 1)


def _root_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the root, after checking the whole document for keys that nobody knows."""
    return {"root": section(document, "base")["root"]}


def _untrained_note(config: TrainConfig) -> str:
    untrained = any(tower.weights is None for tower in config.text_towers)
    return " (text towers UNTRAINED: captions steer little)" if untrained else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
