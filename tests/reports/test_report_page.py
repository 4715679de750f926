"""What every report is made of."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from markup import Page
from PIL import Image

from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import card, gallery, picture, thumbnail


def write(path: Path, *parts: str, script: str = "") -> str:
    page.write_page(path, "title", parts, script=script)
    return path.read_text()


def test_a_page_runs_its_own_script_and_no_other(tmp_path: Path) -> None:
    html = write(tmp_path / "r.html", page.table(["a"], [[1]], is_sortable=True), script="more();")
    found = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert found is not None
    assert found[1].endswith("more();")
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html
    assert "script" not in Page(write(tmp_path / "r.html", page.table(["a"], [[1]]))).tags


def test_a_thumbnail_shows_the_pixels_that_the_network_got() -> None:
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, 128:] = (200, 40, 90)
    data = thumbnail(pixels, size=64)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size, image.getexif()) == ("JPEG", (64, 64), {})
        shown = np.asarray(image.convert("RGB")).astype(int)
    # Away from the edge, chroma at half resolution and quality 75 move a plain colour by a few steps.
    assert np.abs(shown[:, :24]).max() <= 6
    assert np.abs(shown[:, 40:] - (200, 40, 90)).max() <= 6


def test_a_name_of_a_picture_stays_a_name() -> None:
    name = 'a"onerror=alert(1)\n<script>.jpg'
    found = Page(picture(b"jpeg", name=name, size=64))
    ((tag, attributes),) = found.elements
    assert (tag, attributes["alt"], attributes["width"]) == ("img", 'a"onerror=alert(1)\\n<script>.jpg', "64")
    assert attributes["src"] == "data:image/jpeg;base64,anBlZw=="


def test_line_ends_of_words_are_kept_and_those_of_names_are_visible() -> None:
    assert page.paragraph("one <b>\ntwo") == '<p class="note">one &lt;b&gt;<br>two</p>'
    row = Page(page.table([], [["a\nname <i>.jpg", page.lines("our own\nwords")]]))
    assert "br" in row.tags
    assert "i" not in row.tags
    assert row.words_in["td"] == ["a\\nname <i>.jpg", "our own", "words"]


def test_a_card_has_a_frame_for_a_photograph_that_is_gone() -> None:
    found = Page(gallery([card([b"jpeg", None], 'folder/a"<script>\n.jpg', ["tulip"])]))
    assert found.tags == ["div", "div", "img", "div", "br", "span"]
    assert found.words_in["span"] == ['a"<script>\\n.jpg']
    assert ("title", 'folder/a"<script>\\n.jpg') in found.attributes


def test_a_plot_follows_the_theme_and_pictures_keep_their_colours() -> None:
    pytest.importorskip("matplotlib")
    with page.drawing():
        plot, picture = page.new_figure(2, 1), page.new_figure(2, 1)
        plot.subplots().plot([0, 1], [0, 1])
        picture.subplots().imshow(np.zeros((4, 4, 3), np.uint8))
        assert 'class="plot"' in page.figure(plot, title="t", caption="c")
        assert 'class="paper"' in page.figure(picture, title="t", caption="c")


def test_figures_are_also_files_where_a_folder_is_given(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def draw(folder: Path | None) -> str:
        with page.drawing(plots=folder):
            drawn = page.new_figure(2, 1)
            drawn.subplots().plot([0, 1], [0, 1])
            return page.figure(drawn, title="Error, by epoch", caption="c")

    assert draw(tmp_path / "plots") == draw(None)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["error-by-epoch.png", "error-by-epoch.svg"]
    assert ET.parse(tmp_path / "plots" / "error-by-epoch.svg").getroot().tag.endswith("svg")
    with Image.open(tmp_path / "plots" / "error-by-epoch.png") as image:
        assert image.size == (300, 150)
