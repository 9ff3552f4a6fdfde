"""The page in a real browser: clicks, a box, an upload, tracking, a correction, bad files, two users at once."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.data.video import write_video
from qsam2_ao.web.answers import Models

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")]
#: A folder for screenshots, to look at.
SCREENSHOTS = os.environ.get("QSAM2_SCREENSHOTS")


@pytest.fixture(scope="module")
def address(models: Models) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn")
    from qsam2_ao.web.app import make_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(models, max_upload=2_000_000, max_frames=10, hosts=["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address: str) -> Iterator:
    page = browser.new_page(viewport={"width": 1100, "height": 760})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else problems.append(request.url)
    )
    page.on("response", lambda response: problems.append(response.url) if response.status == 404 else None)
    page.goto(address)
    sync_api.expect(page.locator("section.panel")).to_have_count(2)
    yield page
    page.close()
    assert not problems, "an error of the script, a request to elsewhere, or what is not there"


def open_sample(page, number: int) -> None:
    page.select_option("#sample", str(number))
    sync_api.expect(page.locator("#message")).to_contain_text("Click on an object", timeout=20_000)


def click(page, x: float, y: float, panel: int = 0) -> None:
    area = page.locator("canvas").nth(panel).bounding_box()
    page.mouse.click(area["x"] + x * area["width"], area["y"] + y * area["height"])


def answer(page, panel: int, text: str) -> str:
    found = page.locator(".answer").nth(panel)
    sync_api.expect(found).to_contain_text(text, timeout=20_000)
    return found.inner_text()


def shot(page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def pixels(page, panel: int = 0) -> str:
    return page.locator("canvas").nth(panel).evaluate("canvas => canvas.toDataURL()")


def test_clicks_and_a_box_on_a_picture(page):
    open_sample(page, 2)
    before = pixels(page)
    click(page, 0.4, 0.5)
    assert "own score" in answer(page, 0, "the reference")
    assert "own score" in answer(page, 1, "IoU with embedded")
    assert pixels(page) != before
    page.check("input[value=outside]")
    click(page, 0.9, 0.1, panel=1)
    sync_api.expect(page.locator("#message")).to_contain_text("Click again")
    page.click("#add")
    page.check("input[value=box]")
    area = page.locator("canvas").first.bounding_box()
    page.mouse.move(area["x"] + 0.1 * area["width"], area["y"] + 0.1 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.5 * area["width"], area["y"] + 0.6 * area["height"])
    page.mouse.up()
    sync_api.expect(page.locator("#message")).to_contain_text("Click again")
    page.wait_for_timeout(500)
    shot(page, "picture")
    with page.expect_download() as download:
        page.locator("a[data-form=overlay]").first.click()
    assert Image.open(download.value.path()).size == (256, 256)
    for _ in range(3):
        page.click("#undo")
    sync_api.expect(page.locator(".answer").first).to_have_text("")
    assert pixels(page) == before


def test_a_clip_is_tracked_scrubbed_and_corrected(page, tmp_path: Path):
    path = tmp_path / "mine.mp4"
    write_video(path, list(generate_sequence("test", 0, size=(192, 192), num_frames=8).frames), 8)
    page.set_input_files("#file", path)
    sync_api.expect(page.locator("#name")).to_contain_text("mine.mp4, 192 x 192, 8 frames")
    page.click("#track")
    sync_api.expect(page.locator("#message")).to_contain_text("Click on an object first")
    click(page, 0.55, 0.25)
    answer(page, 1, "IoU with embedded")
    page.click("#track")
    sync_api.expect(page.locator("#message")).to_contain_text("tracked:", timeout=30_000)
    page.locator("#frame").fill("5")
    sync_api.expect(page.locator("#where")).to_have_text("frame 5 of 7")
    answer(page, 1, "ms a frame")
    tracked = pixels(page, 1)
    shot(page, "tracked")
    click(page, 0.5, 0.3, panel=1)
    answer(page, 1, "own score")
    sync_api.expect(page.locator("#message")).to_contain_text("of this frame's clicks alone")
    page.click("#track")
    sync_api.expect(page.locator("#message")).to_contain_text("tracked:", timeout=30_000)
    answer(page, 1, "ms a frame")
    assert pixels(page, 1) != tracked
    with page.expect_download() as download:
        page.locator("a[data-form=overlay]").nth(1).click()
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"


def test_a_long_clip_and_the_figures_are_explained(page, tmp_path: Path):
    path = tmp_path / "long.mp4"
    write_video(path, list(generate_sequence("test", 0, num_frames=12).frames), 8)
    page.set_input_files("#file", path)
    sync_api.expect(page.locator("#name")).to_have_text("long.mp4, 96 x 96, the first 10 of 12 frames")
    page.locator("#help summary").click()
    sync_api.expect(page.locator("#help dd").first).to_be_visible()
    shot(page, "help")


def test_bad_files_are_explained(page, tmp_path: Path):
    for name, content, message in (
        ("a.png", b"no picture", "cannot be read as a picture"),
        ("a.txt", b"text", "no ending of a picture or video"),
        ("a.mp4", bytes(2_000_001), "at most"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        sync_api.expect(page.locator("#message.error")).to_contain_text(message)


def test_two_users_and_a_phone(page, browser, address: str):
    other = browser.new_page(viewport={"width": 390, "height": 800})
    other.goto(address)
    sync_api.expect(other.locator("section.panel")).to_have_count(2)
    open_sample(page, 0)
    open_sample(other, 1)
    for each in (page, other):
        click(each, 0.5, 0.5)
        answer(each, 1, "IoU with embedded")
        each.click("#track")
    for each in (page, other):
        sync_api.expect(each.locator("#message")).to_contain_text("tracked:", timeout=60_000)
    assert pixels(page) != pixels(other)
    assert other.evaluate("document.documentElement.scrollWidth") == 390, "the page is wider than the phone"
    shot(other, "phone")
    other.close()
