"""The README's screenshots: pages of the demo's dashboard, drawn and looked at.

    make demo && .venv/bin/python -m pytest tests/dashboard/test_screenshots.py --screenshots docs/screenshots

draws them anew; without the flag they go to a temporary folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.dashboard.conftest import PROJECT, serving

DEMO = PROJECT / "runs" / "demo"
PAGES = {
    "funnel": "funnel",
    "what_if": "what-if",
    "browse": "browse",
    "duplicates": "duplicates",
    "training": "training",
}
"""By file name: the page's place."""
SEEN = "image => image.getBoundingClientRect().top < window.innerHeight"
"""Pictures further down are fetched when one scrolls to them."""
DRAWN = f"document.body.dataset.ready && [...document.images].filter({SEEN}).every(image => image.complete)"


@pytest.fixture(scope="module")
def demo_address():
    if not (DEMO / "train" / "base" / "run.json").exists():
        pytest.skip("no demo to draw: make demo writes runs/demo")
    with serving("--root", str(DEMO)) as address:
        yield address


@pytest.mark.parametrize("name", PAGES)
def test_the_demo_s_page_is_drawn(browser, demo_address, name, request, tmp_path):
    browser.open(f"{demo_address}#/{PAGES[name]}")
    browser.until(DRAWN)
    path = Path(request.config.getoption("--screenshots") or tmp_path) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    browser.driver.save_screenshot(str(path))
    few_colours = Image.open(path).convert("RGB").quantize(128)
    few_colours.save(path, optimize=True)
    assert len(few_colours.getcolors()) > 32, "a page of one colour is no page"
    assert browser.errors() == []
    assert browser.foreign() == []


def test_the_readme_shows_screenshots_that_exist():
    shown = {name for name in PAGES if f"docs/screenshots/{name}.png" in (PROJECT / "README.md").read_text()}
    assert {"funnel", "what_if"} <= shown
    assert all((PROJECT / f"docs/screenshots/{name}.png").is_file() for name in shown)
