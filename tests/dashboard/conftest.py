"""The dashboard as a process, and a headless Chromium that reaches nothing but it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.dashboard.made_root import write_root, write_training

PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """Run the command on a free port; yields the address that it prints."""
    command = [sys.executable, "pipelines/dashboard.py", "--port", "0", *flags]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    try:
        assert line.startswith("dashboard  http://"), line + process.stderr.read()
        address = line.split()[1]
        if "?token=" not in address:
            _wait_until_read(address)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()
        process.stderr.close()


@contextmanager
def visiting(browser: Browser, root: str) -> Iterator[str]:
    """Serve a root for one test; the browser leaves it before the server ends."""
    with serving("--root", root) as address:
        try:
            yield address
        finally:
            browser.driver.get("about:blank")


def _wait_until_read(address: str) -> None:
    while True:
        with urlopen(f"{address}api/progress", timeout=30) as answer:
            said = json.loads(answer.read())
        assert said["error"] is None
        if said["fragments_read"] == said["fragments"]:
            return
        time.sleep(0.05)


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard") / "made"
    write_root(str(folder))
    write_training(folder, "base", 40)
    return folder


class Browser:
    """A Chromium window, and what its pages said and asked for."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Open an address and wait until its page is drawn."""
        self.driver.get("about:blank")
        self.driver.get(address)
        self.until("document.body.dataset.ready")

    def until(self, condition: str, seconds: float = 15.0) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            found = self.driver.execute_script(f"return {condition}")
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {condition}\n{self.text()}\n{self.errors()}")

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

    def errors(self) -> list[str]:
        """Return what went to the console as a warning or an error since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def foreign(self) -> list[str]:
        """Return the addresses beyond loopback that pages asked for since the last call."""
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
        own = ("http://127.0.0.1:", "data:", "blob:", "about:", "file:///")
        return [address for address in asked if not address.startswith(own)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    binary, service = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or service is None:
        pytest.skip("no headless Chromium here: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    said = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1000")
    for argument in (*said, "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
