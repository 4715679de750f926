"""The page in Chromium, on a server with a tiny model: photographs are dropped on it and answered."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from PIL import Image
from running import SERVING, Running, running

from alexdeploy import Predictor
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.row import Row
from alexdeploy.serving.app import AppOptions
from alexdeploy.serving.models import Repository
from alexdeploy.serving.tokens import Tokens

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed"),
]

TOKEN = "a-token-of-some-length"
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
DROP = """(files) => {
  const data = new DataTransfer();
  for (const [name, text] of files)
    data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type: "image/jpeg" }));
  const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector(".drop").dispatchEvent(event);
}"""


def make_photograph(seed: int) -> bytes:
    """Coloured noise, 400 wide and 300 high."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((400, 300)).save(file, "JPEG")
    return file.getvalue()


FILES = {f"{seed}.jpg": make_photograph(seed) for seed in range(3)}
BROKEN = {"broken.jpg": FILES["0.jpg"][:600]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with (
        playwright.sync_playwright() as driver,
        closing(driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)) as browser,
    ):
        yield browser


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """(url, width) -> the page there. In the end its console must be empty: there stands what a policy blocks."""
    console: list[str] = []
    with ExitStack() as stack:

        def opened(url: str, width: int = 1200) -> Any:
            page = stack.enter_context(closing(browser.new_page(viewport={"width": width, "height": 800})))
            page.set_default_timeout(1000 * PATIENCE)
            page.on("console", lambda message: console.append(message.text))
            page.on("pageerror", lambda error: console.append(str(error)))
            page.goto(url)
            return page

        yield opened
    assert [text for text in console if "401 (Unauthorized)" not in text] == []


def drop(page: Any, files: dict[str, bytes]) -> None:
    page.evaluate(DROP, [[name, base64.b64encode(data).decode()] for name, data in files.items()])


def expect_status(page: Any, text: str) -> None:
    playwright.expect(page.locator("#status")).to_have_text(text, timeout=1000 * PATIENCE)


def predicted(folder: ModelFolder, files: dict[str, bytes]) -> list[Row]:
    with Predictor(folder, SERVING.predict) as predictor:
        return predictor.classify(list(files.values()))


def test_dropped_photographs_are_answered_and_a_broken_one_has_its_error_beside_them(
    open_page: Callable[..., Any], server: Running, model: ModelFolder
) -> None:
    page = open_page(server.url)
    drop(page, FILES | BROKEN)
    expect_status(page, "4 of 4 done, 1 failed")
    *whole, broken = page.locator(".card").all()
    for card, row, name in zip(whole, predicted(model, FILES), FILES, strict=True):
        assert card.locator("h2").inner_text() == name
        assert card.locator(".name").all_inner_texts() == [choice.label for choice in row.top]
        exact = [float(each.get_attribute("title")) for each in card.locator(".percent").all()]
        assert exact == [choice.probability for choice in row.top]
        assert card.locator("legend").inner_text() == f"{row.views_agreeing} of 10 views say {row.label}"
        answers = [text.split(": ")[1] for text in card.locator(".pip .unseen:not(input)").all_text_contents()]
        assert (len(answers), answers.count(str(row.label))) == (10, row.views_agreeing)
        assert (
            f"{model.path.name}, {row.backend} {row.precision}, 10 views, artifact {row.artifact}" in card.inner_text()
        )
    (row,) = predicted(model, BROKEN)
    assert row.error is not None
    assert broken.locator(".error").inner_text() == row.error


def test_a_view_that_is_chosen_with_the_keyboard_is_drawn_where_it_was_cut(
    open_page: Callable[..., Any], server: Running
) -> None:
    page = open_page(server.url)
    drop(page, {"0.jpg": FILES["0.jpg"]})
    expect_status(page, "1 of 1 done")
    page.locator(".all input").focus()
    # From "All views" to the first view, the top left one, and from there backwards to the last, the mirrored centre.
    page.keyboard.press("ArrowRight")
    assert "top left: " in page.locator(".votes > p").inner_text()
    (path,) = page.locator("path.edge").all()
    x, y, width, height = map(float, re.findall(r"[-\d.]+", path.get_attribute("d"))[:4])
    # The centre square of 400 x 300 begins at 50; a pixel of 256 is 300 / 256. The line lies within the view.
    inset = 0.007 * 300
    assert np.allclose((x, y), (50 + inset, inset))
    assert np.allclose((width, height), 227 * 300 / 256 - 2 * inset)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "centre, mirrored: " in page.locator(".votes > p").inner_text()
    assert "mirrored" in page.locator(".frame").get_attribute("class")


def test_the_page_fits_a_phone_and_is_reached_with_the_keyboard(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url, width=360)
    drop(page, FILES | BROKEN)
    expect_status(page, "4 of 4 done, 1 failed")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("h1").click()
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.type"))
    assert reached == ["model", "files", "clear", "radio"]


def test_a_token_is_asked_for_and_photographs_wait_for_it(open_page: Callable[..., Any], model: ModelFolder) -> None:
    with running(Repository([model], SERVING), AppOptions(tokens=Tokens([TOKEN]))) as server:
        page = open_page(server.url)
        drop(page, FILES)
        page.locator("#token:focus").wait_for()
        page.keyboard.type("not-that-one")
        page.keyboard.press("Enter")
        expect_status(page, "The server does not accept this token. Try another.")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect_status(page, "3 of 3 done")
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
