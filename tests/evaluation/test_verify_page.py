"""The page of a verification: what differs, with both answers, whatever images and classes are called."""

from __future__ import annotations

import csv
import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from helpers import write_pictures
from markup import Page

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.evaluation.agreement import (
    BrokenImage,
    DecoderReport,
    EngineReport,
    LayerError,
    NetworkReport,
    Verification,
    compare,
)
from alexdeploy.evaluation.answers import NUM_CHANGED, NUM_DIFFERENT, best_answers, engine_answers, image_rows
from alexdeploy.evaluation.verify import VerifyOptions, verify
from alexdeploy.evaluation.verify_html import write_report
from alexdeploy.reports.thumbnails import thumbnail

pytest.importorskip("matplotlib")

CLASSES = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x$", "red\x1b[31m", "a & b")


def made(num_images: int, noise: float) -> tuple[Verification, np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    expected = rng.dirichlet(np.ones(5), num_images).astype(np.float32)
    actual = [(expected + noise * scale * rng.normal(size=expected.shape)).astype(np.float32) for scale in (0.0, 1.0)]
    names = [f'<i>{number}</i>/"x"\n.jpg' for number in range(num_images)]
    engines = [
        EngineReport(
            artifact="model.onnx",
            precision=precision,
            backend="openvino",
            sha256="c0ffee",
            agreement=compare(expected, scores, expected),
            jump=None,
            failure=None,
        )
        for precision, scores in zip(("fp32", "fp16"), actual, strict=True)
    ]
    network = NetworkReport(
        artifact="model.fp16.onnx",
        precision="fp16",
        sha256="c0ffee",
        agreement=engines[1].agreement,
        layers=(
            LayerError(name="conv1", rms_error=1e-4, max_error=1e-3),
            LayerError(name="<b>", rms_error=0.1, max_error=1),
        ),
        jump="<b>",
        failure="too bad",
    )
    decoders = DecoderReport(
        decoder="nvImageCodec",
        num_images=3,
        num_left=0,
        num_identical=2,
        mean_difference=0.1,
        max_difference=3,
        agreement=engines[0].agreement,
        failure=None,
    )
    found = Verification(
        model="models/<i>m</i>",
        reference="torch",
        images="<u>photos</u>",
        num_found=num_images,
        num_images=num_images,
        num_views=1,
        max_flips=1.0,
        broken=(BrokenImage(source="<u>", error="damaged"),),
        networks=(network,),
        engines=tuple(engines),
        decoders=decoders,
        rows=image_rows(
            names, best_answers(CLASSES, expected), [engine_answers(CLASSES, expected, scores) for scores in actual]
        ),
        thumbnails={number: thumbnail(np.zeros((256, 256, 3), np.uint8)) for number in range(1, num_images)},
    )
    return found, expected, actual


def test_rows_are_those_of_numpy() -> None:
    found, expected, actual = made(200, 0.1)
    for number, row in enumerate(found.rows):
        assert row.expected.index == expected[number].argmax()
        for scores, each in zip(actual, row.answers, strict=True):
            assert each is not None
            assert (each.answer.index, each.answer.label) == (scores[number].argmax(), CLASSES[scores[number].argmax()])
            differences = scores[number].astype(np.float64) - expected[number]
            assert each.difference == differences[np.abs(differences).argmax()]
    changed = sum(row.is_changed for row in found.rows)
    assert changed == found.engines[1].agreement.num_flips > 20
    assert max(row.max_difference for row in found.rows) == found.engines[1].agreement.max_error


def test_hostile_names_are_text_and_the_number_of_photographs_is_bounded(tmp_path: Path) -> None:
    found, _, _ = made(400, 0.1)
    write_report(found, tmp_path / "r.html", tmp_path / "plots")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not {"script", "i", "u", "iframe", "object", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\x1b" not in page.text
    assert "<script>alert(1)</script>" in page.text
    assert sum(row.is_changed for row in found.rows) > NUM_CHANGED
    cards = page.tags.count("img") + [value for name, value in page.attributes if name == "class"].count("none")
    assert cards == NUM_CHANGED + NUM_DIFFERENT
    plots = sorted((tmp_path / "plots").glob("*.svg"))
    assert len(plots) == 3
    for plot in plots:
        assert "mathdefault" not in plot.read_text(encoding="utf-8")
        ET.parse(plot)
    with (tmp_path / "plots" / "answers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [row.source for row in found.rows]
    write_report(found, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "r.html").read_bytes()


def test_an_output_that_is_not_finite_has_no_answer(tmp_path: Path) -> None:
    found, expected, actual = made(5, 0.0)
    actual[1][3, 2] = np.nan
    answers = [engine_answers(CLASSES, expected, scores) for scores in actual]
    assert [each is None for each in answers[1]] == [False, False, False, True, False]
    rows = image_rows([row.source for row in found.rows], best_answers(CLASSES, expected), answers)
    write_report(dataclasses.replace(found, rows=rows), tmp_path / "r.html")
    assert "Every engine gives every image the answer" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_verification_has_the_rows_and_thumbnails_of_its_engines(tiny_model: ModelFolder, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6)
    options = VerifyOptions(backends=("onnxruntime",), thumbnails=True)
    found = verify(tiny_model, [str(pictures)], options)
    assert [row.source for row in found.rows] == [str(path) for path in sorted(pictures.iterdir())]
    for number, report in enumerate(found.engines):
        given = [row.answers[number] for row in found.rows]
        assert max(abs(each.difference) for each in given if each is not None) == report.agreement.max_error
    assert set(found.thumbnails) == {number for number, row in enumerate(found.rows) if row.max_difference > 0}
    assert "thumbnails" not in found.document()


def test_what_was_not_compared_has_no_table(tmp_path: Path) -> None:
    found, _, _ = made(20, 0.1)
    networks = dataclasses.replace(found, engines=(), rows=(), thumbnails={}, decoders=None)
    write_report(networks, tmp_path / "networks.html")
    text = (tmp_path / "networks.html").read_text(encoding="utf-8")
    assert "Photographs whose answer changed" not in text
    assert "Engines, from pixels to probabilities" not in text
    assert "model.fp16.onnx" in text
    broken = tuple(BrokenImage(source=f"{number}.jpg", error="damaged") for number in range(203))
    write_report(dataclasses.replace(found, networks=(), broken=broken), tmp_path / "engines.html")
    text = (tmp_path / "engines.html").read_text(encoding="utf-8")
    assert "Photographs whose answer changed" in text
    assert text.count("damaged") == 200
    assert "and 3 more" in text


def test_plots_are_drawn_without_a_page(tmp_path: Path) -> None:
    found, _, _ = made(20, 0.1)
    write_report(found, None, tmp_path / "plots")
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 3
