from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineOptions, Predictions, open_engine
from alexdeploy.graphs.split import Placement
from alexdeploy.placement import split_engine
from alexdeploy.placement.devices import Device
from alexdeploy.placement.split_engine import SplitEngine, open_split_engine

PLACEMENTS: tuple[Placement, ...] = ("towers", "pipeline")
CPUS = (Device(kind="cpu", index=0), Device(kind="cpu", index=0))
GPU = Device(kind="cuda", index=0)

_SECONDS = 60
"""How long one stage waits for another that is not coming."""


def _open(folder: ModelFolder, placement: Placement, **options: Any) -> SplitEngine:
    return open_split_engine(folder, placement, CPUS, EngineOptions(**options))


def _whole(folder: ModelFolder, images: np.ndarray, **options: Any) -> Predictions:
    with open_engine(folder, "onnxruntime", EngineOptions(**options)) as engine:
        return engine.run(images)


def _before_each_run(monkeypatch: pytest.MonkeyPatch, act: Callable[[tuple[str, ...]], None]) -> None:
    """Call `act` with the names of a stage's outputs, in the stage's own thread, before it runs."""
    open_stage = split_engine.open_stage

    def open_watched(model: bytes, device: str, num_threads: int) -> Callable[..., Any]:
        names = tuple(value.name for value in onnx.load_from_string(model).graph.output)
        run = open_stage(model, device, num_threads)

        def watched(inputs: Any) -> Any:
            act(names)
            return run(inputs)

        return watched

    monkeypatch.setattr(split_engine, "open_stage", open_watched)


def _is_from_here(thread: threading.Thread) -> bool:
    return thread.name.startswith("alexdeploy-stages")


@pytest.mark.parametrize("num_views", [1, 5, 10])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_two_devices_give_the_answers_of_one(tiny_model: ModelFolder, placement: Placement, num_views: int) -> None:
    images = smooth_images(6)
    expected = _whole(tiny_model, images, num_views=num_views)
    with _open(tiny_model, placement, num_views=num_views) as engine:
        for count in (6, 1):
            found = engine.run(images[:count])
            np.testing.assert_allclose(found.probabilities, expected.probabilities[:count], rtol=0, atol=1e-5)
            np.testing.assert_array_equal(found.view_classes, expected.view_classes[:count])
    assert len(set(expected.probabilities.argmax(axis=1))) > 1, "the images should not all have one answer"


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fp16_graphs_run_on_two_devices(tiny_model: ModelFolder, placement: Placement) -> None:
    images = smooth_images(6)
    expected = _whole(tiny_model, images, precision="fp16", num_views=10)
    with _open(tiny_model, placement, precision="fp16", num_views=10) as engine:
        found = engine.run(images)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=2e-3)


