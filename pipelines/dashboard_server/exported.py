"""The page as one file: the same page, with answers and pictures inside it instead of a server behind it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from curate.bad_input import BadInput
from curate.image import UnreadableImage
from pipelines.dashboard_server.answers import NEAR_A_CUT_OFF, QUESTIONS, Shown
from pipelines.dashboard_server.app import PAGE, plain
from pipelines.dashboard_server.browse import near
from pipelines.dashboard_server.cut_off_list import limits
from pipelines.dashboard_server.pictures import SIDES_PX, Pictures

MOST_BYTES = 20_000_000
SHARED_MODULES = ("dom", "api", "charts", "tiles")
PAGE_MODULES = ("browse", "sample", "distributions", "duplicates", "funnel", "labelling", "training", "what_if")
MODULES = (*SHARED_MODULES, *PAGE_MODULES, "main")
"""In an order in which none needs one that comes later."""
SECURITY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z_]+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|async)", re.MULTILINE)


class TooLarge(BadInput):
    """The page is above its limit even without a picture."""


def page(this: Shown, max_megapixels: float, most_bytes: int = MOST_BYTES) -> bytes:
    """Return funnel, distributions, cut-offs and strips as HTML of at most `most_bytes`; raises TooLarge.

    Unsafe samples are left out, and pictures for which there is no more room.
    """
    strips = _strips(this)
    said: dict[str, Any] = {"answers": dict(_answers(this)), "strips": strips, "pictures": {}}
    room = most_bytes - len(_html(said))
    if room < 0:
        raise TooLarge(f"the page without pictures is {-room:,} bytes above {most_bytes:,}")
    pictures = Pictures(this.index, max_megapixels)
    for tile in _tiles(strips):
        encoded = _data_url(pictures, tile["number"]) if tile["has_picture"] else None
        room -= len(encoded or "") + 40
        if encoded is None or room < 0:
            tile["has_picture"] = False
        else:
            said["pictures"][str(tile["number"])] = encoded
    return _html(said)


def _answers(this: Shown) -> Iterable[tuple[str, Any]]:
    """Yield the questions that the exported pages ask, and their answers."""
    listed = QUESTIONS["distributions"](this, {})
    asked: list[tuple[str, dict[str, str]]] = [
        (name, {}) for name in ("overview", "funnel", "distributions", "sliders", "counts")
    ]
    asked += [("whole-counts", {})] if QUESTIONS["sliders"](this, {})["later"] else []
    asked += [("split", {"by": by}) for by in ("source", "language", "host")]
    asked += [("histogram", {"name": number["name"]}) for number in listed["numbers"]]
    asked += [("most-frequent", {"name": word["name"]}) for word in listed["words"]]
    for name, values in asked:
        query = f"?{urlencode(values)}" if values else ""
        yield f"/api/{name}{query}", plain(QUESTIONS[name](this, values))


def _strips(this: Shown) -> list[dict[str, Any]]:
    """Return the samples on either side of each cut-off that is set, without unsafe ones."""
    found = []
    for limit in limits(this.index.settings):
        value = limit.value
        if value is None:
            continue
        sides = near(this.index, limit, float(value), NEAR_A_CUT_OFF)
        safe = {side: [tile for tile in tiles if not tile["is_unsafe"]] for side, tiles in sides.items()}
        found.append({"setting": limit.setting, "value": value, "sides": safe})
    return found


def _tiles(strips: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return (tile for strip in strips for tiles in strip["sides"].values() for tile in tiles)


def _data_url(pictures: Pictures, number: int) -> str | None:
    try:
        made = pictures.webp(number, SIDES_PX[1])
    except (UnreadableImage, FileNotFoundError, EOFError):
        return None
    return f"data:image/webp;base64,{base64.b64encode(made).decode()}"


def _html(said: dict[str, Any]) -> bytes:
    # "<" is written as an escape, so that no caption ends the script
    answers = json.dumps(said, allow_nan=False).replace("<", "\\u003c")
    vega = _read("vega.js").replace("</script", "<\\/script")
    parts = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        f"<title>Darkroom</title><style>{_read('style.css')}</style></head>",
        '<body><header id="head"></header><main id="main"></main>',
        f"<!-- licences of the chart libraries:\n{_read('vega_licenses.txt').replace('--', '- -')}\n-->",
        f"<script>window.darkroomAnswers = {answers};</script>",
        f'<script type="module">{vega}</script><script type="module">{joined_modules()}</script></body></html>',
    )
    return "\n".join(parts).encode()


def joined_modules() -> str:
    """Return the page's modules as one, without their imports and exports."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _read(f"{name}.js"))) for name in MODULES)


def _read(name: str) -> str:
    return Path(PAGE / name).read_text(encoding="utf-8")
