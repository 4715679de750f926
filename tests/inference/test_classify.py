"""Predictor.classify and aclassify: rows of images from memory, for any number of threads and tasks."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from colour import COLOURS, PICTURES
from helpers import write_pictures
from numpy.typing import NDArray
from patience import PATIENCE, slow_but_for, wait_for
from PIL import Image

from alexdeploy.core.errors import DeadlineError, DeviceError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.decode import decode
from alexdeploy.inference.answer import make_row
from alexdeploy.inference.batcher import BatcherOptions
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row

MakePredictor = Callable[..., Predictor]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Twelve pictures, one of which is broken."""
    paths = sorted(write_pictures(tmp_path / "pictures", 12).iterdir())
    paths[7].write_bytes(b"no picture")
    return paths


def test_rows_are_those_of_predict_whatever_the_images_come_in(tiny_model: ModelFolder, paths: list[Path]) -> None:
    good = [path for number, path in enumerate(paths) if number != 7]
    arrays = np.stack([decode(path.read_bytes()) for path in good])
    with Predictor(tiny_model, backend="openvino", batch_size=4, num_views=10) as predictor:
        expected = list(predictor.predict(paths))
        assert predictor.classify(paths) == expected
        assert [row.error is None for row in expected] == [number != 7 for number in range(12)]
        answers = [(row.top, row.views_agreeing) for row in expected if row.error is None]
        for images in (
            [path.read_bytes() for path in good],
            [io.BytesIO(path.read_bytes()) for path in good],
            [Image.open(path) for path in good],
            list(arrays),
            arrays,
        ):
            rows = predictor.classify(images)
            assert [(row.top, row.views_agreeing) for row in rows] == answers
            assert [row.index for row in rows] == list(range(11))


def test_rows_name_their_images(make_predictor: MakePredictor, paths: list[Path]) -> None:
    with make_predictor() as predictor:
        rows = predictor.classify([PICTURES["red"], str(paths[0]), Image.open(paths[1]), PICTURES["blue"], paths[7]])
        assert [row.source for row in rows] == [
            "images[0]",
            str(paths[0]),
            str(paths[1]),
            "images[3]",
            str(paths[7]),
        ]
        assert (rows[0].label, rows[3].label, rows[4].label) == ("red", "blue", None)
        assert "unsupported file type" in str(rows[4].error)
        assert [row.label for row in predictor.classify(PICTURES["green"])] == ["green"]
        assert predictor.classify([]) == []


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("openvino", {}),
        ("openvino", {"precision": "int8"}),
        ("openvino", {"num_views": 10}),
        ("onnxruntime", {"batch_size": 1}),
        ("torch", {"batch_size": 1}),
        ("onnxruntime", {"batch_size": 1, "devices": "cpu,cpu"}),
    ],
    ids=str,
)
def test_threads_tasks_and_iterators_at_once_have_the_rows_of_one_thread(
    int8_model: ModelFolder, paths: list[Path], backend: str, options: dict[str, object]
) -> None:
    with Predictor(int8_model, **{"backend": backend, "batch_size": 4, **options}) as predictor:
        expected = [row for path in paths for row in predictor.classify(path)]

        async def classify_all() -> list[list[Row]]:
            return list(await asyncio.gather(*(predictor.aclassify(path) for path in paths)))

        with ThreadPoolExecutor(18) as threads:
            calls = [threads.submit(predictor.classify, path) for _ in range(2) for path in paths]
            tasks = [threads.submit(asyncio.run, classify_all()) for _ in range(2)]
            iterators = [threads.submit(lambda: list(predictor.predict(paths))) for _ in range(2)]
            found = [row for call in calls for row in call.result(PATIENCE)]
            assert found == expected * 2
            for task in tasks:
                assert [row for rows in task.result(PATIENCE) for row in rows] == expected
            for iterator in iterators:
                answers = [(row.top, row.views_agreeing, row.error) for row in iterator.result(PATIENCE)]
                assert answers == [(row.top, row.views_agreeing, row.error) for row in expected]


def test_calls_that_wait_together_share_batches(make_predictor: MakePredictor) -> None:
    gate, sizes = threading.Semaphore(0), []

    def run(images: NDArray[np.uint8]) -> None:
        sizes.append(len(images))
        assert gate.acquire(timeout=PATIENCE)

    with make_predictor(batch_size=4, engine={"before_run": run}) as predictor, ThreadPoolExecutor(9) as threads:
        squares = [np.full((256, 256, 3), number, np.uint8) for number in range(1, 10)]
        calls = [threads.submit(predictor.classify, squares[0])]
        wait_for(lambda: sizes)
        calls += [threads.submit(predictor.classify, square) for square in squares[1:]]
        (batcher,) = predictor._batchers
        wait_for(lambda: batcher.num_waiting == 8)
        gate.release(100)
        for call in calls:
            call.result(PATIENCE)
    assert sizes == [1, 4, 4]


def test_a_cancelled_task_leaves_the_queue(make_predictor: MakePredictor) -> None:
    gate, ran = threading.Semaphore(0), []

    def run(images: NDArray[np.uint8]) -> None:
        ran.extend(COLOURS[int(image.mean(axis=(0, 1)).argmax())] for image in images)
        assert gate.acquire(timeout=PATIENCE)

    async def use(predictor: Predictor) -> None:
        first = asyncio.create_task(predictor.aclassify(PICTURES["red"]))
        while not ran:
            await asyncio.sleep(0.01)
        cancelled = asyncio.create_task(predictor.aclassify([PICTURES["blue"]] * 3))
        late = asyncio.create_task(predictor.aclassify(PICTURES["blue"], timeout=0.01))
        last = asyncio.create_task(predictor.aclassify(PICTURES["green"]))
        with pytest.raises(DeadlineError):
            await late
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        (batcher,) = predictor._batchers
        assert batcher.num_waiting == 1
        gate.release(100)
        assert [row.label for task in (first, last) for row in await task] == ["red", "green"]

    with make_predictor(batch_size=1, engine={"before_run": run}) as predictor:
        asyncio.run(use(predictor))
    assert ran == ["red", "green"]


