"""The dashboard in headless Chromium: every page, what a click and a key do, and that nothing else is asked for."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import duckdb
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from curate.config import Quota
from tests.dashboard.conftest import serving, visiting
from tests.dashboard.made_root import (
    BLOCKED,
    COPY,
    HOSTILE,
    HOSTILE_AT,
    ROWS,
    SETTINGS,
    UNSAFE,
    selected,
    uid,
    write_grid,
    write_root,
    write_training,
)
from tests.pipelines.small_run import run

pytestmark = pytest.mark.browser
PAGES = ("funnel", "distributions", "what-if", "browse", "duplicates", "labelling", "training", f"sample/{uid(0)}")


@pytest.fixture(scope="module")
def address(made_folder):
    with serving("--root", str(made_folder)) as address:
        yield address.rstrip("/")


@pytest.fixture(autouse=True)
def quiet(browser):
    """No test leaves a warning or error in the console, or a request beyond loopback, behind."""
    yield
    assert browser.errors() == []
    assert browser.foreign() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_drawn(browser, address, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for page in PAGES:
        browser.open(f"{address}/#/{page}")
        text = browser.text()
        assert f"{ROWS} samples" in text and "Darkroom" in text, page
        assert not browser.driver.find_elements(By.CLASS_NAME, "error"), text
        broken = "[...document.images].filter((image) => image.complete && !image.naturalWidth).length"
        assert browser.driver.execute_script(f"return {broken}") == 0, page
        if page in ("distributions", "training"):
            browser.until("document.querySelectorAll('.plot svg').length > 1")


def test_a_request_beyond_loopback_would_be_seen(browser, address):
    """The probe itself: the policy stops it, the console tells, and it does not count as the page's own doing."""
    browser.open(f"{address}/#/funnel")
    browser.driver.execute_script("fetch('http://example.org/').catch(() => {})")
    time.sleep(0.3)
    assert any("example.org" in message for message in browser.errors())
    browser.foreign()


def test_a_click_on_a_bar_shows_those_samples(browser, address):
    browser.open(f"{address}/#/funnel")
    browser.driver.find_element(By.CSS_SELECTOR, '[data-reason="duplicate_perceptual"] a').click()
    browser.until("document.querySelector('.grid-head .total')?.textContent === '1 – 1 of 1'")
    links = [tile.get_attribute("href") for tile in browser.driver.find_elements(By.CSS_SELECTOR, ".grid-rows .tile")]
    assert links == [f"{address}/#/sample/{uid(COPY)}"]


