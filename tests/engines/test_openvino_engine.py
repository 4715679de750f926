"""OpenVINO's engine: fixed shapes, streams, and the cache of compiled models."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import replace_graph, smooth_images
from safetensors.numpy import load_file, save_file

from alexdeploy.core import hashes
from alexdeploy.core.errors import DeviceMemoryError, StaleArtifactError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.engines import openvino as openvino_engine
from alexdeploy.engines import openvino_models
from alexdeploy.engines.base import EngineOptions, Predictions, open_engine
from alexdeploy.engines.openvino import OpenVINOEngine, images_at_once
from alexdeploy.engines.openvino_library import ov
from alexdeploy.export.export import export_model
from alexdeploy.graphs.freshness import load_metadata
from alexdeploy.graphs.metadata import WEIGHTS_KEY

posix_only = pytest.mark.skipif(os.name != "posix", reason="ctime is the time of the last change on POSIX only")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for compiled models, of this test alone."""
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _open(folder: ModelFolder, **options: object) -> OpenVINOEngine:
    engine = open_engine(folder, "openvino", EngineOptions(**options))  # type: ignore[arg-type]
    assert isinstance(engine, OpenVINOEngine)
    return engine


def _property(engine: OpenVINOEngine, name: str) -> object:
    """What the compiled model says of itself."""
    compiled = engine._compiled
    assert compiled is not None
    return compiled.get_property(name)


def _run(folder: ModelFolder, images: np.ndarray, **options: object) -> Predictions:
    with _open(folder, **options) as engine:
        return engine.run(images)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_image_has_the_same_bits_in_every_batch_of_an_engine(int8_model: ModelFolder, precision: str) -> None:
    images = smooth_images(9)
    with _open(int8_model, precision=precision, num_views=10, batch_size=9) as engine:
        whole = engine.run(images).probabilities
        for size in (1, 2, 4, 8):
            for start in range(0, 9, size):
                part = engine.run(images[start : start + size]).probabilities
                np.testing.assert_array_equal(part, whole[start : start + size])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("int8", 0.01)])
def test_engines_for_other_batches_give_the_same_answers(
    int8_model: ModelFolder, precision: str, tolerance: float
) -> None:
    """Each is compiled for shapes of its own, and which kernels OpenVINO takes for these is its own affair."""
    images = smooth_images(4)
    whole = _run(int8_model, images, precision=precision, num_views=10, batch_size=4).probabilities
    for batch_size in (1, 3):
        with _open(int8_model, precision=precision, num_views=10, batch_size=batch_size) as engine:
            parts = [engine.run(images[start : start + batch_size]) for start in range(0, 4, batch_size)]
        found = np.concatenate([part.probabilities for part in parts])
        np.testing.assert_allclose(found, whole, atol=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("int8", 0.01)])
@pytest.mark.parametrize(("num_views", "batch_size"), [(1, 8), (10, 6)])
def test_few_images_have_the_same_answers_with_low_latency(
    int8_model: ModelFolder, precision: str, tolerance: float, num_views: int, batch_size: int
) -> None:
    images = smooth_images(batch_size)
    with _open(int8_model, precision=precision, num_views=num_views, batch_size=batch_size) as engine:
        whole = engine.run(images)
        engine.run(images[:1], low_latency=True)
        assert engine._single is not None
        for break_even in (0.0, float(batch_size)):
            engine._single.break_even = break_even
            for count in range(1, batch_size + 1):
                found = engine.run(images[:count], low_latency=True)
                np.testing.assert_allclose(found.probabilities, whole.probabilities[:count], atol=tolerance)
                assert found.view_classes.shape == (count, num_views)


def test_a_row_of_matrix_products_has_the_bits_that_it_has_among_others() -> None:
    """OpenVINO has another kernel for products of one row."""
    ops, random = ov.opset8, np.random.default_rng(0)
    rows, weights = random.random((8, 2304), np.float32), random.random((2304, 1024), np.float32) - 0.5

    def products(num_rows: int, found: np.ndarray) -> np.ndarray:
        row = ops.parameter([num_rows, 2304], np.float32)
        graph = ov.Model([ops.relu(ops.matmul(row, ops.constant(weights), False, False))], [row])
        if num_rows == 1:
            graph = openvino_models.with_two_rows(graph)
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
        return ov.Core().compile_model(graph, "CPU", config)({0: found})[0]

    alone = np.concatenate([products(1, row[None])[:1] for row in rows])
    np.testing.assert_array_equal(alone, products(8, rows))


