"""The estimate of a model's memory, against what a process that opens and uses it takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.placement.memory import host_bytes, view_bytes
from alexdeploy.placement.options import PredictOptions

_USE = """
import sys
from pathlib import Path
import numpy as np
from alexdeploy.inference.predictor import Predictor

def peak():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024

before = peak()
with Predictor(sys.argv[1], backend=sys.argv[2], num_views=int(sys.argv[3])) as predictor:
    predictor.classify([np.zeros((256, 256, 3), np.uint8)] * 32)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_model_takes_no_more_than_was_estimated(tiny_model: ModelFolder, backend: str, num_views: int) -> None:
    command = [sys.executable, "-c", _USE, str(tiny_model.path), backend, str(num_views)]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd()).stdout)
    assert 0 < taken <= host_bytes(tiny_model, PredictOptions(backend=backend, num_views=num_views))  # type: ignore[arg-type]


def test_weights_replicas_views_and_batches_add_up(tiny_model: ModelFolder) -> None:
    one = PredictOptions(backend="onnxruntime", batch_size=1)
    base = host_bytes(tiny_model, one)
    assert host_bytes(tiny_model, replace(one, replicas=3)) == 3 * base
    assert host_bytes(tiny_model, replace(one, devices="cpu,cpu")) == 2 * base
    per_view = view_bytes(tiny_model.spec()) + 4 * 3 * IMAGE_SIZE**2
    assert host_bytes(tiny_model, replace(one, num_views=10)) - base == 9 * per_view
    assert host_bytes(tiny_model, replace(one, batch_size=5)) - base == 4 * (per_view + 3 * IMAGE_SIZE**2)
    content = tiny_model.onnx_path().read_bytes()
    tiny_model.onnx_path().write_bytes(content + bytes(1_000))
    assert host_bytes(tiny_model, one) - base == 4_000
