"""Evaluation on tiny models: every figure against a count made another way, and nothing dropped."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import smooth_images, write_pictures
from numpy.typing import NDArray
from patience import PATIENCE
from PIL import Image

from alexdeploy.core.errors import DataError, DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions
from alexdeploy.evaluation import evaluate as evaluate_module
from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
from alexdeploy.evaluation.multi_engine import SideBySide
from alexdeploy.evaluation.results import Evaluation, ImageResult, Plan, document
from alexdeploy.evaluation.rows import RowsFile, check_rows_path
from alexdeploy.evaluation.scoring import Answer, Score, Tally
from alexdeploy.inference import pipeline
from alexdeploy.inference.journal import journal_path
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.placement import place as placing
from alexdeploy.placement.options import PredictOptions

NUM_IMAGES = 10
ON_ORT = EvaluateOptions(precisions=("fp32", "fp16"), num_views=(1, 10), backends=("onnxruntime",))
ONE_VIEW = dataclasses.replace(ON_ORT, num_views=(1,), batch_size=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten pictures in five class folders; their labels have nothing to do with what is on them."""
    root = tmp_path / "data"
    pictures = write_pictures(tmp_path / "pictures", NUM_IMAGES, seed=3)
    for index, path in enumerate(sorted(pictures.iterdir())):
        folder = root / f"class-{index % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{index:02d}.png")
    return root


def predicted(model: ModelFolder, data: Path, score: Score) -> list[Row]:
    named = score.configuration
    options = {"backend": named.backend, "precision": named.precision, "num_views": named.num_views}
    with Predictor(model.path, **options) as predictor:
        return list(predictor.predict([data]))


def recorded(
    folder: ModelFolder, data: Path, options: EvaluateOptions
) -> tuple[Evaluation, list[Plan], list[ImageResult]]:
    """What was found, and what was told on the way."""
    plans: list[Plan] = []
    images: list[ImageResult] = []
    found = evaluate(
        folder, data, options, on_event=lambda event: (plans if isinstance(event, Plan) else images).append(event)
    )
    return found, plans, images


def true_label(row: Row) -> int:
    return int(Path(row.source).parent.name[-1])


def test_every_configuration_agrees_with_a_count_of_predicted_rows(tiny_model: ModelFolder, data: Path) -> None:
    found = evaluate(tiny_model, data, ON_ORT)
    assert [str(score.configuration) for score in found.scores] == [
        "onnxruntime fp32 1 view",
        "onnxruntime fp32 10 views",
        "onnxruntime fp16 1 view",
        "onnxruntime fp16 10 views",
    ]
    for score in found.scores:
        rows = predicted(tiny_model, data, score)
        pairs = Counter((true_label(row), row.top[0].index) for row in rows)
        wrong = sum(count for (true, answer), count in pairs.items() if true != answer)
        assert 0 < wrong < NUM_IMAGES
        assert (score.top1.num_errors, score.top1.num_images) == (wrong, NUM_IMAGES)
        assert score.top1.percent == pytest.approx(100 * wrong / NUM_IMAGES)
        assert score.top5.num_errors == 0
        assert {(c.true, c.predicted): c.count for c in score.confusion} == pairs
        for entry in score.classes:
            members = [row for row in rows if true_label(row) == entry.index]
            assert entry.num_images == len(members)
            assert entry.num_errors == sum(row.top[0].index != entry.index for row in members)
        assert score.artifact == sha256_file(tiny_model.onnx_path(score.configuration.precision))


def test_the_calibration_error_agrees_with_one_computed_in_numpy(tiny_model: ModelFolder, data: Path) -> None:
    (score,) = evaluate(tiny_model, data, EvaluateOptions(num_views=(1,), backends=("onnxruntime",))).scores
    rows = predicted(tiny_model, data, score)
    confidence = np.array([row.top[0].probability for row in rows])
    right = np.array([row.top[0].index == true_label(row) for row in rows])
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert score.calibration_error == pytest.approx(expected, abs=1e-6)
    assert sum(entry.num_images for entry in score.reliability) == NUM_IMAGES


