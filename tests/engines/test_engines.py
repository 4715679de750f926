from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_model, replace_graph, smooth_images
from patience import slow_but_for
from safetensors.numpy import load_file, save_file

from alexdeploy.core.errors import AlexDeployError, DeviceError, ModelError, StaleArtifactError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import list_recipes
from alexdeploy.engines.base import Backend, EngineOptions, Predictions, choose_backend, open_engine

BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")


def _run(folder: ModelFolder, backend: Backend, images: np.ndarray, **options: object) -> Predictions:
    with open_engine(folder, backend, EngineOptions(**options)) as engine:  # type: ignore[arg-type]
        return engine.run(images)


@pytest.mark.parametrize("recipe", slow_but_for(("alexnet", "caffenet", "torchvision"), list_recipes()))
def test_all_engines_agree_on_every_recipe(exported: Callable[..., ModelFolder], recipe: str) -> None:
    folder, images = exported(recipe), smooth_images(12)
    for num_views in (1, 5, 10):
        some = images[: 12 if num_views == 1 else 4]
        found = [_run(folder, backend, some, num_views=num_views, batch_size=12) for backend in BACKENDS]
        if num_views == 1:
            assert len(set(found[0].probabilities.argmax(axis=1))) > 1, "the images should not all have one answer"
        for other in found[1:]:
            np.testing.assert_allclose(other.probabilities, found[0].probabilities, atol=1e-4)
            np.testing.assert_array_equal(other.view_classes, found[0].view_classes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tail_batch_gives_exactly_its_own_rows(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(8)
    with open_engine(tiny_model, backend, EngineOptions(num_views=10, batch_size=8)) as engine:
        whole = engine.run(images)
        for count in (1, 3, 8):
            part = engine.run(images[:count])
            assert part.probabilities.shape == (count, 5)
            assert part.view_classes.shape == (count, 10)
            np.testing.assert_allclose(part.probabilities, whole.probabilities[:count], atol=1e-6)


@pytest.mark.parametrize("more", [0, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_number_of_threads_may_run_batches(tiny_model: ModelFolder, backend: Backend, more: int) -> None:
    batches = [smooth_images(4, seed) for seed in range(8)]
    with open_engine(tiny_model, backend, EngineOptions(num_views=5, batch_size=4)) as engine:
        expected = [engine.run(batch).probabilities for batch in batches]
        # More threads wait for a stream.
        with ThreadPoolExecutor(engine.info.num_streams + more) as threads:
            found = list(threads.map(lambda batch: engine.run(batch, low_latency=True).probabilities, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_ran_is_said(tiny_model: ModelFolder, backend: Backend) -> None:
    info = open_engine(tiny_model, backend, EngineOptions(num_views=10)).info
    assert (info.backend, info.precision, info.num_views) == (backend, "fp32", 10)
    path = tiny_model.weights_path if backend == "torch" else tiny_model.onnx_path()
    assert info.artifact == sha256_file(path)
    assert info.classes[0] == "class-0"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_fp16_gives_the_answers_of_fp32(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(8)
    whole, half = (_run(tiny_model, backend, images, precision=p, num_views=10) for p in ("fp32", "fp16"))
    assert not np.array_equal(whole.probabilities, half.probabilities)
    np.testing.assert_allclose(half.probabilities, whole.probabilities, atol=5e-3)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_bfloat16_runs_only_where_asked_for(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(8)
    exact = _run(tiny_model, "onnxruntime", images).probabilities
    try:
        rounded = _run(tiny_model, backend, images, precision="bf16").probabilities
    except DeviceError as error:
        pytest.skip(error.message)
    np.testing.assert_allclose(_run(tiny_model, backend, images).probabilities, exact, atol=1e-5)
    difference = np.abs(rounded - exact).max()
    assert 1e-5 < difference < 5e-2


def test_bfloat16_is_refused_where_it_cannot_run(tiny_model: ModelFolder) -> None:
    from alexdeploy.engines.openvino import precision_hint

    with pytest.raises(DeviceError, match="no bfloat16"):
        precision_hint(["FP32"], "bf16")
    with pytest.raises(UsageError, match="no bfloat16"):
        open_engine(tiny_model, "onnxruntime", EngineOptions(precision="bf16"))
    with pytest.raises(UsageError, match="fp16 is an ONNX graph"):
        open_engine(tiny_model, "torch", EngineOptions(precision="fp16"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_the_wrong_kind_are_refused_before_they_run(tiny_model: ModelFolder, backend: Backend) -> None:
    with open_engine(tiny_model, backend, EngineOptions(batch_size=2)) as engine:
        for wrong in (
            smooth_images(3),
            smooth_images(1).astype(np.float32),
            smooth_images(1)[:, :227],
            smooth_images(1)[0],
            smooth_images(1)[:0],
        ):
            with pytest.raises(UsageError, match=r"expected uint8 \[1\.\.2, 256, 256, 3\]"):
                engine.run(wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_engine_says_so(tiny_model: ModelFolder, backend: Backend) -> None:
    engine = open_engine(tiny_model, backend, EngineOptions())
    with pytest.raises(DeviceError, match="not open"):
        engine.run(smooth_images(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_may_lie_backwards_in_memory(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(3)
    expected = _run(tiny_model, backend, images[::-1].copy()).probabilities
    np.testing.assert_array_equal(_run(tiny_model, backend, images[::-1]).probabilities, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_need_not_be_writable(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(2)
    frozen = np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape)
    # Warnings are errors.
    np.testing.assert_array_equal(
        _run(tiny_model, backend, frozen).probabilities, _run(tiny_model, backend, images).probabilities
    )


def test_changed_weights_make_the_graph_stale(tiny_model: ModelFolder) -> None:
    content = bytearray(tiny_model.weights_path.read_bytes())
    content[-1] ^= 1
    tiny_model.weights_path.write_bytes(content)
    with pytest.raises(StaleArtifactError, match=r"was made from weights\.safetensors") as caught:
        open_engine(tiny_model, "openvino", EngineOptions())
    assert caught.value.hint == f"Renew it: alexdeploy export {tiny_model.path}"


def test_changed_preprocessing_makes_the_graph_stale(tiny_model: ModelFolder) -> None:
    spec = json.loads(tiny_model.spec_path.read_bytes())
    spec["preprocessing"]["scale"] = 0.5
    tiny_model.spec_path.write_text(json.dumps(spec))
    with pytest.raises(StaleArtifactError, match="another architecture, preprocessing or classes"):
        open_engine(tiny_model, "onnxruntime", EngineOptions())


def test_a_new_export_makes_the_old_fp16_graph_stale(tiny_model: ModelFolder) -> None:
    model = onnx.load(tiny_model.onnx_path())
    model.doc_string = "changed"
    onnx.save(model, tiny_model.onnx_path())
    with pytest.raises(StaleArtifactError, match=r"was made from model\.onnx") as caught:
        open_engine(tiny_model, "openvino", EngineOptions(precision="fp16"))
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("--fp16")


def test_changed_weights_make_the_fp16_graph_stale_though_model_onnx_is_as_it_was(tiny_model: ModelFolder) -> None:
    weights = load_file(tiny_model.weights_path)
    weights["fc8.bias"] += np.float32(1)
    save_file(weights, tiny_model.weights_path)
    with pytest.raises(StaleArtifactError, match=r"was made from weights\.safetensors") as caught:
        open_engine(tiny_model, "onnxruntime", EngineOptions(precision="fp16"))
    assert caught.value.hint == f"Renew it: alexdeploy export {tiny_model.path} --fp16"
    tiny_model.onnx_path().unlink()
    with pytest.raises(StaleArtifactError, match=r"was made from weights\.safetensors"):
        open_engine(tiny_model, "onnxruntime", EngineOptions(precision="fp16"))


def test_a_graph_that_does_not_say_which_weights_it_comes_from_is_stale_beside_any(tiny_model: ModelFolder) -> None:
    path = tiny_model.onnx_path("fp16")
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != "alexdeploy.weights_sha256"]
    assert len(kept) == len(model.metadata_props) - 1
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    replace_graph(tiny_model, "fp16", model)
    with pytest.raises(StaleArtifactError, match=r"weights\.safetensors \(unknown\)"):
        open_engine(tiny_model, "onnxruntime", EngineOptions(precision="fp16"))
    tiny_model.weights_path.unlink()
    assert open_engine(tiny_model, "onnxruntime", EngineOptions(precision="fp16")).info.precision == "fp16"


def test_an_fp16_graph_alone_is_enough_to_predict(tiny_model: ModelFolder) -> None:
    expected = _run(tiny_model, "onnxruntime", smooth_images(2), precision="fp16").probabilities
    tiny_model.weights_path.unlink()
    tiny_model.onnx_path().unlink()
    found = _run(tiny_model, "onnxruntime", smooth_images(2), precision="fp16").probabilities
    np.testing.assert_array_equal(found, expected)


def test_a_graph_alone_is_enough_to_predict(tiny_model: ModelFolder) -> None:
    expected = _run(tiny_model, "openvino", smooth_images(2)).probabilities
    tiny_model.weights_path.unlink()
    tiny_model.onnx_path("fp16").unlink()
    np.testing.assert_array_equal(_run(tiny_model, "openvino", smooth_images(2)).probabilities, expected)


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_truncated_graph_is_a_model_error(tiny_model: ModelFolder, backend: Backend, size: int) -> None:
    content = tiny_model.onnx_path().read_bytes()
    tiny_model.onnx_path().write_bytes(content[:size])
    with pytest.raises(ModelError):
        open_engine(tiny_model, backend, EngineOptions())


def test_external_data_is_refused(tiny_model: ModelFolder) -> None:
    model = onnx.load(tiny_model.onnx_path())
    path = tiny_model.onnx_path()
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, location="outside.bin")
    with pytest.raises(ModelError, match="external file"):
        open_engine(tiny_model, "onnxruntime", EngineOptions())


def test_without_a_graph_the_weights_are_run_by_pytorch(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "fresh")
    assert choose_backend(folder, "fp32") == choose_backend(folder, "bf16") == "torch"
    with pytest.raises(ModelError, match=r"has no model\.onnx") as caught:
        open_engine(folder, "openvino", EngineOptions())
    assert caught.value.hint == f"Make it: alexdeploy export {folder.path}"


def test_without_an_fp16_graph_the_command_that_makes_it_is_named(tiny_model: ModelFolder) -> None:
    tiny_model.onnx_path("fp16").unlink()
    with pytest.raises(ModelError, match=r"has no model\.fp16\.onnx") as caught:
        open_engine(tiny_model, choose_backend(tiny_model, "fp16"), EngineOptions(precision="fp16"))
    assert caught.value.hint == f"Make it: alexdeploy export {tiny_model.path} --fp16"


def test_without_graph_and_weights_the_missing_graph_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "bare")
    folder.weights_path.unlink()
    with pytest.raises(ModelError, match=r"has no model\.onnx"):
        open_engine(folder, choose_backend(folder, "fp32"), EngineOptions())


def _hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_a_graph_goes_to_the_first_backend_that_is_installed(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_backend(tiny_model, "fp32") == choose_backend(tiny_model, "fp16") == "openvino"
    _hide(monkeypatch, "openvino")
    assert choose_backend(tiny_model, "fp32") == choose_backend(tiny_model, "fp16") == "onnxruntime"


def test_pytorch_alone_runs_the_weights_though_there_is_a_graph(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hide(monkeypatch, "openvino", "onnxruntime")
    assert choose_backend(tiny_model, "fp32") == choose_backend(tiny_model, "bf16") == "torch"
    with pytest.raises(UsageError, match="no backend that can run this model") as caught:
        choose_backend(tiny_model, "fp16")
    assert caught.value.hint == "Install one: pip install 'alexdeploy[cpu]'"
    tiny_model.weights_path.unlink()
    with pytest.raises(UsageError, match="no backend that can run this model"):
        choose_backend(tiny_model, "fp32")


def test_bfloat16_without_openvino_is_left_to_pytorch(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "openvino")
    assert choose_backend(tiny_model, "bf16") == "torch"
    tiny_model.weights_path.unlink()
    with pytest.raises(UsageError, match="no bfloat16"):
        open_engine(tiny_model, choose_backend(tiny_model, "bf16"), EngineOptions(precision="bf16"))


def test_an_unknown_backend_is_a_usage_error(tiny_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match="unknown backend 'tensorflow'"):
        open_engine(tiny_model, "tensorflow", EngineOptions())  # type: ignore[arg-type]


def test_the_errors_carry_their_exit_codes() -> None:
    codes = {error.__name__: error.exit_code for error in (UsageError, ModelError, DeviceError, AlexDeployError)}
    assert codes == {"UsageError": 2, "ModelError": 4, "DeviceError": 5, "AlexDeployError": 1}


def test_predicting_imports_no_torch(tiny_model: ModelFolder) -> None:
    program = (
        "import sys, pathlib, numpy\n"
        "sys.modules['torch'] = None\n"
        "from alexdeploy.core.model_folder import ModelFolder\n"
        "from alexdeploy.engines.base import EngineOptions, choose_backend, open_engine\n"
        f"folder = ModelFolder(pathlib.Path({str(tiny_model.path)!r}))\n"
        "for backend in ('openvino', 'onnxruntime'):\n"
        "    with open_engine(folder, backend, EngineOptions(num_views=10)) as engine:\n"
        "        print(engine.run(numpy.zeros((2, 256, 256, 3), numpy.uint8)).probabilities.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 5)\n(2, 5)\n", done.stderr


def test_weights_that_are_not_there_cannot_be_run_by_pytorch(tiny_model: ModelFolder) -> None:
    tiny_model.weights_path.unlink()
    with pytest.raises(ModelError, match="has no PyTorch weights") as caught:
        _run(tiny_model, "torch", smooth_images(1))
    assert "--backend openvino or onnxruntime" in str(caught.value.hint)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_fork_does_not_close_the_engine_of_its_parent(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(1)
    with open_engine(tiny_model, backend, EngineOptions()) as engine:
        before = engine.run(images)
        child = os.fork()
        if child == 0:
            engine.__exit__(None, None, None)
            try:
                engine.run(images)
            except UsageError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        np.testing.assert_array_equal(engine.run(images).probabilities, before.probabilities)
