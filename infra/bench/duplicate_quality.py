"""Precision and recall of near-duplicate pairs by radius, beside imagehash and imagededup. JSON lines.

Four labelled sets of pictures, then all of them together with unrelated ones. Files with equal bytes
count once. A pair is right where its two pictures are of one group. It is geometric where one of them
is flipped, turned, cropped or framed, and plain otherwise (resized, recoloured, encoded again).

    make peers
    .venv/bin/python infra/bench/duplicate_quality.py [--data ../shared/data] \
        [--markdown docs/duplicate_quality.md] [--plot docs/duplicate_quality.png]

The markdown file keeps its text; what stands between its two marks is replaced.
Shape legend: N pictures, P pairs, W words of 64 bits.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import comb
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from curate import hashes, quality  # noqa: E402
from curate.blocklist import PDQ_MIN_QUALITY  # noqa: E402
from curate.config import DedupConfig, EmbedConfig, ScoreConfig  # noqa: E402
from curate.image import UnreadableImage, decode  # noqa: E402
from curate.text_only import text_share  # noqa: E402

PEERS_PYTHON = PROJECT / ".venv-peers" / "bin" / "python"
SETS = ("dup_history", "dup_caltech", "dup_imagededup", "dup_pdq")
UNRELATED = ("photos_coco", "photos_hires", "web_alt")
ALL = "all"
RADII = tuple(range(17))
PDQ_RADII = (0, 8, 16, 24, 31, 32, 40, 48, 56, 64)
TABLE_RADII = (0, 2, 3, 4, 6, 8, 10)
TABLE_START, TABLE_END = "<!-- tables -->", "<!-- end of tables -->"
WRONG_LISTED_RADIUS = 14
NEVER = 999
"""The distance of a picture that takes no part in matching."""
GEOMETRIC = re.compile("dihedral|flip|rotated|crop|letterbox")
"""What a file's note says of such a variant."""
SAME_PICTURE = {
    "dup_imagededup/alpha_channel_image.png": "dup_imagededup/ukbench00120",
    "photos_hires/images/el_Morskie_Oko.jpg": "dup_history/Morskie Oko",
    "photos_hires/images/el_Pawel_Czerwinski_Giraffe.jpg": "dup_history/Paweł Czerwiński Giraffe",
    "photos_hires/images/el_Photo_by_SpaceX.jpg": "dup_history/Photo by SpaceX",
    "photos_hires/images/el_Ryan_Schroeder.jpg": "dup_history/Ryan Schroeder",
    "photos_hires/images/el_Sunset_by_the_Pier.jpg": "dup_history/Sunset by the Pier",
}
"""Files whose group the labels do not name, seen by looking at them."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A file and what is said of it."""

    path: Path
    name: str
    set_name: str
    group: str
    is_geometric: bool


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Every hash of N pictures, uint64; `usable` (N,) is false where a picture must not be matched by it."""

    phash64_N8: np.ndarray
    """As it is, then after each of hashes.TURNS."""
    left_out: np.ndarray
    """bool (N,): flat, or of text."""
    pdq_N84: np.ndarray
    """As it is and turned, likewise."""
    pdq_usable: np.ndarray
    imagehash_N: np.ndarray
    imagededup_N: np.ndarray
    imagededup_usable: np.ndarray


def main() -> None:
    arguments = _arguments()
    if not PEERS_PYTHON.exists():
        print(f"{PEERS_PYTHON.relative_to(PROJECT)} is missing: make it with `make peers`", file=sys.stderr)
        raise SystemExit(2)
    pictures, found = hashed(_distinct(listed(arguments.data)))
    distances = distances_of(found)
    rows = list(measured(pictures, distances))
    for row in [*rows, *wrong_pairs(pictures, distances, WRONG_LISTED_RADIUS)]:
        print(json.dumps(row))
    if arguments.markdown:
        _replace_table(arguments.markdown, tables(rows))
    if arguments.plot:
        plot(rows).save(arguments.plot, optimize=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


# ---- pictures


def listed(data: Path) -> Iterator[Listed]:
    """Yield every file of the labelled and the unrelated folders."""
    for folder in (*SETS, *UNRELATED):
        labels = data / folder / ("groups.jsonl" if folder in SETS else "metadata.jsonl")
        for line in labels.read_text().splitlines():
            row = json.loads(line)
            name = f"{folder}/{row['file']}"
            yield Listed(
                path=data / name,
                name=name,
                set_name=folder,
                group=SAME_PICTURE.get(name, f"{folder}/{row.get('group', row['file'])}"),
                is_geometric=GEOMETRIC.search(row.get("note", "")) is not None,
            )


def _distinct(files: Iterator[Listed]) -> Iterator[Listed]:
    """Yield the first file of each content."""
    first: dict[str, Listed] = {}
    for file in files:
        same = first.setdefault(sha256(file.path.read_bytes()).hexdigest(), file)
        if same is file:
            yield file
            continue
        assert same.group == file.group, f"{file.name} and {same.name}: one content, two groups"
        print(json.dumps({"left_out": file.name, "why": f"the bytes of {same.name}"}))


def hashed(files: Iterator[Listed]) -> tuple[list[Listed], Hashed]:
    """Return the files that decode and their hashes; the peers open the files in their own way."""
    kept, own = [], []
    for file in files:
        try:
            own.append(_own_hashes(decode(file.path.read_bytes(), EmbedConfig().max_megapixels)))
            kept.append(file)
        except UnreadableImage as error:
            print(json.dumps({"left_out": file.name, "why": error.status}))
    eight, left_out, pdq, pdq_quality = map(np.array, zip(*own, strict=True))
    of_imagededup = _imagededup_hashes([str(file.path) for file in kept])
    return kept, Hashed(
        phash64_N8=eight,
        left_out=left_out,
        pdq_N84=pdq,
        pdq_usable=pdq_quality >= PDQ_MIN_QUALITY,
        imagehash_N=np.array([_imagehash(file.path) for file in kept], np.uint64),
        imagededup_N=np.array([int(bits or "0", 16) for bits in of_imagededup], np.uint64),
        imagededup_usable=np.array([bits is not None for bits in of_imagededup]),
    )


def _own_hashes(image: Image.Image) -> tuple[np.ndarray, bool, np.ndarray, int]:
    """Return phash64 as it is and turned, uint64 (8,), whether it is left out, PDQ, uint64 (8, 4), and its quality."""
    grey = image.convert("L")
    eight = [hashes.phash64(grey), *(hashes.phash64(grey.transpose(turn)) for turn in hashes.TURNS)]
    settings, luma_HW = DedupConfig(), np.asarray(grey)
    pdq, pdq_quality = hashes.pdq_and_turned(luma_HW)
    left_out = quality.technical_quality(luma_HW).entropy_bits < settings.min_entropy_bits
    left_out |= text_share(luma_HW) > settings.max_text_share
    return np.array(eight, np.uint64), left_out, np.frombuffer(b"".join(pdq), np.uint64).reshape(8, 4), pdq_quality


def _imagehash(path: Path) -> int:
    with Image.open(path) as image:
        return int(str(imagehash.phash(image)), 16)


def _imagededup_hashes(paths: list[str]) -> list[str | None]:
    command = [str(PEERS_PYTHON), str(Path(__file__).with_name("imagededup_hashes.py"))]
    return json.loads(
        subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, check=True).stdout
    )


# ---- distances and counts


def distances_of(found: Hashed) -> dict[str, np.ndarray]:
    """Return each method's distances in bits, (N, N), NEVER where a picture is not matched."""
    plain_N1, plain_N4 = found.phash64_N8[:, :1], found.pdq_N84[:, 0]
    turned = [hamming(found.phash64_N8[:, turn : turn + 1], plain_N1) for turn in range(8)]
    confirms = [hamming(found.pdq_N84[:, turn], plain_N4) <= ScoreConfig().blocklist_radius_bits for turn in range(8)]
    one_way, confirmed = np.min(turned, axis=0), np.min(np.where(confirms, turned, NEVER), axis=0)
    phash64 = _only(hamming(plain_N1, plain_N1), ~found.left_out)
    pdq = _only(hamming(plain_N4, plain_N4), found.pdq_usable)
    return {
        "phash64": phash64,
        "phash64, flips and turns": _only(np.minimum(one_way, one_way.T), ~found.left_out),
        "phash64 and PDQ": np.where(pdq <= ScoreConfig().blocklist_radius_bits, phash64, NEVER),
        "phash64 and PDQ, flips and turns": _only(
            np.minimum(confirmed, confirmed.T), ~found.left_out & found.pdq_usable
        ),
        "PDQ": pdq,
        "imagehash": hamming(found.imagehash_N[:, None], found.imagehash_N[:, None]),
        "imagededup": _only(hamming(found.imagededup_N[:, None], found.imagededup_N[:, None]), found.imagededup_usable),
    }