def test_only_matrix_products_of_one_row_are_computed_twice() -> None:
    ops = ov.opset8

    def graph(shape: list[int], *, flattens: bool = False) -> ov.Model:
        rows = ops.parameter(shape, np.float32)
        product = ops.matmul(rows, ops.constant(np.ones((3, 5), np.float32)), False, False)
        if flattens:
            product = ops.reshape(product, ops.constant([1, -1]), False)
        return ov.Model([ops.softmax(product, 1)], [rows])

    assert list(openvino_models.with_two_rows(graph([1, 3])).output(0).get_shape()) == [2, 5]
    for unchanged in (graph([10, 3]), graph([1, 3], flattens=True)):
        assert openvino_models.with_two_rows(unchanged) is unchanged


def test_the_model_for_one_image_is_opened_once_when_it_is_needed_and_used_below_the_break_even(
    tiny_model: ModelFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ran = smooth_images(4), []
    monkeypatch.setattr(openvino_models, "least_cpu_seconds", lambda *calls: [0.30, 0.48])
    with _open(tiny_model, batch_size=4) as engine:
        expected = engine.run(images, low_latency=True).probabilities
        engine.run(images[:1])
        assert len(list((cache / "openvino").iterdir())) == 1
        with ThreadPoolExecutor(4) as threads:
            parts = list(threads.map(lambda n: engine.run(images[n : n + 1], low_latency=True), range(4)))
        np.testing.assert_allclose(np.concatenate([part.probabilities for part in parts]), expected, atol=1e-6)
        assert len(list((cache / "openvino").iterdir())) == 2
        assert engine._single is not None
        assert engine._single.break_even == pytest.approx(2.5)
        single_run = engine._single.run
        monkeypatch.setattr(engine._single, "run", lambda part: (ran.append(len(part)), single_run(part))[1])
        for count in (1, 2, 3, 4):
            engine.run(images[:count], low_latency=True)
            engine.run(images[:count])
        assert ran == [1, 2]
    # Another process maps both.
    with _open(tiny_model, batch_size=4) as engine:
        engine.run(images[:1], low_latency=True)
        assert engine._single is not None
        assert not engine._single._opened.was_compiled


def test_without_its_graph_an_engine_goes_on_with_the_model_that_is_open(tiny_model: ModelFolder, cache: Path) -> None:
    images = smooth_images(2)
    with _open(tiny_model, batch_size=4) as engine:
        expected = engine.run(images).probabilities
        tiny_model.onnx_path().unlink()
        for _ in range(2):
            np.testing.assert_array_equal(engine.run(images, low_latency=True).probabilities, expected)
        assert engine._single is None


def test_an_engine_for_one_image_needs_no_other(tiny_model: ModelFolder, cache: Path) -> None:
    with _open(tiny_model, batch_size=1) as engine:
        engine.run(smooth_images(1), low_latency=True)
        assert engine._single is None
    assert len(list((cache / "openvino").iterdir())) == 1


def test_the_least_processor_time_of_several_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    for clock in ("process_time", "monotonic"):
        monkeypatch.setattr(openvino_models.time, clock, lambda: now[0])
    times = {"one": iter([0.4, 0.2, 0.1]), "other": iter([0.1, 0.3, 0.05])}

    def call(name: str) -> None:
        now[0] += next(times[name])

    # The time is up after the second round.
    monkeypatch.setattr(openvino_models, "_MEASURE_SECONDS", 0.9)
    assert openvino_models.least_cpu_seconds(lambda: call("one"), lambda: call("other")) == pytest.approx([0.2, 0.1])


@pytest.mark.parametrize(
    ("batch_size", "num_views", "expected"),
    [(1, 1, 1), (8, 1, 8), (64, 1, 32), (8, 5, 8), (1, 10, 1), (4, 10, 4), (6, 10, 3), (8, 10, 4), (64, 10, 4)],
)
def test_openvino_computes_at_most_forty_views_at_once(batch_size: int, num_views: int, expected: int) -> None:
    assert images_at_once(batch_size, num_views) == expected


def test_openvino_runs_as_many_batches_at_once_as_asked_and_as_there_are_threads(tiny_model: ModelFolder) -> None:
    images = smooth_images(3)
    expected = _run(tiny_model, images, batch_size=3).probabilities
    # More threads than the machine has are not given.
    most = available_processors()
    for num_threads, asked, streams in ((2, 1, 1), (2, 2, 2), (2, 9, 2), (2, None, 2), (1, 2, 1)):
        with _open(tiny_model, batch_size=3, num_threads=num_threads, num_streams=asked) as engine:
            assert engine.info.num_streams == streams
            assert _property(engine, "NUM_STREAMS") == min(streams, most)
            assert _property(engine, "INFERENCE_NUM_THREADS") == min(num_threads, most)
            np.testing.assert_allclose(engine.run(images).probabilities, expected, atol=1e-6)


def test_a_compiled_model_from_the_cache_runs_with_the_threads_that_are_asked_for_now(
    tiny_model: ModelFolder, cache: Path
) -> None:
    images = smooth_images(3)
    found = []
    for num_threads, num_streams in ((2, 1), (2, 2), (1, 1), (2, 1)):
        with _open(tiny_model, num_threads=num_threads, num_streams=num_streams) as engine:
            found.append(engine.run(images).probabilities)
            most = available_processors()
            assert _property(engine, "NUM_STREAMS") == min(num_streams, most)
            assert _property(engine, "INFERENCE_NUM_THREADS") == min(num_threads, most)
    assert len(list((cache / "openvino").iterdir())) == 1
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"batch_size": 8}, "Use --batch-size 4, or fewer --threads."),
        # Four images at once as it is: a batch of five would take the same memory.
        ({"batch_size": 8, "num_views": 10}, "Use --batch-size 2, or fewer --threads."),
        ({"batch_size": 1}, "Use fewer --threads."),
    ],
)
def test_out_of_memory_names_a_batch_that_takes_less(
    tiny_model: ModelFolder, options: dict[str, int], hint: str
) -> None:
    with _open(tiny_model, num_streams=1, **options) as engine:
        engine._requests.get()

        class Full:
            def infer(self, *images: object, **options: object) -> None:
                raise RuntimeError("Exception from src/inference:\nstd::bad_alloc")

        engine._requests.put(Full())  # type: ignore[arg-type]
        with pytest.raises(DeviceMemoryError, match="out of memory: std::bad_alloc") as caught:
            engine.run(smooth_images(1))
    assert caught.value.hint == hint


