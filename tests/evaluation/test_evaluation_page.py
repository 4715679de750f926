"""The HTML report: one file, the same each time, whatever the classes are called."""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import re
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from markup import Page

from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.core.printable import escape
from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation.evaluate import choose_bases
from alexdeploy.evaluation.examples import Candidates
from alexdeploy.evaluation.html import write_report
from alexdeploy.evaluation.results import BrokenImage, Evaluation
from alexdeploy.evaluation.scoring import Answer, Tally
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import thumbnail

pytest.importorskip("matplotlib")

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></figure><b>",
    "$\\frac{1}{2}$",
    "$unclosed",
    "_hidden",
    "red\x1b[31m\x00\u202ehsab",
    "日本語",
    "a & b; &lt;",
    "100 %s {x}",
)


PIXELS = np.full((256, 256, 3), (200, 40, 90), np.uint8)


def make_evaluation(classes: tuple[str, ...], num_configurations: int = 2, num_images: int = 200) -> Evaluation:
    """What an evaluation of a model would give whose answers are drawn here."""
    rng = np.random.default_rng(0)
    views = (1, 10, 5)
    named = [Configuration(backend="openvino", precision="fp32", num_views=views[i]) for i in range(num_configurations)]
    tallies = [Tally(len(classes)) for _ in named]
    candidates = Candidates(choose_bases(named))
    for index in range(num_images):
        label = index % len(classes)
        logits = rng.normal(size=len(classes))
        logits[label] += 1.5
        answers: list[Answer] = []
        for tally in tallies:
            scores = np.exp(logits + 0.3 * rng.normal(size=len(classes)))
            answer = tally.add(label, (scores / scores.sum()).astype(np.float32), answers[0] if answers else None)
            answers.append(answer)
        candidates.add(index, f"<u>{classes[label]}</u>/{index}.jpg", label, answers)
    for tally in tallies:
        tally.add_broken(0)
    scores = tuple(
        tally.score(name, artifact="c0ffee", names=classes, seconds=2.0, base=None if name is named[0] else named[0])
        for tally, name in zip(tallies, named, strict=True)
    )
    examples = candidates.choose(scores)
    return Evaluation(
        model="models/<i>m</i>",
        name="<i>m</i>",
        contract_sha256="abc",
        data="data",
        labels=None,
        num_images=num_images + 1,
        num_broken=1,
        num_unlabelled=3,
        classes=classes,
        scores=scores,
        examples=examples,
        broken=(BrokenImage(source="<u>x</u>.jpg", label=0, error="damaged <JPEG>"),),
        notes=("a note with <angles>",),
        versions={"alexdeploy": "0"},
        machine={"processors": 2},
        # A thumbnail is missing: that photograph is no longer there.
        thumbnails={index: thumbnail(PIXELS) for index in sorted(examples.indices)[1:]},
    )


def write(found: Evaluation, path: Path) -> str:
    write_report(found, path)
    return path.read_text(encoding="utf-8")


@functools.cache
def page_of(classes: tuple[str, ...], num_configurations: int = 2) -> str:
    """The page of `make_evaluation`, whose plots take most of the time: drawn once, and the only file written."""
    with tempfile.TemporaryDirectory() as folder:
        text = write(make_evaluation(classes, num_configurations), Path(folder) / "r.html")
        assert os.listdir(folder) == ["r.html"]
    return text


def test_hostile_names_are_text_and_nothing_else() -> None:
    page = Page(page_of(HOSTILE))
    assert not {"i", "u", "iframe", "object", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for shown in ("<script>alert(1)</script>", "$unclosed", "_hidden", "日本語", "a & b; &lt;", "100 %s {x}"):
        assert shown in page.text
    assert "<u>x</u>.jpg" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    # Only the script of the tables that sort, pictures that are in the page, and the answers below them.
    assert page.tags.count("script") == 1
    assert {attributes["src"][:23] for tag, attributes in page.elements if tag == "img"} == {"data:image/jpeg;base64,"}
    assert set(page.words_in["b"]) <= {escape(name) for name in HOSTILE}


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page_of(tuple("abcdef"))
    page = Page(text)
    for name, value in page.attributes:
        if name in ("href", "src", "xlink:href"):
            assert str(value).startswith(("#", "data:image/jpeg;base64,"))
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"url\((?!#)|@import", text)


def test_every_figure_is_whole_and_says_how_to_read_it() -> None:
    text = page_of(tuple("abcdef"), num_configurations=3)
    figures = re.findall(
        r'<figure role="img" aria-label="(.+?)" class="plot">\n<div class="scroll">(<svg.*?</svg>)\n</div>'
        r"<figcaption>(.+?)</figcaption>",
        text,
        re.S,
    )
    assert [title for title, _, _ in figures] == [
        "Top-1 and top-5 error of each configuration",
        "Classes with the largest error",
        "Reliability: share of right answers by their probability",
        "Confusion matrix",
        "Precision against recall, average over the classes",
        "Precision against recall, single classes",
        "Answers that changed",
    ]
    for _, svg, caption in figures:
        ET.fromstring(svg)
        assert len(caption) > 40


def test_names_inside_figures_do_not_meet_those_of_another() -> None:
    text = page_of(tuple("abcdef"), num_configurations=3)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(names)


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(make_evaluation(HOSTILE), tmp_path / "b.html") == page_of(HOSTILE)


def test_the_figures_of_the_table_are_those_of_the_evaluation() -> None:
    found = make_evaluation(tuple("abcdef"))
    text = Page(page_of(tuple("abcdef"))).text
    for score in found.scores:
        assert f"{score.top1.percent:.2f} [{score.top1.low_percent:.2f}, {score.top1.high_percent:.2f}]" in text
    assert "201 images of 6 classes from data, 1 of them could not be read and counts as wrong" in text
    assert "3 more without a label do not count" in text