def hamming(left_NW: np.ndarray, right_NW: np.ndarray) -> np.ndarray:
    """Return the distances in bits, int64 (N, N)."""
    return np.bitwise_count(left_NW[:, None] ^ right_NW[None]).sum(axis=-1, dtype=np.int64)


def _only(distances: np.ndarray, usable: np.ndarray) -> np.ndarray:
    return np.where(usable[:, None] & usable[None], distances, NEVER)


def measured(pictures: list[Listed], distances: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield a row for each set, method and radius."""
    for set_name in (*SETS, ALL):
        members = [at for at, picture in enumerate(pictures) if set_name in (picture.set_name, ALL)]
        pairs_2P = pairs_of(members)
        same, geometric = truth(pictures, pairs_2P)
        for method, distance in distances.items():
            for radius in PDQ_RADII if method == "PDQ" else RADII:
                near = distance[pairs_2P[0], pairs_2P[1]] <= radius
                named = {"set": set_name, "method": method, "radius_bits": radius, "pictures": len(members)}
                yield named | scores(near, same, geometric)


def pairs_of(members: list[int]) -> np.ndarray:
    """Return every pair of members once, int64 (2, P)."""
    first, second = np.triu_indices(len(members), 1)
    return np.array(members, int)[np.stack([first, second])]


def truth(pictures: list[Listed], pairs_2P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return bool (P,) each: one group; a flipped, turned, cropped or framed picture in the pair."""
    group = np.array([picture.group for picture in pictures])
    geometric = np.array([picture.is_geometric for picture in pictures])
    first, second = pairs_2P
    return group[first] == group[second], geometric[first] | geometric[second]


def scores(near: np.ndarray, same: np.ndarray, geometric: np.ndarray) -> dict[str, Any]:
    """Return counts, precision, recalls and F1 of found pairs; all bool (P,). None is a share of nothing."""
    right, wrong, wanted = int((near & same).sum()), int((near & ~same).sum()), int(same.sum())
    return {
        "pairs": len(same),
        "duplicates": wanted,
        "right": right,
        "wrong": wrong,
        "precision": share(right, right + wrong),
        "recall": share(right, wanted),
        "f1": share(2 * right, right + wrong + wanted),
        "recall_plain": share(int((near & same & ~geometric).sum()), int((same & ~geometric).sum())),
        "recall_geometric": share(int((near & same & geometric).sum()), int((same & geometric).sum())),
    }


def share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def wrong_pairs(pictures: list[Listed], distances: dict[str, np.ndarray], radius: int) -> Iterator[dict[str, Any]]:
    """Yield every wrong pair within the radius as it is or turned, nearest first."""
    pairs_2P = pairs_of(list(range(len(pictures))))
    same, _ = truth(pictures, pairs_2P)
    bits = {method: distance[pairs_2P[0], pairs_2P[1]] for method, distance in distances.items()}
    turned = bits["phash64, flips and turns"]
    for at in sorted(np.flatnonzero(~same & (turned <= radius)), key=lambda at: turned[at]):
        names = [pictures[member].name for member in pairs_2P[:, at]]
        yield {"wrong_pair": names, "bits": {method: int(values[at]) for method, values in bits.items()}}


def chance_share(radius: int) -> float:
    """Return the share of pairs within the radius among random hashes of 32 ones in 64 bits, a phash64's make-up."""
    return sum(comb(32, moved) ** 2 for moved in range(radius // 2 + 1)) / comb(64, 32)


# ---- the page's table and plot


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the tables in markdown."""
    at = {(row["set"], row["method"], row["radius_bits"]): row for row in rows}
    lines = _table(
        "`phash64`: precision / recall of plain pairs / recall of geometric pairs",
        TABLE_RADII,
        {
            _counted(at[name, "phash64", 0]): [_cell(at[name, "phash64", radius]) for radius in TABLE_RADII]
            for name in (*SETS, ALL)
        },
    )
    chance = [f"{chance_share(radius) * 1e18 / 2:,.0f}" for radius in TABLE_RADII]
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method != "PDQ"]
    compared = {
        method: [_cell(at[ALL, method, radius]) + f" ({at[ALL, method, radius]['wrong']})" for radius in TABLE_RADII]
        for method in methods
    }
    lines += _table("All together, the same and (wrong pairs)", TABLE_RADII, compared)
    lines += _table("Random hashes with 32 ones", TABLE_RADII, {"near pairs among 10^9": chance})
    pdq = {"PDQ": [_cell(at[ALL, "PDQ", radius]) + f" ({at[ALL, 'PDQ', radius]['wrong']})" for radius in PDQ_RADII]}
    lines += _table("PDQ alone", PDQ_RADII, pdq)
    return "\n".join(lines)


def _table(title: str, radii: Sequence[int], lines: dict[str, list[str]]) -> list[str]:
    head = [f"**{title}**", "", "| radius, bits | " + " | ".join(map(str, radii)) + " |", "|---|" + "---|" * len(radii)]
    return [*head, *(f"| {label} | " + " | ".join(cells) + " |" for label, cells in lines.items()), ""]


def _counted(row: dict[str, Any]) -> str:
    return f"{row['set']}: {row['duplicates']} of {row['pairs']:,} pairs"


def _cell(row: dict[str, Any]) -> str:
    parts = (row[name] for name in ("precision", "recall_plain", "recall_geometric"))
    return " / ".join("-" if part is None else f"{part:.3f}" for part in parts)


def _replace_table(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        raise ValueError(f"--markdown = {page}: put the lines {TABLE_START} and {TABLE_END} where the tables belong")
    page.write_text(f"{before}{TABLE_START}\n\n{text}\n{TABLE_END}{after}")


LINES = {  # colour and width: peers wide and pale, below the project's own
    "imagededup": ("#f2b880", 13),
    "imagehash": ("#b9b9b9", 9),
    "phash64, flips and turns": ("#2a9d5c", 2),
    "phash64 and PDQ": ("#d39bea", 5),
    "phash64": ("#123a6b", 2),
}
PANEL_WIDTH, PANEL_HEIGHT, MARGIN, SHARPER = 270, 230, 56, 3


def plot(rows: list[dict[str, Any]]) -> Image.Image:
    """Return recall (above) and precision (below) of all pairs by radius, one column for each set."""
    width, height = MARGIN + 5 * PANEL_WIDTH, 2 * (PANEL_HEIGHT + MARGIN) + 60
    image = Image.new("RGB", (width * SHARPER, height * SHARPER), "white")
    pen = ImageDraw.Draw(image)
    _legend(pen, height - 30)
    for down, share_name in enumerate(("recall", "precision")):
        for across, set_name in enumerate((*SETS, ALL)):
            corner = (MARGIN + across * PANEL_WIDTH, 40 + down * (PANEL_HEIGHT + MARGIN))
            curves = {
                method: [
                    (row["radius_bits"], row[share_name])
                    for row in rows
                    if (row["set"], row["method"]) == (set_name, method) and row[share_name] is not None
                ]
                for method in LINES
            }
            _panel(pen, corner, f"{set_name}: {share_name}", curves)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _panel(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, curves: dict[str, list[tuple[int, float]]]
) -> None:
    """Draw the axes, radius 0..16 and share 0..1, and the curves."""
    left, top, wide = corner[0], corner[1], PANEL_WIDTH - 40

    def place(radius: float, value: float) -> tuple[float, float]:
        return (left + radius / 16 * wide) * SHARPER, (top + (1 - value) * PANEL_HEIGHT) * SHARPER

    _write(pen, (left, top - 28), title, "black", 15)
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        pen.line([place(0, value), place(16, value)], fill="#e4e4e4", width=SHARPER)
        _write(pen, (left - 34, top + (1 - value) * PANEL_HEIGHT - 8), f"{value:.2f}", "#555555", 12)
    for radius in range(0, 17, 4):
        _write(pen, (left + radius / 16 * wide - 4, top + PANEL_HEIGHT + 4), str(radius), "#555555", 12)
    for method, points in curves.items():
        colour, thick = LINES[method]
        pen.line([place(*point) for point in points], fill=colour, width=thick * SHARPER, joint="curve")


def _legend(pen: ImageDraw.ImageDraw, top: int) -> None:
    left = MARGIN
    for method, (colour, thick) in LINES.items():
        pen.line([(left * SHARPER, top * SHARPER), ((left + 36) * SHARPER, top * SHARPER)], colour, thick * SHARPER)
        _write(pen, (left + 44, top - 9), method, "black", 14)
        left += 230
    _write(pen, (left, top - 9), "radius in bits", "#555555", 14)


def _write(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, size: int) -> None:
    pen.text((at[0] * SHARPER, at[1] * SHARPER), text, colour, ImageFont.load_default(size * SHARPER))


if __name__ == "__main__":
    main()
