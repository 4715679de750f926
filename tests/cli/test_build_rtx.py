"""Engines for RTX cards, built for real on a CPU by `alexdeploy build --backend tensorrt-rtx`. None is run."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from gpu_here import why_no_tensorrt_rtx
from program import Run

from alexdeploy import BuildOptions, build
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.trt.build import BuiltEngine, build_engine
from alexdeploy.engines.trt.files import load_engine, sidecar_path

WHY_NOT = why_no_tensorrt_rtx()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

RTX = BuildOptions(backend="tensorrt-rtx", precision="fp16", num_views=10, max_batch=4)


@pytest.fixture
def run(program: Run, int8_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy build tiny --backend tensorrt-rtx --max-batch 4`, where models/tiny is."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    return partial(program, "build", "tiny", "--backend", "tensorrt-rtx", "--max-batch", "4")


@pytest.fixture
def engine(run: Run, int8_model: ModelFolder) -> BuiltEngine:
    return build_engine(int8_model, RTX)


@pytest.mark.parametrize("views", ["1", "5", "10"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_of_every_precision_and_number_of_views_is_built_without_a_gpu(
    run: Run, program: Run, precision: str, views: str
) -> None:
    result = run("--precision", precision, "--views", views, "--for", "sm120,sm86", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    path = Path(found["path"])
    assert path.name.startswith(f"rtx-sm86-sm120-rtx1.7-{precision}-")
    assert found["engine_bytes"] == path.stat().st_size > 100_000
    assert (found["backend"], found["compute_capabilities"], found["cuda"]) == ("tensorrt-rtx", [[8, 6], [12, 0]], "")
    assert (found["profile"], found["builder"]["typing"], found["builder"]["opset"]) == ([1, 4, 4], "strong", 19)
    facts = json.loads(program("inspect", path, "--json").stdout)["facts"]
    assert facts["built for"] == "NVIDIA RTX, sm_86, sm_120"
    assert (facts["TensorRT-RTX"], facts["trusted"]) == (found["version"], "yes")
    assert "CUDA" not in facts
    again = run("--precision", precision, "--views", views, "--for", "sm_86,SM120")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "already built:" in again.stderr


def test_by_default_one_engine_is_for_rtx_30_40_and_50(engine: BuiltEngine) -> None:
    assert engine.record.compute_capabilities == ((8, 6), (8, 9), (12, 0))
    assert not engine.reused
    assert load_engine(engine.path)[0] == engine.record


def test_from_python_it_is_the_same(engine: BuiltEngine, int8_model: ModelFolder) -> None:
    again = build(int8_model, BuildOptions(**{**_fields(RTX), "targets": ("rtx", "sm89")}))
    assert (again.reused, again.path) == (True, engine.path)


def _fields(options: BuildOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in BuildOptions.__dataclass_fields__}


def test_the_progress_is_that_of_the_builder(int8_model: ModelFolder) -> None:
    calls: list[tuple[str, int, int]] = []
    build_engine(int8_model, RTX, lambda *call: calls.append(call))
    steps = [call for call in calls if call[2]]
    assert calls[0] == ("reading the graph", 0, 0)
    assert len(steps) > 2
    assert all(0 <= done <= total for _, done, total in steps)
    assert {name for name, done, total in steps if done == total} == {name for name, _, _ in steps}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--for", "sm90"), "does not build for sm_90\nIt builds for: sm_75, sm_80, sm_86, sm_89, sm_120"),
        (("--for", "sm86,hopper"), "--for: found 'hopper', expected rtx, or compute capabilities such as sm86"),
        (("--for", ""), "--for: found ''"),
        (("--devices", "0"), "builds for cards that need not be here, not for --devices"),
        (("--tactic-sources", "CUBLAS"), "does not know the tactic sources CUBLAS\nTactic sources: EDGE_MASK"),
        (("--max-batch", "100000000"), "rejected a profile of 1 to 100000000 images, best 100000000: images: tensor"),
    ],
)
def test_what_cannot_be_built_is_a_usage_error(
    run: Run, int8_model: ModelFolder, words: tuple[str, ...], told: str
) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not list(int8_model.path.glob("engines/*"))


def test_cards_are_named_for_tensorrt_rtx_alone(int8_model: ModelFolder, program: Run) -> None:
    result = program("build", "tiny", "--for", "sm86")
    assert result.exit_code == 2
    assert "--for needs --backend tensorrt-rtx" in result.stderr


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rtx_20_computes_products_in_fp16_alone(run: Run, precision: str) -> None:
    result = run("--for", "sm75", "--precision", precision)
    assert result.exit_code == 4
    assert "for Turing (SM75): FP32 GEMM is not supported" in result.stderr
    assert "For RTX 20 (sm75), build --fp16" in result.stderr
    assert run("--for", "sm75", "--fp16").exit_code == 0


def test_another_installations_engine_is_refused_until_it_is_trusted(
    program: Run, engine: BuiltEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    with pytest.raises(ModelError, match="was built by another installation"):
        load_engine(engine.path)
    assert program("build", "--trust-engine", engine.path).exit_code == 0
    assert load_engine(engine.path)[0].key == engine.record.key


def test_a_truncated_engine_is_named_and_built_again(int8_model: ModelFolder, engine: BuiltEngine) -> None:
    plan = engine.path.read_bytes()
    engine.path.write_bytes(plan[:-1])
    with pytest.raises(ModelError, match=r"its sidecar records [\d,]+: truncated or replaced"):
        load_engine(engine.path)
    again = build_engine(int8_model, RTX)
    assert not again.reused
    assert "truncated or replaced" in again.notes[0]


def test_the_sidecar_of_another_engine_is_refused(int8_model: ModelFolder, engine: BuiltEngine) -> None:
    other = build_engine(int8_model, BuildOptions(**{**_fields(RTX), "num_views": 1}))
    os.replace(sidecar_path(other.path), sidecar_path(engine.path))
    with pytest.raises(ModelError, match="truncated or replaced"):
        load_engine(engine.path)


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_where_there_is_no_room_for_the_engine_nothing_is_left(run: Run, int8_model: ModelFolder) -> None:
    with _files_of_at_most(100_000):
        result = run()
    assert result.exit_code == 6
    assert "could not be written: File too large" in result.stderr
    assert not list(int8_model.path.glob("engines/*"))


def test_an_interrupt_ends_the_build_and_nothing_is_left(int8_model: ModelFolder) -> None:
    sent: list[str] = []

    def interrupt(phase: str, done: int, total: int) -> None:
        if done and not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(int8_model, RTX, interrupt)
    assert not list(int8_model.path.glob("engines/*"))


def test_tensorrt_does_not_take_what_is_for_tensorrt_rtx(int8_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match="does not build for no card"):
        build_engine(int8_model, BuildOptions(backend="tensorrt-rtx", targets=()))