@pytest.mark.parametrize("name", ["aesthetic", "caption_chars", "aspect"])
def test_a_click_on_a_bin_shows_those_samples(browser, address, name):
    browser.open(f"{address}/#/distributions")
    bar = f"document.querySelector('[data-number={name}] .mark-rect path')"
    browser.until(bar)
    browser.driver.execute_script(f"{bar}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    browser.until(f"location.hash.includes('score={name}&') && document.querySelector('.grid-rows .tile')")
    assert not browser.driver.find_elements(By.CLASS_NAME, "error"), browser.text()


@pytest.mark.parametrize("at", range(3))
def test_a_click_on_a_bin_shows_as_many_samples_as_it_is_high(browser, address, at):
    browser.open(f"{address}/#/distributions")
    bars = "[...document.querySelectorAll('[data-number=width_px] .mark-rect path')]"
    bar = f"{bars}.filter((bar) => bar.__data__.datum.outcome === 'kept')[{at}]"
    rows = browser.until(f"{bar}?.__data__.datum.rows")
    browser.driver.execute_script(f"{bar}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    browser.until("location.hash.includes('score=width_px&') && document.querySelector('.grid-rows .tile')")
    assert browser.text().count(f" of {rows}\n") == 1, browser.text()


def test_a_typed_value_and_a_slider_count_as_duckdb_does(browser, address, made_folder):
    browser.open(f"{address}/#/what-if")
    before = int(browser.driver.find_element(By.ID, "kept").get_attribute("data-kept"))

    def kept(limit: float) -> int:
        where = f"""SELECT count(*) FROM '{made_folder}/tables/selection/*.parquet' n
            JOIN '{made_folder}/tables/scores/*.parquet' r USING (uid)
            WHERE (n.keep OR n.reject_reason = 'low_aesthetic') AND NOT r.aesthetic < {limit}"""
        return duckdb.sql(where).fetchall()[0][0]

    assert before == kept(4.0)
    typed = browser.driver.find_element(By.ID, "typed-min_aesthetic")
    typed.clear()
    typed.send_keys("6.3")
    assert kept(6.3) != before
    browser.until(f"document.getElementById('kept').dataset.kept === '{kept(6.3)}'")
    slider = browser.driver.find_element(By.CSS_SELECTOR, '[data-setting="min_aesthetic"] input[type="range"]')
    ActionChains(browser.driver).drag_and_drop_by_offset(slider, 60, 0).perform()
    value = browser.until("Number(document.getElementById('typed-min_aesthetic').value)")
    assert value not in (4.0, 6.3)
    browser.until(f"document.getElementById('kept').dataset.kept === '{kept(value)}'")
    browser.until("document.querySelectorAll('.sides .tile').length > 4")


def test_rules_over_the_whole_corpus_follow_a_moved_cut_off(browser, tmp_path):
    settings = replace(SETTINGS, quotas=(Quota(by="source", max_samples=9, rank_by="sharpness"),))
    write_root(str(tmp_path / "root"), settings=settings)

    def kept(limit: float) -> int:
        chosen = selected(str(tmp_path / "root"), replace(settings, min_aesthetic=limit)).to_pylist()
        return sum(row["keep"] for row in chosen)

    def told(kept: int) -> str:
        row = "document.querySelector('[data-rule=quota_source] .left-count').textContent"
        badge = "document.querySelector('.badge.exact').textContent"
        return f"document.getElementById('kept').dataset.kept === '{kept}' && {row} === '{kept}' && {badge} === 'exact'"

    assert kept(4.0) != kept(7.5)
    with visiting(browser, str(tmp_path / "root")) as address:
        browser.open(f"{address}#/what-if")
        browser.until(told(kept(4.0)))
        typed = browser.driver.find_element(By.ID, "typed-min_aesthetic")
        typed.clear()
        typed.send_keys("7.5")
        browser.until(told(kept(7.5)))


ONE_AT_A_TIME = """
const real = window.fetch;
window.sent = [], window.mostAtOnce = 0;
let atOnce = 0;
window.fetch = async (path, ...rest) => {
  if (!path.startsWith("/api/whole-counts")) return real(path, ...rest);
  window.sent.push(decodeURIComponent(path));
  window.mostAtOnce = Math.max(window.mostAtOnce, ++atOnce);
  await new Promise((done) => setTimeout(done, 2500));
  return real(path, ...rest).finally(() => atOnce--);
};
"""


def test_of_rules_over_the_whole_corpus_one_question_is_asked_at_a_time_and_the_newest_next(browser, tmp_path):
    settings = replace(SETTINGS, quotas=(Quota(by="source", max_samples=9, rank_by="sharpness"),))
    write_root(str(tmp_path / "root"), settings=settings)
    with visiting(browser, str(tmp_path / "root")) as address:
        browser.open(f"{address}#/what-if")
        exact = "document.querySelector('.badge.exact').textContent === 'exact'"
        browser.until(exact)
        browser.driver.execute_script(ONE_AT_A_TIME)
        typed = "document.getElementById('typed-min_aesthetic')"
        for value in (7.5, 7.0, 6.5):
            browser.driver.execute_script(f"{typed}.value = {value}; {typed}.dispatchEvent(new Event('input'))")
            browser.until("window.sent.length")
            time.sleep(0.7)
        browser.until(f"window.sent.length > 1 && {exact}")
        sent = browser.driver.execute_script("return window.sent")
        assert browser.driver.execute_script("return window.mostAtOnce") == 1
    assert [re.search(r"min_aesthetic=([\d.]+)", path).group(1) for path in sent] == ["7.5", "6.5"]


def test_save_as_config(browser, tmp_path):
    write_root(str(tmp_path / "root"), rows=20)
    with visiting(browser, str(tmp_path / "root")) as address:
        browser.open(f"{address}#/what-if")
        typed = browser.driver.find_element(By.ID, "typed-min_aesthetic")
        typed.clear()
        typed.send_keys("6.5")
        browser.driver.find_element(By.ID, "save").click()
        browser.until("document.querySelector('pre')?.textContent.includes('min_aesthetic: 6.5')")
    assert "min_aesthetic: 6.5" in (tmp_path / "root/what_if/selection-001.yaml").read_text()


def test_a_sample_is_opened_and_a_hostile_caption_is_text(browser, address):
    browser.open(f"{address}/#/browse?text=onerror")
    browser.until("document.querySelectorAll('.grid-rows .tile').length === 1")
    browser.driver.find_element(By.CSS_SELECTOR, ".grid-rows .tile").click()
    browser.until(f"location.hash === '#/sample/{uid(HOSTILE_AT)}' && document.querySelector('.captions')")
    assert browser.driver.find_element(By.CSS_SELECTOR, ".captions .caption").text == " ".join(HOSTILE.split())
    assert browser.driver.execute_script("return window.harmed") is None
    assert browser.driver.execute_script("return document.querySelectorAll('#main script').length") == 0
    browser.until("document.querySelectorAll('.strip .tile').length > 5")


def test_unsafe_is_blurred_until_clicked(browser, address):
    browser.open(f"{address}/#/sample/{uid(UNSAFE)}")
    blur = "getComputedStyle(document.querySelector('.large img')).filter"
    assert browser.driver.execute_script(f"return {blur}").startswith("blur(")
    browser.driver.find_element(By.CSS_SELECTOR, ".large .reveal").click()
    assert browser.driver.execute_script(f"return {blur}") == "none"


def test_the_grid_jumps_to_any_place(browser, tmp_path):
    write_root(str(tmp_path), rows=700)
    with visiting(browser, str(tmp_path)) as address:
        browser.open(f"{address}#/browse?sort=aesthetic")
        jump = browser.driver.find_element(By.NAME, "jump")
        jump.send_keys("600\n")
        browser.until("Number(document.querySelector('.grid-rows').dataset.first) > 500")
        shown = re.match(r"(\d+) – (\d+) of 699", browser.driver.find_element(By.CSS_SELECTOR, ".total").text)
        assert shown is not None and int(shown[1]) <= 600 <= int(shown[2])
        tiles = browser.driver.find_elements(By.CSS_SELECTOR, ".grid-rows .tile")
        assert len(tiles) == int(shown[2]) - int(shown[1]) + 1 < 100
        browser.driver.execute_script("document.querySelector('.scroller').scrollTop = 0")
        browser.until("document.querySelector('.grid-rows').dataset.first === '0'")


def test_labels_are_written_by_keyboard(browser, tmp_path):
    write_root(str(tmp_path), rows=30)
    with visiting(browser, str(tmp_path)) as address:
        browser.open(f"{address}#/labelling?score=aesthetic")
        seen = []
        for key in "gbgs":
            seen.append(browser.driver.find_element(By.CSS_SELECTOR, "[data-uid]").get_attribute("data-uid"))
            ActionChains(browser.driver).send_keys(key).perform()
            browser.until(f"document.querySelector('[data-uid]').dataset.uid !== '{seen[-1]}'")
        ActionChains(browser.driver).send_keys("u").perform()
        browser.until("document.body.innerText.includes('2 labelled')")
        browser.until("document.querySelectorAll('.vega-embed svg').length === 1")
    assert (tmp_path / "labels/aesthetic.csv").read_text() == f"uid,label\n{seen[0]},1\n{seen[1]},0\n"


def test_training_asks_for_new_points_only(browser, tmp_path):
    write_root(str(tmp_path), rows=20)
    metrics = write_training(tmp_path, "base", 30)
    with visiting(browser, str(tmp_path)) as address:
        browser.open(f"{address}#/training")
        browser.until("document.querySelectorAll('[data-series=loss] svg').length === 1")
        size = metrics.stat().st_size
        with metrics.open("a") as file:
            file.write(json.dumps({"step": 31, "time": 0, "loss": 7.0}) + "\n")
        asked = (
            "performance.getEntriesByType('resource').map((one) => one.name).filter((name) => name.includes('points'))"
        )
        found = browser.until(f"({asked}).length > 1 && {asked}")
    assert "since=0" in found[0]
    assert f"since={size}" in found[1]


def test_one_slider_goes_through_the_grids_of_all_runs_and_follows_the_newest(browser, tmp_path):
    write_root(str(tmp_path), rows=20)
    for run_name, steps in (("base", (0, 40)), ("refiner", (0, 20))):
        write_training(tmp_path, run_name, 30)
        for step in steps:
            write_grid(tmp_path, run_name, step, "red")
    said = "[...document.querySelectorAll('[data-grid] h3')].map((one) => one.textContent.split(', ').at(-1)).join()"
    loaded = "[...document.querySelectorAll('[data-grid] img')].every((one) => one.naturalWidth > 0)"
    with visiting(browser, str(tmp_path)) as address:
        browser.open(f"{address}#/training")
        browser.until(f"{said} === 'step 40,step 20' && {loaded}")
        write_grid(tmp_path, "refiner", 80, "green")
        browser.until(f"{said} === 'step 40,step 80' && {loaded}")
        slider = browser.driver.find_element(By.ID, "grid-step")
        slider.send_keys(Keys.HOME)
        browser.until(f"{said} === 'step 0,step 0' && {loaded}")
        write_grid(tmp_path, "base", 120, "white")
        browser.until("document.getElementById('grid-step').max === '4'")
        assert browser.driver.execute_script(f"return {said}") == "step 0,step 0"


def test_the_exported_page_opens_alone(browser, made_folder, tmp_path):
    done = run("pipelines/dashboard.py", "--root", str(made_folder), "--export", str(tmp_path / "page.html"))
    assert done.stdout.startswith("page ")
    for page in ("funnel", "distributions", "what-if"):
        browser.open(f"file://{tmp_path / 'page.html'}#/{page}")
        assert f"{ROWS} samples" in browser.text()
        assert not browser.driver.find_elements(By.CLASS_NAME, "error"), browser.text()
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, ".sides img")) > 10
    assert browser.driver.execute_script("return window.harmed") is None
    assert uid(BLOCKED) not in browser.driver.page_source
    browser.open(f"file://{tmp_path / 'page.html'}#/distributions")
    browser.until("document.querySelectorAll('.plot svg').length > 5")


def test_a_missing_table_is_told(browser, tmp_path):
    root = write_root(str(tmp_path), rows=20)
    for table in ("duplicates", "selection"):
        root.remove(f"tables/{table}", recursive=True)
    with visiting(browser, str(tmp_path)) as address:
        browser.open(f"{address}#/duplicates")
        assert "table duplicates is not there yet: run python pipelines/dedup.py" in browser.text()
        assert "no cluster has two members" in browser.text()
