"""Pictures of text are told from photos."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from curate.config import DedupConfig
from curate.image import UnreadableImage, decode
from curate.text_only import text_share
from tests.conftest import encoded, picture

LIMIT = DedupConfig().max_text_share
WORDS = np.array(["picture", "not", "available", "in", "your", "country", "please", "come", "back", "another", "day"])


def page(size_px: tuple[int, int], letter_px: int, ink: str, ground: str, seed: int = 0) -> Image.Image:
    """Return lines of words on a plain ground."""
    rng, image, font = np.random.default_rng(seed), Image.new("RGB", size_px, ground), ImageFont.load_default(letter_px)
    draw = ImageDraw.Draw(image)
    for top in range(20, size_px[1] - letter_px, int(1.5 * letter_px)):
        line = " ".join(rng.choice(WORDS, 20))
        while draw.textlength(line, font=font) > size_px[0] - 40:
            line = line[:-1]
        draw.text((20, top), line, fill=ink, font=font)
    return image


def share_of(image: Image.Image) -> float:
    return text_share(np.asarray(image.convert("L")))


@pytest.mark.parametrize("colours", [("black", "white"), ("white", "#223355"), ("#555555", "#eeeeee")])
@pytest.mark.parametrize("form", [((800, 600), 24), ((1240, 1754), 28), ((400, 300), 40), ((600, 90), 30)])
def test_a_page_is_text_and_stays_it_as_a_bad_jpeg(form, colours):
    shown = decode(encoded(page(*form, *colours), quality=40), 10)
    assert share_of(shown) > 0.9


def test_what_has_no_lines_of_letters_is_no_text():
    logo = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(logo).ellipse((100, 100, 300, 300), fill="red")
    poster = picture(1, 800, 600)
    poster.paste(page((800, 100), 40, "black", "white"), (0, 500))
    for image in (picture(0), logo, poster, Image.new("L", (64, 64), 255), Image.new("L", (1, 1))):
        assert share_of(image) < 0.5


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["photos_coco", "photos_hires", "dup_history", "dup_caltech", "dup_pdq"])
def test_no_photo_is_text(shared, folder):
    seen = 0
    for path in sorted((shared / folder).rglob("*.*")):
        try:
            image = decode(path.read_bytes(), 120)
        except UnreadableImage:
            continue
        seen += 1
        assert share_of(image) <= LIMIT, path.name
    assert seen > 10


@pytest.mark.shared
def test_screenshots_of_text_are(shared):
    """Two of real alt texts: a list of headers, and a terminal; and a diagram with captions that is not."""
    told = {}
    for name in ("blog_hsts_with-http-headers.png", "blog_db-testing-tool_subsetter.png", "blog_tock_screenshot.png"):
        told[name] = share_of(decode(next((shared / "web_alt").rglob(name)).read_bytes(), 120)) > LIMIT
    assert list(told.values()) == [True, True, False]
