"""The parts of `python -m benchmarks` on tiny things: sides in processes of their own, scripts of others, the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import write_pictures

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing as SpecPreprocessing
from alexdeploy.engines.base import NumViews
from alexdeploy.graphs.ranges import read_ranges
from alexdeploy.images.decode import decode
from alexdeploy.images.preprocess import network_input
from alexdeploy.inference.predictor import Predictor
from benchmarks.nncf_graph import write_calibration
from benchmarks.peer_images import Preprocessing, preprocessing, std_word
from benchmarks.process import ROOT, Process
from benchmarks.startup import LEAN_SCRIPT, SCRIPT, StartupOptions, cpu_precisions, measure_startup
from benchmarks.subjects import Ask, Setup


def silent(text: str) -> None:
    """Nothing is said."""


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return sorted(map(str, write_pictures(tmp_path / "pictures", 4).iterdir()))


def ours(model: ModelFolder, files: list[str], num_views: NumViews = 10) -> list[tuple[int, float]]:
    with Predictor(model.path, num_views=num_views) as predictor:
        return [(row.top[0].index, row.top[0].probability) for row in predictor.predict(files)]


def test_a_side_gives_the_answers_of_each_file_and_the_rate(tiny_model: ModelFolder, pictures: list[str]) -> None:
    with Process(Setup(side="ours", model=str(tiny_model.path))) as process:
        reply = process.ask(Ask(files=tuple(pictures), repeats=2, with_answers=True))
    assert process.opened.open_seconds > 0
    assert reply.images_per_second > 0
    assert reply.answers == ours(tiny_model, pictures) * 2


@pytest.mark.parametrize("side", ["engine", "decode", "full decode"])
def test_what_only_has_a_rate_has_no_answers(side: str, tiny_model: ModelFolder, pictures: list[str]) -> None:
    with Process(Setup(side=side, model=str(tiny_model.path), batch_size=2)) as process:
        reply = process.ask(Ask(files=tuple(pictures), seconds=0.1))
    assert reply.images_per_second > 0
    assert not reply.answers


def steps_of(model: ModelFolder, num_views: int) -> Preprocessing:
    return preprocessing(str(model.mean_path), std_word(model.spec().preprocessing.std), num_views)


def classify_in_openvino(model: ModelFolder, files: list[str], num_views: int, folder: Path) -> list[tuple[int, float]]:
    pytest.importorskip("openvino")
    # Without its telemetry, here too: the script itself imports OpenVINO as everybody does.
    import alexdeploy.engines.openvino_library  # noqa: F401
    from benchmarks import peer_openvino

    network = peer_openvino.compile_network(str(model.onnx_path()), str(folder / "cache"))
    return list(peer_openvino.classify(network, steps_of(model, num_views), files))


def classify_in_tuned_openvino(
    model: ModelFolder, files: list[str], num_views: int, folder: Path
) -> list[tuple[int, float]]:
    pytest.importorskip("openvino")
    import alexdeploy.engines.openvino_library  # noqa: F401
    from benchmarks import peer_openvino_tuned

    graph = str(model.onnx_path())
    # Three of four files, then one and two rows of nothing.
    network = peer_openvino_tuned.compile_network(graph, "fp32", "a stream for each thread", 3 * num_views)
    return list(peer_openvino_tuned.classify(network, steps_of(model, num_views), files, 3))


def classify_in_onnxruntime(
    model: ModelFolder, files: list[str], num_views: int, folder: Path
) -> list[tuple[int, float]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    from benchmarks import peer_onnxruntime

    session = onnxruntime.InferenceSession(model.onnx_path())
    return list(peer_onnxruntime.classify(session, steps_of(model, num_views), files, batch_size=3))


def classify_in_pytorch(model: ModelFolder, files: list[str], num_views: int, folder: Path) -> list[tuple[int, float]]:
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    from benchmarks import peer_pytorch

    network = peer_pytorch.alexnet(load_file(model.weights_path))
    return list(peer_pytorch.classify(network, steps_of(model, num_views), files, batch_size=3))


@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize(
    "classify", [classify_in_openvino, classify_in_tuned_openvino, classify_in_onnxruntime, classify_in_pytorch]
)
def test_the_scripts_of_others_give_our_answers_on_the_same_pixels(
    classify: Callable[..., list[tuple[int, float]]],
    num_views: NumViews,
    tiny_model: ModelFolder,
    pictures: list[str],
    tmp_path: Path,
) -> None:
    found, expected = classify(tiny_model, pictures, num_views, tmp_path), ours(tiny_model, pictures, num_views)
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected], rel=1e-4)


@pytest.mark.parametrize("num_views", [1, 10])
def test_peers_preprocess_as_the_deployment_graph(num_views: int, pictures: list[str]) -> None:
    mean = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    theirs = Preprocessing(mean=mean, std=np.array([61.5, 64, 70], np.float32).reshape(3, 1, 1), num_views=num_views)
    steps = SpecPreprocessing(mean_image="any", std=(61.5, 64.0, 70.0), crop=227)
    for path in pictures:
        expected = network_input(decode(Path(path).read_bytes()), steps, num_views, mean)
        np.testing.assert_array_equal(theirs(path), expected)


def test_nncf_is_calibrated_on_the_images_of_ours(int8_model: ModelFolder) -> None:
    found = np.load(write_calibration(int8_model, "pictures", Path("images.npy")))
    spec, names = int8_model.spec(), [image.name for image in read_ranges(int8_model.ranges_path).images]
    assert found.shape == (40, 3, 227, 227)
    mean = int8_model.mean_image(spec)
    expected = [network_input(decode(Path(name).read_bytes()), spec.preprocessing, 1, mean).sum() for name in names]
    assert sorted(image.sum() for image in found) == pytest.approx(sorted(expected), rel=1e-4)


@pytest.mark.slow
def test_a_start_is_measured_in_each_precision_that_the_folder_has(
    tiny_model: ModelFolder, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.startup._NUM_WARM", 1)
    assert cpu_precisions(tiny_model, has_bfloat16=False) == ("fp32", "fp16")
    assert cpu_precisions(tiny_model, has_bfloat16=True) == ("fp32", "fp16", "bf16")
    options = StartupOptions(photograph=pictures[0], precisions=("fp32",), num_rounds=1)
    found = measure_startup(tiny_model, tmp_path, options, silent)
    names = (SCRIPT, LEAN_SCRIPT, "alexdeploy fp32")
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == dict.fromkeys(names, 1)
    assert found["same_answers"] == dict.fromkeys(names, True)
    assert found["answers"]["alexdeploy fp32"] == ours(tiny_model, pictures[:1])[0]
    assert found["answers"][SCRIPT][1] == pytest.approx(found["answers"]["alexdeploy fp32"][1], abs=1e-4)


def test_a_part_without_its_option_is_left_out_with_a_word() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--parts", "loader"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "loader is left out: there is no --train-images" in run.stderr
