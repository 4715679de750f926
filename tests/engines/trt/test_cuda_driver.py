"""What is asked of the driver itself: tried with one that is none, and, marked gpu, with the real one."""

from __future__ import annotations

import ctypes
import sys

import pytest
from gpu_here import has_gpu

from alexdeploy.core.errors import DeviceError, DeviceMemoryError
from alexdeploy.engines.trt.cuda_driver import CudaGraph, cuda_ordinal, try_graph


class Driver:
    """Keeps the names of what is called; lacks some functions, and gives an error code for others."""

    def __init__(self, *, lacks: tuple[str, ...] = (), **codes: int) -> None:
        self.called: list[str] = []
        self._lacks, self._codes = lacks, codes

    def __getitem__(self, name: str):  # type: ignore[no-untyped-def]
        if name in self._lacks:
            # As ctypes does.
            raise AttributeError(f"undefined symbol: {name}")

        def call(*arguments: object) -> int:
            self.called.append(name)
            return self._codes.get(name, 0)

        return call


def capture(driver: Driver) -> CudaGraph:
    return CudaGraph(7, lambda: driver.called.append("enqueue"), driver)  # type: ignore[arg-type]


def test_work_is_recorded_once_and_launched_by_one_call() -> None:
    driver = Driver()
    graph = capture(driver)
    graph.launch(7)
    graph.launch(7)
    graph.close()
    graph.close()
    assert driver.called == [
        "cuStreamBeginCapture_v2",
        "enqueue",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]


def test_a_driver_from_before_cuda_11_4_makes_the_graph_by_the_older_function() -> None:
    driver = Driver(lacks=("cuGraphInstantiateWithFlags",))
    capture(driver).launch(7)
    assert driver.called[2:] == ["cuStreamEndCapture", "cuGraphInstantiate_v2", "cuGraphDestroy", "cuGraphLaunch"]


def test_a_driver_without_graphs_is_a_device_error_and_leaves_nothing_behind() -> None:
    driver = Driver(lacks=("cuGraphInstantiateWithFlags", "cuGraphInstantiate_v2"))
    with pytest.raises(DeviceError, match="has no cuGraphInstantiate_v2: it is too old"):
        capture(driver)
    assert driver.called[-1] == "cuGraphDestroy"
    older = Driver(lacks=("cuStreamBeginCapture_v2",))
    with pytest.raises(DeviceError, match="has no cuStreamBeginCapture_v2"):
        capture(older)
    assert older.called == [], "nothing was begun"


def test_recording_ends_also_where_the_work_fails() -> None:
    driver = Driver()

    def fail() -> None:
        raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        CudaGraph(7, fail, driver)  # type: ignore[arg-type]
    assert driver.called == ["cuStreamBeginCapture_v2", "cuStreamEndCapture"]


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    with pytest.raises(DeviceMemoryError, match="cuGraphInstantiateWithFlags failed with CUDA error 2"):
        capture(Driver(cuGraphInstantiateWithFlags=2))
    with pytest.raises(DeviceError, match="cuStreamEndCapture failed with CUDA error 901"):
        capture(Driver(cuStreamEndCapture=901))


def test_work_for_whose_graph_there_is_no_memory_goes_on_without_one() -> None:
    def fail() -> None:
        raise ValueError("work")

    assert try_graph(7, lambda: None, Driver()) is not None  # type: ignore[arg-type]
    assert try_graph(7, lambda: None, Driver(cuGraphInstantiateWithFlags=2)) is None  # type: ignore[arg-type]
    assert try_graph(7, fail, Driver()) is None  # type: ignore[arg-type]


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(_has_driver(), reason="there is an NVIDIA driver")
def test_a_gpu_by_uuid_is_refused_where_there_is_no_driver() -> None:
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        cuda_ordinal("GPU-00000000-0000-0000-0000-000000000000")


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="there is no NVIDIA GPU")
def test_a_uuid_that_cuda_does_not_see_is_said_with_what_to_look_at() -> None:
    with pytest.raises(DeviceError, match="CUDA does not see GPU") as caught:
        cuda_ordinal("GPU-00000000-0000-0000-0000-000000000000")
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)