def test_a_compiled_model_from_the_cache_gives_the_same_bits(tiny_model: ModelFolder, cache: Path) -> None:
    first = _run(tiny_model, smooth_images(3), num_views=10)
    (blob,) = (cache / "openvino").iterdir()
    written = blob.stat().st_ino
    second = _run(tiny_model, smooth_images(3), num_views=10)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert [path.stat().st_ino for path in (cache / "openvino").iterdir()] == [written]


def test_another_model_of_the_same_name_does_not_get_the_cached_one(tiny_model: ModelFolder, cache: Path) -> None:
    before = _run(tiny_model, smooth_images(3)).probabilities
    weights = load_file(tiny_model.weights_path)
    weights["fc8.bias"] += np.arange(5, dtype=np.float32)
    save_file(weights, tiny_model.weights_path)
    export_model(tiny_model)
    after = _run(tiny_model, smooth_images(3)).probabilities
    with open_engine(tiny_model, "torch", EngineOptions()) as engine:
        exact = engine.run(smooth_images(3)).probabilities
    np.testing.assert_allclose(after, exact, atol=1e-5)
    assert np.abs(after - before).max() > 0.01


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_cache_is_compiled_again(tiny_model: ModelFolder, cache: Path, damage: bytes | None) -> None:
    expected = _run(tiny_model, smooth_images(2)).probabilities
    (blob,) = (cache / "openvino").iterdir()
    content = blob.read_bytes()
    blob.write_bytes(content[: len(content) // 2] if damage is None else damage)
    # OpenVINO does not write the same bytes twice: it is told by whether it loads, and by its answers.
    for was_compiled in (True, False):
        with _open(tiny_model) as engine:
            assert engine.was_compiled == was_compiled
            np.testing.assert_allclose(engine.run(smooth_images(2)).probabilities, expected, rtol=0, atol=1e-6)
        assert len(list((cache / "openvino").iterdir())) == 1


@posix_only
def test_a_cached_model_that_is_written_to_is_seen_though_its_size_and_date_are_as_they_were(
    tiny_model: ModelFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_MIN_BYTES", 0)
    monkeypatch.setattr(hashes, "_SETTLED_NS", 20_000_000)
    expected = _run(tiny_model, smooth_images(2)).probabilities
    time.sleep(0.05)
    _run(tiny_model, smooth_images(2))
    (blob,) = (cache / "openvino").iterdir()
    before, content = blob.stat(), bytearray(blob.read_bytes())
    content[-1000] ^= 0xFF
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    with _open(tiny_model) as engine:
        assert engine.was_compiled
        np.testing.assert_allclose(engine.run(smooth_images(2)).probabilities, expected, rtol=0, atol=1e-6)
    (renewed,) = (cache / "openvino").iterdir()
    assert sha256_file(renewed) == renewed.stem.partition("-")[2]


def test_a_compiled_model_that_is_in_use_is_not_what_the_cache_forgets_first(
    tiny_model: ModelFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = smooth_images(1)
    blobs: list[Path] = []
    for num_views, days in ((1, 3), (5, 2)):
        _run(tiny_model, images, num_views=num_views)
        (blob,) = set((cache / "openvino").iterdir()) - set(blobs)
        days_ago = time.time() - days * 24 * 3600
        os.utime(blob, (days_ago, days_ago))
        blobs.append(blob)
    in_use, forgotten = blobs
    _run(tiny_model, images, num_views=1)
    monkeypatch.setattr(openvino_models, "_CACHE_BYTES", int(2.5 * in_use.stat().st_size))
    _run(tiny_model, images, num_views=10)
    assert in_use.exists()
    assert not forgotten.exists()


def test_a_model_compiled_on_another_processor_is_not_taken_from_a_shared_cache(
    tiny_model: ModelFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tiny_model, smooth_images(1))
    monkeypatch.setattr(openvino_models.platform, "machine", lambda: "another")
    _run(tiny_model, smooth_images(1))
    assert len(list((cache / "openvino").iterdir())) == 2


def test_a_compiled_model_is_that_of_its_graph_s_metadata_as_well_as_of_its_hash(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash may be remembered of the graph before; what it says of itself is read each time."""
    _run(tiny_model, smooth_images(1))
    stale = load_metadata(tiny_model, "fp32", tiny_model.spec())
    facts = dataclasses.replace(stale, metadata={**stale.metadata, WEIGHTS_KEY: "0" * 64})
    monkeypatch.setattr(openvino_engine, "load_metadata", lambda *_: facts)
    with pytest.raises(StaleArtifactError, match="changed while it was"):
        _run(tiny_model, smooth_images(1))


def test_a_graph_that_is_replaced_before_it_is_compiled_is_refused(tiny_model: ModelFolder, cache: Path) -> None:
    engine = _open(tiny_model)
    model = onnx.load(tiny_model.onnx_path())
    model.doc_string = "changed"
    replace_graph(tiny_model, "fp32", model)
    with pytest.raises(StaleArtifactError, match="changed while it was"), engine:
        pass
    assert not list((cache / "openvino").iterdir())


def test_openvino_is_run_without_its_telemetry() -> None:
    code = (
        "import sys, alexdeploy.engines.openvino\nassert 'openvino' in sys.modules\n"
        "print(*(name for name in sys.modules if 'telemetry' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_who_converts_models_in_the_same_process_still_can(tiny_model: ModelFolder) -> None:
    code = (
        "import sys, alexdeploy.engines.openvino, openvino\n"
        "print(len(openvino.convert_model(sys.argv[1]).outputs))\n"
        "from openvino.tools.ovc import convert_model\nprint(len(convert_model(sys.argv[1]).outputs))"
    )
    path = str(tiny_model.onnx_path())
    # It is the converter that has the telemetry; CI stands for: nothing is sent.
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env={**os.environ, "CI": "true"}
    )
    assert done.stdout == "1\n1\n"


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "file"))
    assert _run(tiny_model, smooth_images(2)).probabilities.shape == (2, 5)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_after_engines_were_closed_is_heard(int8_model: ModelFolder) -> None:
    """In whatever order they are closed; the process would end with a segmentation fault."""
    code = """
import contextlib, os, signal, sys
from pathlib import Path
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine

signal.signal(signal.SIGINT, signal.default_int_handler)
engines = [open_engine(ModelFolder(Path(sys.argv[1])), "openvino", EngineOptions(batch_size=size)) for size in (1, 2)]
with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
    first.enter_context(engines[0])
    second.enter_context(engines[1])
    del engines
    first.close()
    second.close()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(int8_model.path.absolute())], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