def test_what_is_late_raises_and_is_not_computed(make_predictor: MakePredictor) -> None:
    gate, ran = threading.Semaphore(0), []

    def run(images: NDArray[np.uint8]) -> None:
        ran.append(len(images))
        assert gate.acquire(timeout=PATIENCE)

    with make_predictor(batch_size=1, engine={"before_run": run}) as predictor:
        # Late while it runs, and late while it waits.
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            predictor.classify(np.zeros((256, 256, 3), np.uint8), timeout=0.2)
        with pytest.raises(DeadlineError, match="no answer"):
            predictor.classify(np.zeros((256, 256, 3), np.uint8), timeout=0.1)
        gate.release(100)
    assert ran == [1]


@pytest.mark.parametrize("timeout", [0, -1, "1", float("nan")])
def test_timeouts_are_positive(make_predictor: MakePredictor, timeout: object) -> None:
    with (
        make_predictor() as predictor,
        pytest.raises(UsageError, match=r"timeout is .*; expected a finite number"),
    ):
        predictor.classify(b"", timeout=timeout)


def test_errors_of_the_engine_and_of_the_model_are_raised(make_predictor: MakePredictor) -> None:
    def run(images: NDArray[np.uint8]) -> None:
        if images.max() == 77:
            raise DeviceError("the device fell over")

    async def use(predictor: Predictor) -> None:
        await predictor.aclassify(np.full((256, 256, 3), 77, np.uint8))

    with make_predictor(engine={"before_run": run}) as predictor:
        with pytest.raises(DeviceError, match="fell over"):
            predictor.classify(np.full((256, 256, 3), 77, np.uint8))
        with pytest.raises(DeviceError, match="fell over"):
            asyncio.run(use(predictor))
        # The mean colour of black has no share of red, green and blue.
        with pytest.raises(ModelError, match="not finite for images\\[0\\]"):
            predictor.classify(np.zeros((256, 256, 3), np.uint8))
        assert predictor.classify(PICTURES["red"])[0].label == "red"


def test_what_is_no_image_is_refused_before_anything_runs(make_predictor: MakePredictor) -> None:
    with make_predictor() as predictor, pytest.raises(UsageError, match=r"images\[1\] is an array float64"):
        predictor.classify([PICTURES["red"], np.zeros((256, 256, 3))])


def test_a_predictor_is_opened_and_closed_without_with(make_predictor: MakePredictor) -> None:
    predictor = make_predictor()
    predictor.close()
    with pytest.raises(UsageError, match="not open"):
        predictor.classify(PICTURES["red"])
    assert predictor.open() is predictor
    assert predictor.classify(PICTURES["red"])[0].label == "red"
    rows = predictor.predict_sources([])
    predictor.close()
    predictor.close()
    for call in (lambda: predictor.classify(PICTURES["red"]), predictor.batcher, lambda: next(rows)):
        with pytest.raises(UsageError, match="not open"):
            call()


def test_closing_ends_calls_that_wait(make_predictor: MakePredictor) -> None:
    gate, ran = threading.Semaphore(0), []

    def run(images: NDArray[np.uint8]) -> None:
        ran.append(len(images))
        assert gate.acquire(timeout=PATIENCE)

    async def wait(predictor: Predictor) -> None:
        await predictor.aclassify(PICTURES["blue"])

    predictor = make_predictor(batch_size=1, engine={"before_run": run}).open()
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(predictor.classify, PICTURES["red"])]
        wait_for(lambda: ran)
        calls += [threads.submit(predictor.classify, PICTURES["red"]), threads.submit(asyncio.run, wait(predictor))]
        (batcher,) = predictor._batchers
        wait_for(lambda: batcher.num_waiting == 2)
        closing = threads.submit(predictor.close)
        for call in calls:
            with pytest.raises(UsageError, match="not open any more"):
                call.result(PATIENCE)
        assert not closing.done()
        gate.release(100)
        closing.result(PATIENCE)


def test_a_batcher_of_ones_own_has_its_own_queue_and_ends_with_the_predictor(make_predictor: MakePredictor) -> None:
    with make_predictor() as predictor:
        own, other = predictor.batcher(BatcherOptions(max_queue=1)), predictor.batcher()
        own.close(finish=True)
        outcomes = other.submit([PICTURES["red"]]).future.result(PATIENCE)
        row = make_row(outcomes[0], predictor.info, 2, "colour")
        assert (row.label, len(row.top)) == ("red", 2)
    assert not other.is_open


_UNCLOSED = """
import sys, threading
from alexdeploy import Predictor

predictor = Predictor(sys.argv[1], backend=sys.argv[2]).open()
rows = predictor.predict(["pictures"] * 1000)
print(len(predictor.classify(next(rows).source)), flush=True)
"""


@pytest.mark.parametrize("backend", slow_but_for(["openvino", "onnxruntime"], ["openvino", "onnxruntime", "torch"]))
def test_a_program_that_ends_without_closing_ends(tiny_model: ModelFolder, paths: list[Path], backend: str) -> None:
    words = [sys.executable, "-c", _UNCLOSED, tiny_model.path, backend]
    done = subprocess.run(words, cwd=paths[0].parents[1], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
