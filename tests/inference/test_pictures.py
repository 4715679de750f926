"""What `--sheet` and `--annotate` make of rows: which photographs, where, and what is said of them."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from colour import COLOURS, PICTURES, make_picture
from helpers import write_pictures
from markup import Page
from PIL import Image

import alexdeploy
from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import Source
from alexdeploy.inference import annotate, sheet
from alexdeploy.inference.pictures import PictureOptions, open_pictures
from alexdeploy.inference.predict_file import predict_to_file
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Choice, Row
from alexdeploy.placement.options import PredictOptions
from alexdeploy.reports.thumbnails import thumbnail

MakePredictor = Callable[..., Predictor]
MakeSources = Callable[..., Iterator[Source]]
HOSTILE = "a\"><script>alert(1)</script>\n'<img src=x onerror=alert(2)>"


def mixed(share: float) -> bytes:
    """A PNG of red and green; the nearer `share` is to 0.5, the smaller is the margin of ColourEngine."""
    file = io.BytesIO()
    Image.new("RGB", (256, 256), (round(200 * share), round(200 * (1 - share)), 0)).save(file, "PNG")
    return file.getvalue()


def run(predictor: Predictor, sources: Iterator[Source] | list[Source], **options: object) -> list[Row]:
    with predictor, open_pictures(PictureOptions(**options), predictor) as pictures:
        rows = list(predictor.predict_sources(sources, pictures=pictures))
        pictures.finish(predictor.model_name, predictor.info)
    return rows


def cards(path: Path) -> list[dict[str, str]]:
    return [dict(attributes) for tag, attributes in Page(path.read_text()).elements if tag == "figure"]


def thumbnails(path: Path) -> list[bytes]:
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)"', path.read_text())
    return [base64.b64decode(each) for each in found]


def test_the_most_doubtful_are_kept_in_their_order_and_shown_as_the_network_got_them(
    make_predictor: MakePredictor, tmp_path: Path
) -> None:
    shares = [0.9, 0.55, 0.1, 0.48, 0.7, 0.51, 0.99, 0.0]
    sources = [Source(name=f"{number}.png", data=mixed(share)) for number, share in enumerate(shares)]
    page = tmp_path / "page.html"
    rows = run(make_predictor(batch_size=2), sources, sheet=page, sheet_images=3)
    margins = [row.top[0].probability - row.top[1].probability for row in rows]
    expected = sorted(sorted(range(8), key=margins.__getitem__)[:3])
    assert expected == [1, 3, 5]
    assert [int(card["data-index"]) for card in cards(page)] == expected
    assert [float(card["data-margin"]) for card in cards(page)] == pytest.approx(
        [margins[i] for i in expected], abs=1e-6
    )
    assert thumbnails(page) == [thumbnail(decode(mixed(shares[i])), 192) for i in expected]
    assert "5 others are left out" in page.read_text()


def test_the_page_says_how_the_views_voted(make_predictor: MakePredictor, make_sources: MakeSources, tmp_path) -> None:
    page = tmp_path / "page.html"
    run(make_predictor(num_views=10), make_sources(1), sheet=page)
    html = page.read_text()
    assert "9 of 10 views agree; green: mirrored centre" in html
    assert "on the right the mirrored ones: blue if the view alone gives the answer" in html
    assert html.count("class=agrees") == 9


def test_a_folder_with_the_name_of_a_class_says_which_bar_it_means(make_predictor: MakePredictor, tmp_path) -> None:
    page = tmp_path / "page.html"
    names = ["p/red/1.jpg", "p.zip!green/2.jpg", "elsewhere/3.jpg", "p/blue/4.jpg"]
    sources = [Source(name=name, data=PICTURES["red"]) for name in names]
    run(make_predictor(), sources, sheet=page)
    assert [card["data-named"] for card in cards(page)] == ["2", "0", "1", "0"]
    assert page.read_text().count("<li class=named") == 3
    assert "3 images are in a folder with the name of a class" in page.read_text()
    assert "1 of them (33.3%)" in page.read_text()


def test_names_and_errors_do_no_harm(make_predictor: MakePredictor, tmp_path: Path) -> None:
    page, marked = tmp_path / "page.html", tmp_path / "marked"
    sources = [Source(name=HOSTILE, data=PICTURES["red"]), Source(name=HOSTILE, data=b"<b>nothing</b>")]
    rows = run(make_predictor(), sources, sheet=page, annotate=marked)
    assert rows[1].error is not None
    found = Page(page.read_text())
    assert [tag for tag in found.tags if tag in ("script", "b")] == ["script"]
    assert sum(tag == "img" for tag in found.tags) == 1
    assert os.listdir(marked) == ["000000-script_img_src_x_onerror_alert_2.jpg"]


def test_pictures_of_one_name_do_not_collide_and_none_leaves_the_folder(
    make_predictor: MakePredictor, tmp_path
) -> None:
    names = [
        "a/1.jpg",
        "b/1.jpg",
        "z.zip!../../1.jpg",
        "..",
        "/",
        "s3://bucket/1.jpg",
        "x\\..\\1.jpg",
        "." * 300,
        "写真",
    ]
    sources = [Source(name=name, data=PICTURES["red"]) for name in names]
    run(make_predictor(), sources, annotate=tmp_path / "out" / "marked")
    found = sorted(os.listdir(tmp_path / "out" / "marked"))
    assert [name[:6] for name in found] == [f"{number:06}" for number in range(len(names))]
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == found


def test_an_annotated_picture_is_upright_and_has_a_strip_below(make_predictor: MakePredictor, tmp_path: Path) -> None:
    pixels = np.zeros((300, 1600, 3), np.uint8)
    pixels[:, :800] = (200, 30, 20)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    run(make_predictor(num_views=5), [Source(name="1.jpg", data=file.getvalue())], annotate=tmp_path)
    with Image.open(tmp_path / "000000-1.jpg") as image:
        shown = np.asarray(image).astype(int)
        comment = image.info["comment"].decode()
    # 150 x 800 after turning, in the middle of 320; the red half is on top.
    assert shown.shape[:2][1] == 320
    assert shown.shape[0] > 800
    assert np.abs(shown[100, 160] - (200, 30, 20)).max() < 12
    assert shown[700, 160].max() < 12
    assert shown[810:].max() > 200
    assert comment.startswith("alexdeploy predict: colour c0ffeec0ffee '1.jpg' 'red' 0.")


def test_an_interrupted_run_goes_on_with_all_pictures(
    make_predictor: MakePredictor, make_sources: MakeSources, tmp_path: Path
) -> None:
    def write(folder: Path, stop_after: int, **options: object) -> None:
        def interrupt(row: Row) -> None:
            if row.index == stop_after:
                raise KeyboardInterrupt

        wanted = PictureOptions(sheet=folder / "page.html", annotate=folder / "marked", **options)
        wanted.check([])
        predictor = make_predictor(batch_size=4)
        with predictor, open_pictures(wanted, predictor) as pictures:
            sources = make_sources(14, broken=lambda index: index == 3)
            predict_to_file(predictor, sources, folder / "rows.csv", "csv", on_row=interrupt, pictures=pictures)
            pictures.finish(predictor.model_name, predictor.info)

    write(tmp_path / "whole", -1)
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        write(again, 9)
    assert not (again / "page.html").exists()
    # Two pictures are lost: a kill may come between a picture and its row.
    for path in sorted((again / "marked").iterdir())[:2]:
        path.unlink()
    # A kill may leave a file that is being written.
    (again / "marked" / ".000011-11.jpg.a1b2c3d4.tmp").write_bytes(b"\xff\xd8")
    write(again, -1, resume=True)
    assert cards(again / "page.html") == cards(tmp_path / "whole" / "page.html")
    assert thumbnails(again / "page.html") == thumbnails(tmp_path / "whole" / "page.html")
    first, second = (
        {path.name: path.read_bytes() for path in (each / "marked").iterdir()} for each in (tmp_path / "whole", again)
    )
    assert len(first) == 13
    assert first == second


def test_only_pictures_of_its_own_are_replaced(make_predictor: MakePredictor, tmp_path: Path) -> None:
    marked = tmp_path / "marked"
    run(make_predictor(), [Source(name="old.jpg", data=PICTURES["red"])], annotate=marked)
    with pytest.raises(UsageError, match="pictures of an earlier run"):
        PictureOptions(annotate=marked).check([])
    PictureOptions(annotate=marked, overwrite=True).check([])
    run(make_predictor(), [Source(name="new.jpg", data=PICTURES["red"])], annotate=marked, overwrite=True)
    assert os.listdir(marked) == ["000000-new.jpg"]
    original = make_picture("blue")
    (marked / "000001-mine.jpg").write_bytes(original)
    with pytest.raises(UsageError, match=r"000001-mine.jpg is no picture that annotate wrote"):
        PictureOptions(annotate=marked, overwrite=True).check([])
    sources = [Source(name=f"{number}/mine.jpg", data=PICTURES["red"]) for number in range(2)]
    with pytest.raises(UsageError, match=r"000001-mine.jpg is no picture that annotate wrote"):
        run(make_predictor(), sources, annotate=marked, resume=True)
    assert (marked / "000001-mine.jpg").read_bytes() == original


def test_a_folder_that_is_classified_gets_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "photographs" / "sub").mkdir(parents=True)
    for inside in ("photographs", "photographs/sub/marked"):
        with pytest.raises(UsageError, match="is inside of"):
            PictureOptions(annotate=tmp_path / inside).check([str(tmp_path / "photographs")])
    PictureOptions(annotate=tmp_path / "photographs-marked").check([str(tmp_path / "photographs")])


def test_a_page_that_exists_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        PictureOptions(sheet=page).check([])
    PictureOptions(sheet=page, overwrite=True).check([])


def test_without_pictures_no_image_is_kept(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    predictor = make_predictor()
    with predictor, open_pictures(None, predictor) as pictures:
        assert pictures is None
        assert [row.label for row in predictor.predict_sources(make_sources(3), pictures=pictures)] == list(COLOURS)


def test_an_image_that_is_gone_is_grey_in_the_page_of_a_resumed_run(make_predictor: MakePredictor, tmp_path) -> None:
    predictor = make_predictor()
    wanted = PictureOptions(sheet=tmp_path / "page.html", annotate=tmp_path / "marked")
    with predictor, open_pictures(wanted, predictor) as pictures:
        [row] = predictor.classify([PICTURES["red"]])
        pictures.show_kept(row, Source(name="gone.jpg", path=str(tmp_path / "gone.jpg")), predictor.info)
        pictures.finish("colour", predictor.info)
    assert thumbnails(tmp_path / "page.html") == [thumbnail(np.full((256, 256, 3), 128, np.uint8), 192)]
    assert not (tmp_path / "marked").exists()


def test_python_predicts_with_pictures(tiny_model: ModelFolder, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 3)
    for index in range(sheet._NUM_ERRORS + 2):
        (tmp_path / "in" / f"broken-{index}.png").write_bytes(b"nothing")
    tiny_model.candidate.path.mkdir(parents=True)
    tiny_model.candidate.write_spec(tiny_model.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    told: list[str] = []
    options = PictureOptions(sheet=tmp_path / "page.html", annotate=tmp_path / "out")
    wanted = PredictOptions(backend="onnxruntime")
    rows = list(alexdeploy.predict(tmp_path / "in", tiny_model, wanted, options, on_warning=told.append))
    assert "has newer weights (000000000000, epoch 7)" in told[0]
    assert len(list((tmp_path / "out").iterdir())) == len(cards(tmp_path / "page.html")) == 3
    assert f"The first {sheet._NUM_ERRORS} of {sheet._NUM_ERRORS + 2}." in (tmp_path / "page.html").read_text()
    assert sum(row.error is None for row in rows) == 3
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"annotate .*file is a file; expected a folder"):
        alexdeploy.predict(tmp_path / "in", tiny_model, wanted, PictureOptions(annotate=tmp_path / "file"))


def test_the_line_below_a_picture_has_as_many_answers_as_fit_and_at_least_one() -> None:
    def row(*labels: str) -> Row:
        top = tuple(
            Choice(label=label, index=index, probability=0.5 / (index + 1))
            for index, label in enumerate(("best", *labels))
        )
        facts = {"backend": "onnxruntime", "precision": "fp32", "artifact": "0" * 12}
        return Row(index=0, source="a.jpg", top=top, views_agreeing=3, num_views=5, **facts)

    wide = 10_000.0
    assert annotate._second_line(row("second", "third"), wide) == "3 of 5 views, second 25.0 %, third 16.7 %"
    short = annotate._second_line(row("second", "third" * 40), 256.0)
    assert short == "3 of 5 views, second 25.0 %"
    cut = annotate._second_line(row("second" * 40), 256.0)
    assert cut.startswith("3 of 5 views, second")
    assert annotate.font(annotate._SMALL).getlength(cut) <= 256.0
