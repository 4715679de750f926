"""The estimate of a model's memory, against what a process that opens and uses it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import write_pictures

from alexdeploy.core.cgroups import control_groups
from alexdeploy.core.errors import DeviceMemoryError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines import openvino
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.placement import memory
from alexdeploy.placement.memory import check_free_memory, host_bytes, view_bytes
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
    ten = replace(one, num_views=10)
    per_view = view_bytes(tiny_model.spec()) + 4 * 3 * IMAGE_SIZE**2
    assert host_bytes(tiny_model, replace(ten, batch_size=5)) - host_bytes(tiny_model, ten) == 4 * (
        10 * per_view + 3 * IMAGE_SIZE**2
    )
    content = tiny_model.onnx_path().read_bytes()
    # Small activations beside the weights: opening takes the most. Large ones: what follows.
    tiny_model.onnx_path().write_bytes(content + bytes(10_000_000))
    opening, using = host_bytes(tiny_model, one), host_bytes(tiny_model, replace(ten, batch_size=50))
    tiny_model.onnx_path().write_bytes(content + bytes(10_001_000))
    assert host_bytes(tiny_model, one) - opening == 4_500
    assert host_bytes(tiny_model, replace(ten, batch_size=50)) - using == 2_000
    # There is no INT8 file: the same weights, of which ONNX Runtime makes float32.
    int8 = replace(ten, batch_size=50, precision="int8")
    assert host_bytes(tiny_model, int8) - using == 2_000 + 3 * (len(content) + 10_001_000)


def test_a_server_with_openvino_opens_a_model_for_one_image_beside_the_first(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "is_in_memory", lambda _: False)
    options = PredictOptions(backend="openvino")
    weights = tiny_model.onnx_path().stat().st_size
    running = host_bytes(tiny_model, options, low_latency=True) - 4 * weights
    monkeypatch.setattr(memory, "is_in_memory", lambda _: True)
    assert host_bytes(tiny_model, options, low_latency=True) == running + 5 * weights
    for other in (replace(options, batch_size=1), replace(options, backend="onnxruntime")):
        assert host_bytes(tiny_model, other, low_latency=True) == host_bytes(tiny_model, other)


def test_a_model_that_does_not_fit_is_refused_with_the_options_that_make_it_fit(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def least(options: PredictOptions) -> int:
        return host_bytes(tiny_model, options, is_compiled=True)

    options = PredictOptions(num_views=10, batch_size=64)
    for free, found in (
        (least(options), None),
        (least(replace(options, num_views=1)), r"Use --batch-size 1 or --views 1\."),
        (least(replace(options, batch_size=1)), r"Use --batch-size 1\."),
        (1_000_000, "Stop other programs, or give the container more memory"),
    ):
        monkeypatch.setattr(memory, "host_memory", lambda free=free: (free, None))
        if found is None:
            check_free_memory(tiny_model, options)
            continue
        with pytest.raises(DeviceMemoryError, match=f"{tiny_model.path.name} needs about .* are free") as caught:
            check_free_memory(tiny_model, options)
        assert caught.value.hint is not None
        assert re.match(found, caught.value.hint)


def test_what_is_suggested_runs_in_the_backend(quantized_here: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = quantized_here.onnx_path().stat().st_size
    for backend, found in (("torch", "Stop other programs"), ("onnxruntime", "Use --precision int8")):
        options = PredictOptions(backend=backend, batch_size=1)  # type: ignore[arg-type]
        monkeypatch.setattr(memory, "host_memory", lambda o=options: (host_bytes(quantized_here, o) - weights, None))
        with pytest.raises(DeviceMemoryError) as caught:
            check_free_memory(quantized_here, options)
        assert caught.value.hint is not None
        assert caught.value.hint.startswith(found)


@pytest.fixture
def quantized_here(tiny_model: ModelFolder) -> ModelFolder:
    """Large weights, and an INT8 graph of a quarter of them: only sizes count here."""
    tiny_model.onnx_path().write_bytes(bytes(40_000_000))
    tiny_model.onnx_path("int8").write_bytes(bytes(10_000_000))
    return tiny_model


def test_a_model_is_compiled_only_where_there_is_memory_for_it_and_runs_from_the_cache_where_there_is_not(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "nothing is compiled yet"))
    size = tiny_model.onnx_path().stat().st_size
    engine = EngineOptions(num_views=1, batch_size=2)
    monkeypatch.setattr(openvino, "host_memory", lambda: (4 * size - 1, None))
    with (
        pytest.raises(DeviceMemoryError, match=r"OpenVINO needs about .* to compile it") as caught,
        open_engine(tiny_model, "openvino", engine),
    ):
        pass
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Use --precision int8. Opened once where more is free")
    monkeypatch.setattr(openvino, "host_memory", lambda: (4 * size, None))
    with open_engine(tiny_model, "openvino", engine):
        pass
    monkeypatch.setattr(openvino, "host_memory", lambda: (0, None))
    with open_engine(tiny_model, "openvino", engine):
        pass


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a control group with a limit in bytes; the result is the file that a process writes its number to."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        for group in control_groups("memory"):
            folder = group.folder / f"{tmp_path.name}-{os.getpid()}-{limit}"
            try:
                folder.mkdir()
                made.append(folder)
                (folder / {1: "memory.limit_in_bytes", 2: "memory.max"}[group.version]).write_text(str(limit))
            except OSError:
                continue
            return folder / "cgroup.procs"
        pytest.skip("no control group can be made here")

    yield make
    for folder in made:
        folder.rmdir()


def test_under_a_real_limit_what_fits_runs_and_what_does_not_is_refused(
    tiny_model: ModelFolder, tmp_path: Path, limited: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "nothing is compiled yet"))
    write_pictures(tmp_path / "pictures", 3)
    needed = host_bytes(tiny_model, PredictOptions(num_views=10), is_compiled=True)
    # Beside the model there are Python and the images on their way.
    limits = {needed + 80_000_000: 0, needed: 5}

    words = ["predict", str(tmp_path / "pictures"), "--model", str(tiny_model.path), "--tencrop"]
    for limit, code in limits.items():
        join = f"echo $$ > '{limited(limit)}' && exec \"$@\""
        command = ["sh", "-c", join, "sh", sys.executable, "-m", "alexdeploy", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert f"needs about {needed / 1e6:,.0f} MB of memory" in done.stderr