def test_of_five_classes_a_page_has_no_top_5_error() -> None:
    for classes, is_told in (("abcde", False), ("abcdef", True)):
        page = Page(page_of(tuple(classes)))
        assert ("top-5" in page.text) is is_told
        titles = [value for name, value in page.attributes if name == "aria-label"]
        assert titles[0] == f"Top-1{' and top-5' if is_told else ''} error of each configuration"


def test_a_large_matrix_becomes_a_list_of_confusions(tmp_path: Path) -> None:
    found = make_evaluation(tuple(f"class {index}" for index in range(50)), num_images=500)
    text = write(found, tmp_path / "r.html")
    assert 'aria-label="Confusion matrix"' not in text
    assert "taken for" in text


def test_one_configuration_is_compared_with_nothing(tmp_path: Path) -> None:
    text = write(make_evaluation(("a", "b"), num_configurations=1), tmp_path / "r.html")
    assert "What changes against" not in text


@pytest.mark.parametrize("right", [True, False])
def test_an_evaluation_without_errors_or_without_answers_has_a_report(tmp_path: Path, right: bool) -> None:
    tally = Tally(2)
    if right:
        tally.add(0, np.array([0.9, 0.1], np.float32), None)
    else:
        tally.add_broken(0)
    name = Configuration(backend="torch", precision="fp32", num_views=1)
    score = tally.score(name, artifact="c0", names=("a", "b"), seconds=0.0, base=None)
    found = dataclasses.replace(
        make_evaluation(("a", "b")),
        scores=(score,),
        examples=Candidates((None,)).choose([score]),
        broken=(),
        num_images=1,
        num_broken=0 if right else 1,
    )
    page = Page(write(found, tmp_path / "r.html"))
    assert ("No image could be read" in page.text) is not right
    assert ("svg" in page.tags) is right
    assert ("Every answer is right." in page.text) is right


def test_lines_of_a_table_are_lines() -> None:
    text = page_of(tuple("abcdef"))
    assert "<td>openvino fp32 10 views<br>against openvino fp32 1 view</td>" in text
    assert "\\n" not in text


def test_photographs_have_answers_and_a_frame_where_one_is_gone() -> None:
    found = make_evaluation(tuple("abcdef"))
    page = Page(page_of(tuple("abcdef")))
    groups = [found.examples.confident, *(each.images for each in (*found.examples.by_class, *found.examples.changed))]
    shown = [image for group in groups for image in group]
    gone = sum(image.index not in found.thumbnails for image in shown)
    assert gone >= 1
    assert page.tags.count("img") == len(shown) - gone
    assert [value for name, value in page.attributes if name == "class"].count("none") == gone
    sure = found.examples.confident[0]
    assert f"is {found.classes[sure.label]}" in page.text
    assert f" {sure.answers[0].probability:.3f}" in page.text
    # The two configurations differ in their views alone.
    assert "10 views: " in page.text


def test_the_table_of_classes_sorts_and_is_a_file_too(tmp_path: Path) -> None:
    found = make_evaluation(HOSTILE)
    write_report(found, None, tmp_path / "plots")
    assert sorted(path.suffix for path in (tmp_path / "plots").iterdir()) == [".csv", *[".png"] * 7, *[".svg"] * 7]
    with (tmp_path / "plots" / "classes.csv").open(newline="", encoding="utf-8") as file:
        # The reader of Python 3.10 refuses NUL.
        rows = list(csv.DictReader(line.replace("\0", "(NUL)") for line in file))
    assert [row["class"] for row in rows] == [name.replace("\0", "(NUL)") for name in HOSTILE]
    for score in found.scores:
        key = f"openvino_fp32_{score.configuration.num_views}"
        assert [float(row[f"f1_{key}"]) for row in rows] == [entry.f1 for entry in score.classes]
    text = page_of(HOSTILE)
    assert text.count('<table class="sortable">') == 1
    assert f">{found.scores[0].classes[3].f1:.3f}<" in text


def test_nothing_that_changed_is_said_in_words(tmp_path: Path) -> None:
    found = make_evaluation(("a", "b"))
    same = dataclasses.replace(found.scores[1], versus=None)
    first = found.scores[0]
    versus = dataclasses.replace(
        found.scores[1].versus, num_flips=0, right_to_wrong=0, wrong_to_right=0, wrong_to_wrong=0, classes=()
    )
    found = dataclasses.replace(found, scores=(first, dataclasses.replace(same, versus=versus)))
    assert "No answer changed." in Page(write(found, tmp_path / "r.html")).text


def test_a_report_without_matplotlib_is_refused_with_the_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        page.check_page_path(tmp_path / "r.html")
    assert caught.value.hint == "Install it: pip install 'alexdeploy[report]'"


def test_a_folder_and_a_file_in_a_file_are_no_places_for_a_page(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        page.check_page_path(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"could not be written: .*file is not a folder"):
        page.check_page_path(tmp_path / "file" / "below" / "r.html")
    with pytest.raises(OutputError):
        page.write_page(tmp_path / "file" / "r.html", "title", [])


def test_long_names_are_cut_at_the_axes() -> None:
    assert page.short_name("x" * 100) == "x" * 29 + "..."
    assert page.short_name("tench\n") == "tench\\n"


def test_of_many_broken_images_the_page_has_the_first_and_the_number_of_the_others(tmp_path: Path) -> None:
    found = make_evaluation(("a", "b"))
    broken = tuple(BrokenImage(source=f"{number}.jpg", label=0, error="damaged") for number in range(203))
    text = write(dataclasses.replace(found, broken=broken), tmp_path / "r.html")
    assert text.count("damaged") == 200
    assert "and 3 more" in text
