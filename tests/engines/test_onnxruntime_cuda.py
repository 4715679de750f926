"""ONNX Runtime on a GPU: what can be tried without one, and, marked gpu, the rest."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from gpu_here import why_no_onnxruntime_gpu
from helpers import smooth_images

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.engines.onnxruntime import BoundInput, check_provider, load_cuda_libraries
from alexdeploy.graphs.files import deploy
from alexdeploy.graphs.freshness import load_graph

WHY_NOT = why_no_onnxruntime_gpu()
has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.skipif(has_cuda, reason="this ONNX Runtime has the CUDA provider")
def test_without_the_cuda_provider_a_gpu_is_refused(tiny_model: ModelFolder) -> None:
    with pytest.raises(DeviceError, match="needs ONNX Runtime's CUDA provider") as caught:
        open_engine(tiny_model, "onnxruntime", EngineOptions(device="cuda:0"))
    assert caught.value.hint is not None
    assert "alexdeploy[gpu]" in caught.value.hint


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "rocm:0", ""])
def test_an_unknown_device_is_a_usage_error(tiny_model: ModelFolder, device: str) -> None:
    with pytest.raises(UsageError, match="runs on cpu or on cuda:0"):
        open_engine(tiny_model, "onnxruntime", EngineOptions(device=device))


def test_a_session_that_fell_back_to_the_cpu_is_an_error() -> None:
    with pytest.raises(DeviceError, match="opened CPUExecutionProvider instead of CUDAExecutionProvider"):
        check_provider(["CPUExecutionProvider"], "CUDAExecutionProvider")
    with pytest.raises(DeviceError, match="opened nothing instead of"):
        check_provider([], "CUDAExecutionProvider")
    check_provider(["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider")


def test_bound_inputs_give_the_answers_of_unbound_ones_for_full_and_tail_batches(tiny_model: ModelFolder) -> None:
    spec = tiny_model.spec()
    content = deploy(load_graph(tiny_model, "fp32", spec), spec, 10, tiny_model.mean_image(spec))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    bound = BoundInput(session, "cpu", 0, batch_size=4)
    for count, seed in ((4, 0), (3, 1), (4, 2), (1, 3), (4, 4)):
        images = smooth_images(count, seed)
        expected = session.run(["probabilities", "view_classes"], {"images": images})
        found = bound.run(images)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_loading_libraries_says_nothing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    load_cuda_libraries()
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_the_gpu_gives_the_answers_of_the_cpu(int8_model: ModelFolder) -> None:
    images = smooth_images(11)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3), ("int8", 5e-2)):
        for num_views in (1, 10):
            found = []
            for device in ("cpu", "cuda:0"):
                options = EngineOptions(
                    precision=precision,  # type: ignore[arg-type]
                    num_views=num_views,  # type: ignore[arg-type]
                    batch_size=4,
                    device=device,
                )
                with open_engine(int8_model, "onnxruntime", options) as engine:
                    assert engine.info.device == device
                    parts = [engine.run(images[start : start + 4]).probabilities for start in range(0, 11, 4)]
                found.append(np.concatenate(parts))
            np.testing.assert_allclose(found[1], found[0], atol=tolerance)
