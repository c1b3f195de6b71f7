"""Drive the demo in headless Chromium, as a visitor would; as a program it takes the pictures of docs/space.md.

    python -m tests.demo.browser docs/figures     # needs chromium, playwright; NiiVue from `hf-mu2 demo --fetch-viewer`

Reads: a running demo, phantoms. Writes: PNG.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_MS = 240_000
READY = ".mu2-viewer[data-ready]"
CHOSEN = ".mu2-sentence[aria-pressed=true]"
# WebGL 2 in software.
_FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def chromium() -> str:
    """Return Debian's Chromium, or skip the calling test."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return path


@contextmanager
def open_page(url: str, **options: Any) -> Iterator[Any]:
    """Open the demo in a page of its own, with its requests in `page.addresses` and its complaints in `page.errors`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_FLAGS)
        page = browser.new_context(**{"viewport": {"width": 1440, "height": 960}} | options).new_page()
        page.addresses, page.errors = [], []
        page.on("request", lambda request: page.addresses.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.wait_for_selector(".mu2-cases button")
        yield page
        browser.close()


def open_case(page: Any, name: str) -> None:
    """Pick a phantom and wait for its slices."""
    page.click(f"[data-case={name}]")
    page.wait_for_selector(READY)


def ask_for_report(page: Any) -> list[str]:
    """Ask by the first suggestion; return the texts of the answer as it grew, its evidence known at the end."""
    page.click(".mu2-suggestion")
    page.wait_for_selector(".mu2-reply")
    texts = []
    while not page.query_selector(".mu2-sentence"):
        text = page.locator(".mu2-text").last.inner_text()
        if text not in texts:
            texts.append(text)
        page.wait_for_timeout(50)
    wait_until_done(page)
    return texts


def wait_until_done(page: Any) -> None:
    page.wait_for_function("!document.querySelector('.mu2-working')")


def choose_sentence(page: Any, word: str) -> str:
    """Click the first sentence with a word in it; return what the viewer says of its map."""
    before = page.get_attribute(READY, "data-ready")
    page.locator(".mu2-sentence", has_text=word).first.click()
    page.wait_for_selector(CHOSEN)
    page.wait_for_function(f"document.querySelector('.mu2-viewer').dataset.ready !== '{before}'")
    page.wait_for_timeout(600)
    return page.inner_text(".mu2-check")


def take_pictures(url: str, folder: Path) -> None:
    """Take the pictures of the docs, all of phantoms."""
    with open_page(url, color_scheme="light") as page:
        open_case(page, "heart")
        page.wait_for_timeout(800)
        ask_for_report(page)
        page.screenshot(path=folder / "space_desktop.png")
        choose_sentence(page, "pericardial")
        page.screenshot(path=folder / "space_sentence.png")
    with open_page(url, color_scheme="dark") as page:
        open_case(page, "effusion")
        ask_for_report(page)
        choose_sentence(page, "pleural")
        page.screenshot(path=folder / "space_dark.png")
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
    with open_page(url, color_scheme="light", **phone) as page:
        open_case(page, "heart")
        ask_for_report(page)
        choose_sentence(page, "pericardial")
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(400)
        page.screenshot(path=folder / "space_phone.png", full_page=True)


def main(folder: str) -> None:
    from hf_mu2.demo.app import build_app, launch_options
    from hf_mu2.demo.desk import Desk
    from hf_mu2.reporting.inference import load_reader

    desk = Desk([load_reader()])
    app = build_app(desk)
    try:
        _, url, _ = app.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(desk)
        )
        take_pictures(url, Path(folder))
    finally:
        app.close(verbose=False)
        desk.close()


if __name__ == "__main__":
    main(sys.argv[1])
