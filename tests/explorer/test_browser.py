"""The explorer in a real browser: a notebook in JupyterLab, on this machine alone, driven as a user would."""

import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("jupyterlab", "playwright"),
    pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium to test the explorer in one"),
]

#: Small, so that what takes time is the browser.
START = {
    "rounds": 40,
    "record": 20,
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "digits", "classes": [0, 1], "samples": 12, "test_samples": 0},
    "split": {"agents": 4, "by": "label"},
    "mixing": {"graph": "cycle", "weights": "metropolis"},
    "algorithm": {"name": "DGD", "step_size": 0.1},
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
#: Milliseconds that anything on the page may take.
PATIENCE = 60_000


def notebook() -> dict:
    source = f"import ntkp2p as p2p\n\nexplorer = p2p.explore({START!r})\nexplorer"
    cell = {"cell_type": "code", "id": "explore", "metadata": {}, "outputs": [], "execution_count": None}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [cell | {"source": source}],
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(tmp_path, compiled_once):
    """The address of a notebook in a JupyterLab without any settings of this user and without access to the network."""
    folder, home = tmp_path / "notebooks", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "explore.ipynb").write_text(json.dumps(notebook()))
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "XDG_CACHE_HOME")
    environment = os.environ | {name: str(home / name.lower()) for name in places}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(compiled_once), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    settings = home / "jupyter_config_dir" / "labconfig"
    settings.mkdir(parents=True)
    # News and updates would be looked for elsewhere.
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "page_config.json").write_text(json.dumps(news))
    port, token = free_port(), secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": token,
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.handlers.announcements.NeverCheckForUpdate",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *arguments],
        env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}/doc/tree/explore.ipynb?token={token}"
    finally:
        # The kernel is in the server's session, and goes with it.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            pytest.fail(f"JupyterLab has ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer: {log.read_text()[-2000:]}")


@pytest.fixture
def page():
    """A page 1,280 pixels wide, and what its console says of errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.set_default_timeout(PATIENCE)
        tab.errors = []
        tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        yield tab
        browser.close()


def pixels(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"), int)


def changed(page, picture, before: str) -> None:
    """Wait until a picture is another one."""
    page.wait_for_function("([image, before]) => image.src !== before", arg=[picture.element_handle(), before])
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())


def inked(shown: np.ndarray) -> int:
    """The pixels that are not white."""
    return int((shown.min(axis=-1) < 240).sum())


def says(page, element, words: str) -> None:
    """Wait until it does."""
    arguments = [element.element_handle(), words]
    page.wait_for_function("([element, words]) => (element.value ?? element.innerText).includes(words)", arg=arguments)


def test_moves_and_training_in_jupyterlab(lab, page, tmp_path):
    page.goto(lab)
    page.locator(".jp-Notebook .cm-content").first.click()
    # Before its kernel is connected JupyterLab takes the keys, and drops what they ask for.
    page.get_by_text("| Idle").wait_for()
    page.keyboard.press("Shift+Enter")
    curves = page.locator(".jp-OutputArea img.widget-image").first
    curves.wait_for()
    verdict = page.locator(".widget-html-content").filter(has_text="Rounds:")
    assert "stable" in verdict.inner_text()
    source, drawn = curves.get_attribute("src"), pixels(curves)
    assert drawn.std() > 10  # it is no blank

    page.get_by_role("button", name="Copy as Python").click()
    program = page.locator(".widget-textarea textarea")
    says(page, program, "p2p.Experiment(")
    assert program.evaluate("text => text === document.activeElement")  # Ctrl+A and Ctrl+C are for the source

    handle = page.locator(".widget-slider").filter(has_text="step size").locator(".noUi-handle")
    handle.focus()
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    says(page, program, "step_size=0.282)")
    says(page, verdict, "unstable")
    changed(page, curves, source)
    assert (pixels(curves) != drawn).any()
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    says(page, program, "step_size=0.1)")

    page.get_by_role("button", name="Train").click()
    page.get_by_text("Trained for 40 rounds.").wait_for()
    page.wait_for_timeout(200)  # the picture came before these words, and is decoded
    assert inked(pixels(curves)) > 1.3 * inked(drawn)  # trained curves are four times as broad
    page.locator(".jp-OutputArea").first.evaluate("area => area.scrollIntoView()")
    page.screenshot(path=tmp_path / "explorer.png")
    assert not page.errors
