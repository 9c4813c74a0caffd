"""The demo, served once for all tests of the page, and a browser: the system's Chromium."""

import io
import os
import threading

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import safeqwen
from safeqwen import browser
from safeqwen.browser.page import example_bytes


CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


@pytest.fixture(scope="session")
def loaded():
    return safeqwen.load()


@pytest.fixture
def slow_model(loaded, monkeypatch):
    """The served model, which thinks for a while about every token and does not end by itself before the test does."""
    model, _ = loaded
    generate, end, is_over = model.generate, model.generation_config.eos_token_id, threading.Event()

    def think(ids, scores):
        if not is_over.wait(0.2):
            scores[:, end] = -float("inf")
        return scores

    monkeypatch.setattr(model, "generate", lambda **inputs: generate(**inputs, logits_processor=[think]))
    yield
    is_over.set()


@pytest.fixture(scope="session")
def address(loaded):
    model, processor = loaded
    blocks = browser.launch(model, processor, is_demo=True, block=False, max_new_tokens=48)
    yield blocks.local_url
    blocks.close()


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(chromium, address):
    """Opens the page as another visitor, and records whom it asked for anything."""
    contexts = []

    def open_page(**settings):
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 1000}, **settings})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        page.get_by_role("region", name="Verdict").wait_for()  # which the page's script names, when all is there
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def send():
    """Puts files, `(name, bytes)` each, into the field for pictures."""

    def send(page, *files):
        payload = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
        page.locator("#pictures input[type=file]").set_input_files(payload)

    return send


@pytest.fixture(scope="session")
def weapon():
    return example_bytes("weapon_related_violence")


@pytest.fixture(scope="session")
def harmless():
    return example_bytes("safe")


@pytest.fixture(scope="session")
def animation(weapon, harmless):
    """A GIF whose second frame is the weapon."""
    frames = [Image.open(io.BytesIO(data)).convert("RGB") for data in (harmless, weapon)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=200)
    return file.getvalue()