def test_what_changed_is_counted_against_the_first_of_the_same_views(tiny_model: ModelFolder, data: Path) -> None:
    found, _, images = recorded(tiny_model, data, ON_ORT)
    assert [str(score.configuration) for score in found.scores] == [
        "onnxruntime fp32 1 view",
        "onnxruntime fp32 10 views",
        "onnxruntime fp16 1 view",
        "onnxruntime fp16 10 views",
    ]
    assert found.scores[0].versus is None
    for number, base in ((1, 0), (2, 0), (3, 1)):
        score = found.scores[number]
        versus = score.versus
        assert versus is not None
        assert versus.base == found.scores[base].configuration
        triples = [(image.label, image.answers[base].label, image.answers[number].label) for image in images]
        assert versus.right_to_wrong == sum(first == true != other for true, first, other in triples)
        assert versus.wrong_to_right == sum(first != true == other for true, first, other in triples)
        assert versus.num_flips == sum(first != other for _, first, other in triples)
        assert versus.num_flips == versus.right_to_wrong + versus.wrong_to_right + versus.wrong_to_wrong
        assert versus.difference_points == pytest.approx(score.top1.percent - found.scores[base].top1.percent)
        assert versus.low_points < versus.difference_points < versus.high_points
        by_class = [(c.right_to_wrong, c.wrong_to_right, c.wrong_to_wrong) for c in versus.classes]
        assert sum(map(sum, by_class)) == versus.num_flips
    assert found.scores[1].versus is not None
    assert found.scores[1].versus.num_flips > 0


