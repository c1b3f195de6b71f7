"""The page in headless Chromium: a visit with a real volume, with the keyboard alone, and on a phone."""

import time

import pytest

from hf_mu2.demo.desk import Desk
from hf_mu2.demo.limits import Limits
from tests.paths import shared_data_or_skip

from .browser import ask_for_report, choose_sentence, chromium, open_case, open_page, wait_until_done

pytest.importorskip("gradio")
pytest.importorskip("playwright")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(reader):
    chromium()
    from hf_mu2.demo.app import build_app, launch_options

    desk = Desk([reader], Limits(confidence_samples=2, faithfulness_draws=9))
    app = build_app(desk)
    _, url, _ = app.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(desk)
    )
    yield url, desk
    app.close(verbose=False)
    desk.close()


def test_a_real_volume_is_opened_asked_about_explained_and_taken_along(server, tmp_path):
    url, desk = server
    real = shared_data_or_skip("ct", "tiny", "chest_lidc0314_4mm.nii.gz").read_bytes()
    with open_page(url) as page:
        upload = {"name": "DOE_JANE_1970.nii.gz", "mimeType": "application/gzip", "buffer": real}
        page.set_input_files(".mu2-drop input", upload)
        page.wait_for_selector(".mu2-viewer[data-ready]")
        assert list(desk.sessions.uploads.iterdir()) == []  # read, and gone
        assert len(ask_for_report(page)) > 3  # it streams
        assert "hiding its" in choose_sentence(page, "No")
        assert page.locator(".mu2-key-slices button").count() > 0
        page.locator(".mu2-key-slices button").first.click()
        for title, begins in (
            ("PDF", b"%PDF"),
            ("Text", b"Demo"),
            ("Heat map", b"\x1f\x8b"),
            ("Run record", b"{"),
        ):
            with page.expect_download() as download:
                page.click(f".mu2-downloads >> text={title}")
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            assert path.read_bytes().startswith(begins)
        assert "DOE" not in page.content() and not any("DOE" in address for address in page.addresses)
        elsewhere = [a for a in page.addresses if not a.startswith((url, "data:", "blob:"))]
        assert elsewhere == [] and page.errors == []
        # A follow-up in the same conversation.
        page.fill("textarea", "Is there a pleural effusion?")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('.mu2-turn').length === 2")
        wait_until_done(page)
    for _ in range(100):  # gradio notices a closed page at its next heartbeat
        left = [path for path in desk.sessions.root.iterdir() if path != desk.sessions.uploads]
        if not left:
            break
        time.sleep(0.3)
    assert left == []


def tab_to(page, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never reaches {selector}")


def test_the_keyboard_alone_is_enough(server):
    with open_page(server[0]) as page:
        tab_to(page, ".mu2-drop input")
        tab_to(page, "[data-case=normal]")
        page.keyboard.press("Enter")
        page.wait_for_selector(".mu2-viewer[data-ready]")
        tab_to(page, ".mu2-segment button")
        page.keyboard.press("ArrowRight")
        assert page.get_attribute("[data-preset=Mediastinum]", "aria-checked") == "true"
        tab_to(page, ".mu2-sliders input")
        before = page.input_value(".mu2-sliders input")
        page.keyboard.press("ArrowUp")
        assert int(page.input_value(".mu2-sliders input")) == int(before) + 1
        tab_to(page, ".mu2-suggestion")
        page.keyboard.press("Enter")
        page.wait_for_selector(".mu2-sentence")
        wait_until_done(page)
        tab_to(page, ".mu2-sentence")
        page.keyboard.press("Space")
        page.wait_for_selector(".mu2-sentence[aria-pressed=true]")
        tab_to(page, ".mu2-downloads a")
        tab_to(page, ".mu2-key-slices button")


def test_a_phone_shows_everything_in_its_width_and_the_notice_always(server):
    with open_page(server[0], viewport={"width": 390, "height": 844}, has_touch=True) as page:
        open_case(page, "normal")
        ask_for_report(page)
        choose_sentence(page, "No")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(300)
        notice = page.locator(".mu2-notice").bounding_box()
        assert notice["y"] >= 0 and notice["y"] + notice["height"] < 200


def test_without_niivue_the_server_draws_the_slices(reader, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MU2_CACHE", str(tmp_path))
    from hf_mu2.demo.app import build_app, launch_options

    desk = Desk([reader], Limits(faithfulness_draws=9))
    app = build_app(desk)
    try:
        _, url, _ = app.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(desk)
        )
        with open_page(url) as page:
            open_case(page, "normal")
            page.wait_for_function("document.querySelector('[data-plane=axial]').naturalWidth > 100")
            before = page.get_attribute(".mu2-plane[data-plane=axial]", "src")
            page.locator(".mu2-plane[data-plane=axial]").hover()
            page.mouse.wheel(0, -100)
            page.wait_for_function(f"document.querySelector('.mu2-plane').getAttribute('src') !== '{before}'")
            assert page.errors == []
    finally:
        app.close(verbose=False)
        desk.close()