def test_both_towers_compute_at_the_same_time_in_every_step(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, met = threading.Barrier(2), []

    def meet(outputs: tuple[str, ...]) -> None:
        if "probabilities" not in outputs:
            both.wait(_SECONDS)
            met.extend(outputs)

    _before_each_run(monkeypatch, meet)
    with _open(tiny_model, "towers") as engine:
        engine.run(smooth_images(2))
    assert sorted(met) == [f"{name}/tower{tower}" for name in ("pool2", "pool5", "relu6", "relu7") for tower in (0, 1)]


def test_a_pipeline_works_on_two_batches_at_the_same_time(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, runs = threading.Barrier(2), {True: itertools.count(), False: itertools.count()}

    def meet(outputs: tuple[str, ...]) -> None:
        is_last = "probabilities" in outputs
        # The first batch's fully connected layers wait for the second batch's convolutions, and the other way round.
        if next(runs[is_last]) == (0 if is_last else 1):
            both.wait(_SECONDS)

    _before_each_run(monkeypatch, meet)
    batches = [smooth_images(2, seed) for seed in (0, 1)]
    with _open(tiny_model, "pipeline") as engine, ThreadPoolExecutor(engine.info.num_streams) as threads:
        found = list(threads.map(engine.run, batches))
    for batch, predictions in zip(batches, found, strict=True):
        np.testing.assert_allclose(
            predictions.probabilities, _whole(tiny_model, batch).probabilities, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("failing", ["pool2/tower1", "pool5/tower0", "relu7/tower1", "probabilities"])
def test_an_error_in_one_stage_surfaces_and_the_next_batch_runs(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    runs = itertools.count()

    def fail_once(outputs: tuple[str, ...]) -> None:
        if failing in outputs and next(runs) == 0:
            raise DeviceError("the device fell off the bus")

    _before_each_run(monkeypatch, fail_once)
    images = smooth_images(2)
    with _open(tiny_model, "towers") as engine:
        with pytest.raises(DeviceError, match="fell off the bus"):
            engine.run(images)
        found = engine.run(images)
    np.testing.assert_allclose(found.probabilities, _whole(tiny_model, images).probabilities, rtol=0, atol=1e-5)
    assert not any(map(_is_from_here, threading.enumerate()))


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has the provider")
@pytest.mark.parametrize("devices", [(GPU, CPUS[0]), (CPUS[0], GPU)])
def test_a_device_that_cannot_be_had_is_an_error_and_not_the_cpu(
    tiny_model: ModelFolder, devices: tuple[Device, Device]
) -> None:
    engine = open_split_engine(tiny_model, "pipeline", devices, EngineOptions())
    with pytest.raises(DeviceError, match="cuda:0 needs ONNX Runtime's CUDA provider"), engine:
        pass
    assert not any(map(_is_from_here, threading.enumerate()))


@pytest.mark.parametrize(("asked", "each"), [(6, 3), (1, 1), (None, max(1, available_processors() // 2))])
def test_two_cpu_devices_share_the_threads(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch, asked: int | None, each: int
) -> None:
    open_stage, seen = split_engine.open_stage, set()

    def counted(model: bytes, device: str, num_threads: int) -> Any:
        seen.add(num_threads)
        return open_stage(model, device, num_threads)

    monkeypatch.setattr(split_engine, "open_stage", counted)
    with _open(tiny_model, "pipeline", num_threads=asked):
        assert seen == {each}


def test_what_runs_is_said(tiny_model: ModelFolder) -> None:
    info = _open(tiny_model, "pipeline", num_views=5, batch_size=3).info
    assert (info.backend, info.device, info.precision) == ("onnxruntime", "cpu,cpu", "fp32")
    assert (info.num_views, info.batch_size, info.num_streams) == (5, 3, 2)
    assert info.artifact == sha256_file(tiny_model.onnx_path())
    assert _open(tiny_model, "towers").info.num_streams == 1


def test_wrong_images_and_a_closed_engine_are_refused(tiny_model: ModelFolder) -> None:
    engine = _open(tiny_model, "towers", batch_size=2)
    with pytest.raises(DeviceError, match="not open"):
        engine.run(smooth_images(1))
    with engine, pytest.raises(UsageError, match=r"expected uint8 \[1\.\.2, 256, 256, 3\]"):
        engine.run(smooth_images(3))
    with pytest.raises(DeviceError, match="not open"):
        engine.run(smooth_images(1))


def test_bfloat16_is_refused(tiny_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match="no bfloat16"):
        _open(tiny_model, "towers", precision="bf16")


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="ONNX Runtime has no CUDA provider"
)
@pytest.mark.parametrize("devices", [(GPU, GPU), (CPUS[0], GPU), (GPU, CPUS[0])])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gpus_give_the_answers_of_the_cpu(
    tiny_model: ModelFolder, placement: Placement, devices: tuple[Device, Device]
) -> None:
    images = smooth_images(6)
    expected = _whole(tiny_model, images, num_views=10)
    with open_split_engine(tiny_model, placement, devices, EngineOptions(num_views=10)) as engine:
        found = engine.run(images)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.view_classes, expected.view_classes)