def test_each_image_is_decoded_once_for_all_configurations(
    tiny_model: ModelFolder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = pipeline.decode

    def counted(content: bytes, resize: str) -> NDArray[np.uint8]:
        calls.append(len(content))
        return decode(content, resize)

    monkeypatch.setattr(pipeline, "decode", counted)
    assert len(evaluate(tiny_model, data, ONE_VIEW).scores) == 2
    assert sorted(calls) == sorted(path.stat().st_size for path in data.rglob("*.png"))


def test_backends_stand_beside_each_other_and_impossible_pairs_are_told(tiny_model: ModelFolder, data: Path) -> None:
    options = EvaluateOptions(precisions=("fp32", "fp16", "bf16"), num_views=(1,), backends=("onnxruntime", "torch"))
    found, plans, _ = recorded(tiny_model, data, options)
    assert [str(score.configuration) for score in found.scores] == [
        "onnxruntime fp32 1 view",
        "torch fp32 1 view",
        "onnxruntime fp16 1 view",
        "torch bf16 1 view",
    ]
    assert [note.split(" is left out")[0] for note in found.notes] == ["torch fp16", "onnxruntime bf16"]
    assert plans[0].notes == found.notes
    assert plans[0].num_images == NUM_IMAGES
    versus = found.scores[1].versus
    assert versus is not None
    assert versus.num_flips == 0


def test_openvino_runs_with_all_its_streams(tiny_model: ModelFolder, data: Path) -> None:
    options = EvaluateOptions(num_views=(1, 5), backends=("openvino",), num_threads=2, batch_size=4)
    found = evaluate(tiny_model, data, options)
    reference = evaluate(tiny_model, data, dataclasses.replace(options, backends=("onnxruntime",)))
    for score, expected in zip(found.scores, reference.scores, strict=True):
        assert score.confusion == expected.confusion


def test_the_default_backend_in_bfloat16_is_one_that_can(tiny_model: ModelFolder, data: Path) -> None:
    try:
        (score,) = evaluate(tiny_model, data, EvaluateOptions(precisions=("bf16",), num_views=(1,))).scores
    except DeviceError as exc:
        pytest.skip(exc.message)
    assert (score.configuration.backend, score.configuration.precision) == ("openvino", "bf16")


def test_broken_images_count_as_wrong_everywhere_and_in_the_denominator(tiny_model: ModelFolder, data: Path) -> None:
    before = evaluate(tiny_model, data, ONE_VIEW)
    (data / "class-2" / "bad.jpg").write_bytes(b"no picture")
    (data / "class-4" / "empty.png").touch()
    found, _, images = recorded(tiny_model, data, ONE_VIEW)
    assert (found.num_images, found.num_broken) == (NUM_IMAGES + 2, 2)
    assert [(Path(image.source).name, image.label) for image in found.broken] == [("bad.jpg", 2), ("empty.png", 4)]
    assert [image.index for image in images] == list(range(NUM_IMAGES + 2))
    for score, other in zip(found.scores, before.scores, strict=True):
        assert score.top1.num_errors == other.top1.num_errors + 2
        assert score.top5.num_errors == 2
        assert score.top1.num_images == NUM_IMAGES + 2
        assert score.confusion == other.confusion
        assert score.calibration_error == pytest.approx(other.calibration_error)
        assert sum(entry.num_images for entry in score.classes) == NUM_IMAGES + 2


def test_images_that_are_all_broken_are_all_errors(tiny_model: ModelFolder, tmp_path: Path) -> None:
    for name in ("class-0/a.jpg", "class-1/b.jpg"):
        (tmp_path / "bad" / name).parent.mkdir(parents=True)
        (tmp_path / "bad" / name).write_bytes(b"x")
    (score, _) = evaluate(tiny_model, tmp_path / "bad", EvaluateOptions(backends=("onnxruntime",))).scores
    assert score.top1.percent == score.top5.percent == 100.0
    assert (score.calibration_error, score.images_per_second, score.confusion) == (None, None, ())


def test_a_list_of_labels_counts_the_images_that_it_names(tiny_model: ModelFolder, data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "val.txt"
    labels.write_text("class-0/00.png 4\nclass-1/01.png class-1\nclass-0/gone.png 0\n")
    options = EvaluateOptions(num_views=(1,), backends=("onnxruntime",), labels=labels)
    found = evaluate(tiny_model, data, options)
    assert (found.num_images, found.num_broken, found.num_unlabelled) == (3, 1, NUM_IMAGES - 2)
    assert [(entry.index, entry.num_images) for entry in found.scores[0].classes] == [(0, 1), (1, 1), (4, 1)]


def test_equal_errors_are_worst_in_the_order_of_their_names(tiny_model: ModelFolder, data: Path) -> None:
    (score,) = evaluate(tiny_model, data, EvaluateOptions(num_views=(1,), backends=("onnxruntime",))).scores
    keys = [(-entry.num_errors / entry.num_images, entry.name) for entry in score.worst_classes]
    assert keys == sorted(keys)
    assert all(entry.num_errors for entry in score.worst_classes)


def test_training_images_are_pointed_out(tiny_model: ModelFolder, data: Path) -> None:
    tiny_model.write_spec(tiny_model.spec().replace_provenance(data=str(data)))
    found = evaluate(tiny_model, data, EvaluateOptions(num_views=(1,), backends=("onnxruntime",)))
    assert "was trained on" in found.notes[0]


def test_validation_images_that_chose_the_epoch_are_pointed_out(
    tiny_model: ModelFolder, data: Path, tmp_path: Path
) -> None:
    for name in ("train", "Val", "test"):
        shutil.copytree(data, tmp_path / "split" / name)
    tiny_model.write_spec(tiny_model.spec().replace_provenance(data=str(tmp_path / "split")))
    options = EvaluateOptions(num_views=(1,), backends=("onnxruntime",))
    for name, notes in (("", 1), ("Val", 1), ("test", 0)):
        found = evaluate(tiny_model, tmp_path / "split" / name, options).notes
        assert sum("Val chose the epoch of tiny" in note for note in found) == notes


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"precisions": ("int8",), "backends": ("torch",)}, UsageError, "nothing is left to evaluate"),
        ({"precisions": ()}, UsageError, "nothing is left to evaluate"),
        ({"precisions": ("fp32", "int8")}, ModelError, "no model.int8.onnx"),
        ({"batch_size": 0}, UsageError, "batch_size is 0"),
        ({"num_threads": 0}, UsageError, "num_threads is 0"),
    ],
)
def test_what_cannot_run_is_an_error(
    tiny_model: ModelFolder, data: Path, options: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        evaluate(tiny_model, data, EvaluateOptions(**options))


def test_a_backend_is_not_left_out_for_too_little_memory(
    tiny_model: ModelFolder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(folder: ModelFolder, options: PredictOptions) -> placing.Placed:
        if options.backend == "tensorrt":
            raise DeviceMemoryError("0.1 GB are free")
        return placing.place(folder, options)

    monkeypatch.setattr(evaluate_module, "place", place)
    with pytest.raises(DeviceMemoryError, match=r"^0\.1 GB"):
        evaluate(tiny_model, data, EvaluateOptions(backends=("onnxruntime", "tensorrt")))


def test_a_folder_without_labelled_images_is_an_error_before_an_engine_is_opened(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "place", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        evaluate(tiny_model, tmp_path / "empty")


def test_probabilities_that_are_not_finite_name_their_configuration(
    data: Path, tiny_model: ModelFolder, colour_engine: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (300, 300)).save(data / "class-0" / "00.png")

    def open_engine(folder: ModelFolder, backend: str, options: EngineOptions) -> object:
        return colour_engine(options=options)

    monkeypatch.setattr(placing, "open_engine", open_engine)
    with pytest.raises(ModelError, match=r"colour fp32 1 view .* not finite for .*00\.png"):
        evaluate(tiny_model, data, EvaluateOptions(backends=("torch",)))


def test_every_engine_gets_the_same_batches_whatever_its_streams(colour_engine: type) -> None:
    single = colour_engine(options=EngineOptions(batch_size=4))
    streams = colour_engine(options=EngineOptions(batch_size=4, num_views=10), num_streams=3)
    images = smooth_images(9)
    with single, streams, SideBySide([single, streams], num_parts=3) as side:
        assert side.info.batch_size == 12
        single.batch_sizes.clear()
        streams.batch_sizes.clear()
        probabilities = side.run(images).probabilities
        assert probabilities.shape == (9, 2, 3)
        assert sorted(single.batch_sizes) == sorted(streams.batch_sizes) == [1, 4, 4]
        assert all(seconds > 0 for seconds in side.seconds)
        alone = np.concatenate([single.run(image[None]).probabilities for image in images])
        assert np.array_equal(probabilities, np.stack([alone, alone], axis=1))


def test_an_engine_beside_one_of_more_streams_is_not_called_more_often_at_once_than_it_allows(
    colour_engine: type,
) -> None:
    options = EngineOptions(batch_size=1)

    def together(count: int) -> Callable[[np.ndarray], None]:
        # Each waits for as many others as are allowed at once.
        barrier = threading.Barrier(count)

        def wait(images: np.ndarray) -> None:
            barrier.wait(PATIENCE)

        return wait

    engines = [colour_engine(options=options, num_streams=count, before_run=together(count)) for count in (1, 2, 4)]
    with engines[0], engines[1], engines[2], SideBySide(engines, num_parts=4) as side:
        side.run(smooth_images(4))
    assert [engine.max_running for engine in engines] == [1, 2, 4]


def test_a_tally_does_not_grow_with_the_images() -> None:
    rng = np.random.default_rng(0)
    tally, sizes = Tally(4), []
    for number in range(1, 5001):
        probabilities = rng.dirichlet(np.ones(4)).astype(np.float32)
        tally.add(number % 4, probabilities, Answer(label=0, probability=0.5, is_in_top5=True))
        if number in (500, 5000):
            sizes.append(len(pickle.dumps(tally)))
    assert sizes[1] < 1.1 * sizes[0]


def test_the_fields_of_the_json_document_stay(tiny_model: ModelFolder, data: Path) -> None:
    found = document(evaluate(tiny_model, data, ONE_VIEW))
    assert list(found) == [
        *("format_version", "model", "name", "contract_sha256", "data", "labels", "num_images", "num_broken"),
        *("num_unlabelled", "classes", "scores", "examples", "broken", "notes", "versions", "machine", "interrupted"),
    ]
    score = found["scores"][1]
    assert list(score) == [
        *("configuration", "artifact", "top1", "top5", "calibration_error", "seconds", "images_per_second"),
        *("versus", "worst_classes", "classes", "averages", "curves", "confusion", "reliability"),
    ]
    assert list(score["top1"]) == ["num_errors", "num_images", "percent", "low_percent", "high_percent"]
    assert list(score["confusion"][0]) == ["true", "predicted", "count"]
    assert list(score["reliability"][0]) == ["low", "high", "num_images", "confidence", "accuracy"]
    assert list(score["versus"])[:3] == ["base", "difference_points", "low_points"]
    assert found["contract_sha256"] == tiny_model.spec().contract_sha256
    assert {"alexdeploy", "onnxruntime", "numpy"} <= set(found["versions"])
    assert list(score["classes"][0])[:5] == ["index", "name", "num_images", "num_errors", "num_answers"]
    assert list(score["classes"][0])[5:] == ["precision", "recall", "f1", "average_precision"]
    json.dumps(found, allow_nan=False)


def evaluate_to(
    path: Path, model: ModelFolder, data: Path, *, options: EvaluateOptions = ONE_VIEW, stop_after: int = -1
) -> Evaluation:
    """Evaluate with rows in `path`, going on with those that are there; `stop_after` new rows it is interrupted."""
    num_rows = 0

    def on_event(event: Plan | ImageResult) -> None:
        nonlocal num_rows
        if isinstance(event, Plan):
            return
        rows.write(event)
        num_rows += 1
        if num_rows == stop_after:
            raise KeyboardInterrupt

    with RowsFile(path) as rows:
        found = evaluate(model, data, options, on_event=on_event, kept=rows.kept)
        if not found.interrupted:
            rows.complete()
    return found


def untimed(found: Evaluation) -> dict[str, object]:
    """What does not depend on how long something took."""
    scores = [dataclasses.replace(score, seconds=0.0, images_per_second=None) for score in found.scores]
    return dataclasses.asdict(dataclasses.replace(found, scores=tuple(scores)))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_an_interrupted_evaluation_goes_on_and_gives_what_a_whole_one_gives(
    tiny_model: ModelFolder, data: Path, tmp_path: Path, name: str
) -> None:
    (data / "class-2" / "02.png").write_bytes(b"broken")
    options = dataclasses.replace(ONE_VIEW, num_threads=1)
    whole = evaluate_to(tmp_path / "whole" / name, tiny_model, data, options=options)
    path = tmp_path / name
    path.write_text("the old one")
    stopped = evaluate_to(path, tiny_model, data, options=options, stop_after=6)
    assert (stopped.interrupted, stopped.num_images) == (True, 6)
    assert "stopped after 6 of 10 images" in stopped.notes[-1]
    assert {score.top1.num_images for score in stopped.scores} == {6}
    assert path.read_text() == "the old one"
    with pytest.raises(UsageError, match="first 6 rows of an interrupted run"):
        check_rows_path(path, resume=False)
    check_rows_path(path, resume=True)
    again = evaluate_to(path, tiny_model, data, options=options)
    assert untimed(again) == untimed(whole)
    assert path.read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not journal_path(path).exists()
    with pytest.raises(UsageError, match="complete, nothing to resume"):
        check_rows_path(path, resume=True)


def test_the_partial_figures_are_those_of_the_first_images(tiny_model: ModelFolder, data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    lines = [f"{name} {name[6]}" for name in names]
    labels.write_text("\n".join(lines))
    options = dataclasses.replace(ONE_VIEW, labels=labels)
    stopped = evaluate_to(tmp_path / "rows.csv", tiny_model, data, options=options, stop_after=4)
    labels.write_text("\n".join(lines[:4]))
    first = evaluate(tiny_model, data, options)
    assert [score.top1 for score in stopped.scores] == [score.top1 for score in first.scores]
    assert [score.confusion for score in stopped.scores] == [score.confusion for score in first.scores]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precisions": ("fp32",)}, "was written with configurations onnxruntime fp32 1 view, onnxruntime fp16 1 view"),
        ({"batch_size": 3}, "was written with batch size"),
        ({"labels": "labels.txt"}, "labels: the label of '.*/class-0/00.png' was '{0}', now it is '{1}'"),
    ],
)
def test_an_evaluation_of_something_else_is_not_gone_on_with(
    tiny_model: ModelFolder, data: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    (tmp_path / "labels.txt").write_text("\n".join(f"{name} {(int(name[6]) + 1) % 5}" for name in names))
    if "labels" in changes:
        changes = {"labels": tmp_path / "labels.txt"}
        said = said.format(*tiny_model.spec().classes)
    path = tmp_path / "rows.csv"
    evaluate_to(path, tiny_model, data, stop_after=6)
    before = journal_path(path).read_bytes()
    with pytest.raises(UsageError, match=said):
        evaluate_to(path, tiny_model, data, options=dataclasses.replace(ONE_VIEW, **changes))
    assert journal_path(path).read_bytes() == before


def test_an_evaluation_of_another_image_is_not_gone_on_with(
    tiny_model: ModelFolder, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    evaluate_to(path, tiny_model, data, stop_after=6)
    (data / "class-0" / "00.png").rename(data / "class-0" / "01.png")
    with pytest.raises(UsageError, match=r"labels: image 0 was '.*/class-0/00\.png', now it is '.*/class-0/01\.png'"):
        evaluate_to(path, tiny_model, data)


def test_an_interrupt_before_the_first_image_is_raised(tiny_model: ModelFolder, data: Path) -> None:
    def stop(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model, data, ONE_VIEW, on_event=stop)


def test_an_interrupt_before_any_answer_is_raised_and_one_at_the_photographs_keeps_the_figures(
    tiny_model: ModelFolder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = dataclasses.replace(ONE_VIEW, precisions=("fp32",))
    whole = evaluate(tiny_model, data, options)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "_results", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tiny_model, data, options)
    monkeypatch.setattr(evaluate_module, "read_thumbnails", interrupted)
    found = evaluate(tiny_model, data, dataclasses.replace(options, thumbnails=True))
    assert found.interrupted
    assert found.notes[-1].startswith("stopped when photographs were read again to be shown: the figures are of all")
    assert found.scores[0].top1 == whole.scores[0].top1
    assert found.thumbnails == {}


def test_rows_are_not_written_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(UsageError, match="is a folder; expected a file"):
        check_rows_path(tmp_path / "rows.jsonl", resume=False)
