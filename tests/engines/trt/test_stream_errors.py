"""Calls of TensorRT that raise instead of returning False: the error says what TensorRT's log says.

In the bindings, set_optimization_profile_async and infer_shapes raise RuntimeError and never return an error.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import NoReturn

import pytest
from imagined_tensorrt import imagined, stream_module

from alexdeploy.core.errors import DeviceError, DeviceMemoryError
from alexdeploy.engines.base import EngineInfo

LOGGED = {
    "IExecutionContext::setOptimizationProfileAsync: Error Code 1: Cuda Runtime (out of memory)": DeviceMemoryError,
    "IExecutionContext::inferShapes: Error Code 4: Shape Error (reshape changes volume)": DeviceError,
}


LIBRARY = imagined("8.6.0")


@pytest.fixture(scope="module")
def stream() -> ModuleType:
    return stream_module()


class Context:
    """An execution context whose calls log `said` and raise as the bindings do."""

    def __init__(self, said: str) -> None:
        self._said = said

    def _fail(self, *given: object) -> NoReturn:
        LIBRARY.log.log("ILogger.ERROR", self._said)
        raise RuntimeError("Error in set optimization profile async.")

    set_optimization_profile_async = infer_shapes = _fail

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True


@pytest.mark.parametrize(("said", "kind"), LOGGED.items(), ids=["memory", "other"])
def test_a_profile_that_cannot_be_set(stream: ModuleType, said: str, kind: type[DeviceError]) -> None:
    engine = SimpleNamespace(create_execution_context=lambda: Context(said))
    with pytest.raises(DeviceError, match="rejected the optimization profile") as caught:
        stream.make_context(LIBRARY, engine, SimpleNamespace(handle=0), "Use a smaller --batch-size.")
    assert type(caught.value) is kind
    assert said in caught.value.message


@pytest.mark.parametrize(("said", "kind"), LOGGED.items(), ids=["memory", "other"])
def test_a_batch_whose_shapes_cannot_be_computed(stream: ModuleType, said: str, kind: type[DeviceError]) -> None:
    info = EngineInfo(
        backend="tensorrt",
        device="cuda:0",
        precision="fp16",
        num_views=1,
        classes=("a", "b"),
        artifact="",
        batch_size=4,
        num_streams=2,
    )
    opened = stream.Stream(LIBRARY, info)
    opened._context = Context(said)
    with pytest.raises(DeviceError, match="a batch of 3 images") as caught:
        opened._set_num_images(3)
    assert type(caught.value) is kind
    assert said in caught.value.message
