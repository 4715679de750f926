"""Graphs in ONNX Runtime: what is asked for comes out, and what goes wrong is an error of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.errors import DeviceError, DeviceMemoryError
from alexdeploy.graphs.runner import GraphRunner, run_graph


def graph_of(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """float32 x [N, 2] -> y, whose shape is not told."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


INPUTS = np.array([[1, -2], [3, -4]], np.float32)


@pytest.fixture
def doubled() -> onnx.ModelProto:
    """y = |2 x|"""
    nodes = (helper.make_node("Add", ["x", "x"], ["sum"]), helper.make_node("Abs", ["sum"], ["y"]))
    return graph_of(*nodes)


@pytest.mark.parametrize("optimize", [False, True])
def test_the_outputs_are_given_and_any_tensor_that_is_asked_for(doubled: onnx.ModelProto, optimize: bool) -> None:
    before = doubled.SerializeToString()
    found = GraphRunner(doubled, optimize=optimize).run(INPUTS)
    assert list(found) == ["y"]
    np.testing.assert_array_equal(found["y"], np.abs(2 * INPUTS))
    found = GraphRunner(doubled, ["y", "sum"], optimize=optimize).run(INPUTS)
    assert list(found) == ["y", "sum"]
    np.testing.assert_array_equal(found["sum"], 2 * INPUTS)
    (summed,) = run_graph(doubled, INPUTS, ["sum"])
    np.testing.assert_array_equal(summed, 2 * INPUTS)
    assert doubled.SerializeToString() == before, "the model itself is left as it was"


def test_an_input_that_is_asked_for_is_the_array_that_was_given(doubled: onnx.ModelProto) -> None:
    # That of ONNX Runtime 1.23 is on memory that is freed with the caller's array.
    runner = GraphRunner(doubled, ["x", "sum"])
    found = runner.run(INPUTS)
    assert found["x"] is INPUTS
    np.testing.assert_array_equal(found["sum"], 2 * INPUTS)
    assert GraphRunner(doubled, ["x"]).run(INPUTS)["x"] is INPUTS


def test_a_graph_that_cannot_be_loaded_is_a_device_error_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DeviceError, match=r"^ONNX Runtime failed: .*Frobnicate") as caught:
        GraphRunner(graph_of(helper.make_node("Frobnicate", ["x"], ["y"])))
    assert type(caught.value) is DeviceError
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_cannot_be_run_is_a_device_error(doubled: onnx.ModelProto) -> None:
    with pytest.raises(DeviceError, match=r"^ONNX Runtime failed: ") as caught:
        GraphRunner(doubled).run(INPUTS[:, :1])
    assert type(caught.value) is DeviceError


def test_want_of_memory_has_an_error_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    # 2^46 floats are more than the address space of a process.
    node = helper.make_node("Expand", ["scalar", "shape"], ["y"])
    shape = {"scalar": np.ones(1, np.float32), "shape": np.array([1 << 46], np.int64)}
    runner = GraphRunner(graph_of(helper.make_node("Abs", ["x"], ["unused"]), node, **shape))
    with pytest.raises(DeviceMemoryError, match=r"^ONNX Runtime ran out of memory: ") as caught:
        runner.run(INPUTS)
    assert "more memory" in str(caught.value.hint)
    assert capfd.readouterr() == ("", "")


_ENDLESS = """
import os, signal, threading, time
import numpy as np
import onnx
from alexdeploy.graphs.runner import run_graph

signal.signal(signal.SIGINT, signal.default_int_handler)
threads = []
started = threading.Thread.start

def start(thread):
    threads.append(thread)
    started(thread)

threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
threading.Thread.start = start
try:
    run_graph(onnx.load("endless.onnx"), np.array([[1, -2]], np.float32))
except KeyboardInterrupt:
    print("interrupted", [thread.name for thread in threads], flush=True)
while any(thread.ident in {info.ident for info in threading.enumerate()} for thread in threads):
    time.sleep(0.01)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_a_graph_that_would_run_for_ever(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Neg", ["value"], ["negated"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("negated", TensorProto.FLOAT, None),
        ],
    )
    endless = graph_of(
        helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body),
        times=np.array(1 << 60),
        yes=np.array(True),
    )
    onnx.save(endless, tmp_path / "endless.onnx")
    # In a process of its own: a signal to that of the tests could end it.
    done = subprocess.run(
        [sys.executable, "-c", _ENDLESS], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "interrupted ['alexdeploy-check']\n"), done.stderr
