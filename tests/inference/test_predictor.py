"""Predictor: what Python users call, on ONNX Runtime, and on an engine whose answers are known."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE, wait_for
from PIL import Image

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import Source
from alexdeploy.inference.predictor import Predictor

MakePredictor = Callable[..., Predictor]
MakeSources = Callable[..., Iterator[Source]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirteen photographs that differ, and among them one empty file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(13):
        blocks = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        blocks.resize((320, 240), Image.Resampling.NEAREST).save(folder / f"{index:02}.jpg")
    (folder / "05.jpg").write_bytes(b"")
    return folder


@pytest.mark.parametrize("num_views", [1, 10])
def test_rows_are_what_the_engine_says_of_each_image(tiny_model: ModelFolder, pictures: Path, num_views: int) -> None:
    options = EngineOptions(num_views=num_views, batch_size=1)
    with open_engine(tiny_model, "onnxruntime", options) as engine:
        names = sorted(path.name for path in pictures.iterdir())
        expected = {
            name: engine.run(decode((pictures / name).read_bytes())[None]) for name in names if name != "05.jpg"
        }
    with Predictor(tiny_model, backend="onnxruntime", num_views=num_views, batch_size=4, top_k=3) as predictor:
        rows = list(predictor.predict([pictures]))
    assert [Path(row.source).name for row in rows] == names
    assert [row.index for row in rows] == list(range(13))
    for row in rows:
        if row.error is not None:
            assert (row.source, row.error) == (str(pictures / "05.jpg"), "the file is empty")
            continue
        probabilities, view_classes, _ = expected[Path(row.source).name]
        probabilities, view_classes = probabilities[0], view_classes[0]
        order = np.argsort(-probabilities)[:3]
        assert [choice.label for choice in row.top] == [f"class-{index}" for index in order]
        np.testing.assert_allclose(
            [choice.probability for choice in row.top], probabilities[order], rtol=1e-4, atol=1e-6
        )
        assert row.views_agreeing == np.count_nonzero(view_classes == order[0])


def test_a_row_says_what_made_it(tiny_model: ModelFolder, pictures: Path) -> None:
    with Predictor(tiny_model.path, backend="onnxruntime", precision="fp16", num_views=5) as predictor:
        rows = list(predictor.predict([pictures]))
    artifact = sha256_file(tiny_model.onnx_path("fp16"))[:12]
    assert {(row.backend, row.precision, row.num_views, row.artifact) for row in rows} == {
        ("onnxruntime", "fp16", 5, artifact)
    }


def test_a_row_of_replicas_that_run_several_files_names_all_of_them(
    make_predictor: MakePredictor, make_sources: MakeSources
) -> None:
    with make_predictor(engine={"artifact": "a" * 64 + "+" + "b" * 64}) as predictor:
        (row,) = predictor.predict_sources(make_sources(1))
    assert row.artifact == "a" * 12 + "+" + "b" * 12


def test_predicting_twice_gives_the_same_rows(tiny_model: ModelFolder, pictures: Path) -> None:
    with Predictor(tiny_model.path, backend="onnxruntime", batch_size=4) as predictor:
        assert list(predictor.predict([pictures])) == list(predictor.predict([pictures]))


def test_members_of_archives_are_predicted_like_files(tiny_model: ModelFolder, pictures: Path) -> None:
    archive = pictures.parent / "pictures.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(pictures.iterdir()):
            tar.add(path, path.name)
    with Predictor(tiny_model.path, backend="onnxruntime") as predictor:
        from_folder = [(row.top, row.error) for row in predictor.predict([pictures])]
        from_archive = [(row.top, row.error) for row in predictor.predict([archive])]
    assert from_archive == from_folder


def test_the_newest_model_is_taken_where_none_is_named(
    tiny_model: ModelFolder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.path.parents[1])
    with Predictor(backend="onnxruntime") as predictor:
        assert predictor.folder.path == Path("models/tiny")
        assert next(predictor.predict([pictures])).label is not None


def test_no_model_at_hand_names_the_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"alexdeploy\.train\(\)"):
        Predictor()


def test_views_that_disagree_are_counted(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    with make_predictor(num_views=10) as predictor:
        (row,) = predictor.predict_sources(make_sources(1))
    assert (row.label, row.views_agreeing, row.num_views) == ("red", 9, 10)


def test_top_k_is_at_most_the_number_of_classes(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    with make_predictor(top_k=7) as predictor:
        assert predictor.top_k == 3
        assert len(next(predictor.predict_sources(make_sources(1))).top) == 3


def test_probabilities_are_written_with_the_digits_of_a_float32(
    make_predictor: MakePredictor, make_sources: MakeSources
) -> None:
    with make_predictor() as predictor:
        for row in predictor.predict_sources(make_sources(9)):
            for choice in row.top:
                assert len(repr(choice.probability)) <= 13
                assert np.float32(choice.probability) == np.float32(repr(choice.probability))


def test_answers_that_are_not_finite_are_an_error_of_the_model(make_predictor: MakePredictor) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with (
        make_predictor() as predictor,
        pytest.raises(ModelError, match=r"not finite for black\.png"),
    ):
        # The mean colour of black has no share of red, green and blue.
        list(predictor.predict_sources([Source(name="black.png", data=file.getvalue())]))


def test_the_predictor_must_be_open(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    with pytest.raises(UsageError, match="not open"):
        make_predictor().predict_sources(make_sources(1))


def test_one_path_in_the_place_of_a_list_is_refused(make_predictor: MakePredictor) -> None:
    with make_predictor() as predictor, pytest.raises(UsageError, match="list of paths"):
        predictor.predict("images/")


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"top_k": -1}, {"num_threads": 0}])
def test_counts_below_one_are_refused(make_predictor: MakePredictor, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected an integer from 1 on"):
        make_predictor(**options)


def test_leaving_the_predictor_ends_a_run_that_nobody_finished(
    make_predictor: MakePredictor, make_sources: MakeSources
) -> None:
    before = threading.active_count()
    with make_predictor(batch_size=2) as predictor:
        rows = predictor.predict_sources(make_sources(1_000_000))
        next(rows)
        assert threading.active_count() > before
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="not open any more"):
        list(rows)


def test_a_run_goes_on_beside_another(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    with make_predictor(batch_size=2) as predictor:
        first = predictor.predict_sources(make_sources(9))
        rows = [next(first)]
        assert len(list(predictor.predict_sources(make_sources(6)))) == 6
        rows += first
        assert [row.source for row in rows] == [f"{index}.jpg" for index in range(9)]
        pairs = zip(predictor.predict_sources(make_sources(3)), predictor.predict_sources(make_sources(3)), strict=True)
        assert all(one == other for one, other in pairs)


def test_an_iterator_that_is_dropped_ends_its_threads(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    with make_predictor(batch_size=2) as predictor:
        before = threading.active_count()
        rows = predictor.predict_sources(make_sources(1_000_000))
        next(rows)
        assert threading.active_count() > before
        del rows
        assert threading.active_count() == before


def test_threads_share_one_iterator(make_predictor: MakePredictor, make_sources: MakeSources) -> None:
    with make_predictor(batch_size=2) as predictor, ThreadPoolExecutor(8) as threads:
        rows = predictor.predict_sources(make_sources(200))
        parts = list(threads.map(lambda _: [row.index for row in rows], range(8)))
    assert sorted(index for part in parts for index in part) == list(range(200))


def test_closing_ends_the_run_that_another_thread_waits_for(
    make_predictor: MakePredictor, make_sources: MakeSources
) -> None:
    release, before = threading.Event(), threading.active_count()

    def sources() -> Iterator[Source]:
        yield from make_sources(2)
        assert release.wait(PATIENCE)

    predictor = make_predictor(batch_size=2).open()
    rows = predictor.predict_sources(sources())
    next(rows), next(rows)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(next, rows)
        predictor.close()
        with pytest.raises(UsageError, match="not open any more"):
            waiting.result(PATIENCE)
    # Nobody waits for a thread that reads a source.
    release.set()
    wait_for(lambda: threading.active_count() == before)


def test_rows_that_were_all_taken_or_closed_by_their_user_end_in_the_usual_way(
    make_predictor: MakePredictor, make_sources: MakeSources
) -> None:
    with make_predictor() as predictor:
        taken = predictor.predict_sources(make_sources(3))
        assert len(list(taken)) == 3
        closed = predictor.predict_sources(make_sources(3))
        next(closed)
        closed.close()
        list(predictor.predict_sources(make_sources(1)))
        assert (list(taken), list(closed)) == ([], [])
