"""A model repository for Triton: read by Triton's own schema, and its Python models run in processes of their own."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import openvino
import PIL
import pytest
from google.protobuf import text_format
from helpers import smooth_images
from made_engines import make_engine
from PIL import Image
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import CONTRACT_KEY
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.engines.trt.files import sidecar_path
from alexdeploy.graphs.freshness import load_metadata
from alexdeploy.images.decode import decode
from alexdeploy.serving.triton import repository, verify
from alexdeploy.serving.triton.beside import Record, check_beside
from alexdeploy.serving.triton.config import Settings, graph_config
from alexdeploy.serving.triton.repository import TritonOptions, TritonRepository, write_triton_repository
from alexdeploy.serving.triton.source import PACKAGE, model_files

SERVER = Path(__file__).parent / "triton_server"
PYTHON = TritonOptions(backend="python", batch_size=4, num_instances=2)


@pytest.fixture(scope="module")
def model(_exported: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A tiny model, in FP32 and FP16."""
    folder = ModelFolder(tmp_path_factory.mktemp("triton") / "tiny")
    shutil.copytree(_exported.path, folder.path)
    return folder


@pytest.fixture(scope="module")
def written(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One version, of Triton's Python backend: to read, not to change."""
    path = tmp_path_factory.mktemp("repositories") / "repository"
    write_triton_repository(model, path, PYTHON)
    return path


def config_of(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def execute(version: Path, name: str, requests: list[np.ndarray], folder: Path) -> tuple[list[Any], dict[str, str]]:
    """The responses of a Python model, and the modules of its process with their files."""
    asked, answered = folder / "requests", folder / "answers"
    asked.write_bytes(pickle.dumps(requests))
    subprocess.run([sys.executable, "-I", SERVER / "execute.py", version, name, asked, answered], check=True)
    found = pickle.loads(answered.read_bytes())
    return found["responses"], found["modules"]


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def test_the_three_models_are_there_with_nothing_beside_them(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["tiny", "tiny_decode", "tiny_graph"]
    assert [path.name for path in written.parent.iterdir()] == ["repository"]
    assert (written / "tiny_graph" / "labels.txt").read_text() == "".join(f"class-{i}\n" for i in range(5))
    # Triton runs as another user in its container.
    mask = os.umask(0)
    os.umask(mask)
    for path in (written, *written.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask


def test_the_ensemble_decodes_and_then_runs_the_graph(written: Path) -> None:
    config = config_of(written / "tiny")
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "ensemble", 4)
    assert list(config.version_policy.specific.versions) == [1]
    steps = [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step]
    assert steps == [("tiny_decode", 1), ("tiny_graph", 1)]
    assert (config.input[0].data_type, list(config.input[0].dims)) == (DataType.TYPE_STRING, [1])
    decoder, graph = (config_of(written / name) for name, _ in steps)
    # What one step gives is what the next takes.
    assert (decoder.output[0].data_type, decoder.output[0].dims) == (graph.input[0].data_type, graph.input[0].dims)
    assert config.output == graph.output
    assert config.output[0].label_filename == "labels.txt"


def test_the_configuration_says_what_was_asked_for(model: ModelFolder, tmp_path: Path) -> None:
    options = TritonOptions(gpu_ids=(0, 2), num_instances=3, max_delay_us=500, max_queue=7, num_views=10, batch_size=16)
    write_triton_repository(model, tmp_path / "r", options)
    config = config_of(tmp_path / "r" / "tiny_graph")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("onnxruntime", "model.onnx", 16)
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (ModelInstanceGroup.KIND_GPU, 3, [0, 2])
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 500
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.timeout_action) == (7, ModelQueuePolicy.REJECT)
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 16]
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    own = onnx.load(tmp_path / "r" / "tiny_graph" / "1" / "model.onnx").graph
    listed = {each.name: [0, *each.dims] for each in (*config.input, *config.output)}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*own.input, *own.output)}
    assert listed == shapes == {"images": [0, 256, 256, 3], "probabilities": [0, 5], "view_classes": [0, 10]}


def test_without_jpeg_there_are_pixels_only(model: ModelFolder, tmp_path: Path) -> None:
    found = write_triton_repository(model, tmp_path / "r", TritonOptions(jpeg=False))
    assert found.models == ("tiny_graph",)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["tiny_graph"]
    (group,) = config_of(tmp_path / "r" / "tiny_graph").instance_group
    assert group.kind == ModelInstanceGroup.KIND_CPU


def test_python_models_answer_as_predict_does_without_the_package(
    written: Path, model: ModelFolder, tmp_path: Path
) -> None:
    images = smooth_images(6)
    wide = np.concatenate([images[3], images[4]], axis=1)
    files = [encoded(images[0], "JPEG"), encoded(images[1], "PNG"), encoded(wide, "JPEG"), encoded(images[5], "WEBP")]
    broken = encoded(images[2], "JPEG")[:2000]
    asked = [files[:2], [files[2], broken], files[3:]]
    requests = [np.array([[file] for file in each], object) for each in asked]
    (first, second, third), modules = execute(written / "tiny_decode" / "1", "files", requests, tmp_path)
    pixels = [first["images"], third["images"]]
    resize = model.spec().preprocessing.resize
    expected = np.stack([decode(file, resize) for file in (files[0], files[1], files[3])])
    np.testing.assert_array_equal(np.concatenate(pixels), expected)
    # The broken file fails alone, with the number of the image.
    assert second[0].startswith("image 1 of the request: damaged JPEG image")
    assert second[1] == 3
    own = {name: file for name, file in modules.items() if name.partition(".")[0] == "alexdeploy"}
    assert own.keys() >= {"alexdeploy.images.decode", "alexdeploy.core.errors"}
    assert all(Path(file).is_relative_to(written) for file in own.values())
    assert not modules.keys() & {"msgspec", "onnx", "onnxruntime", "google.protobuf"}

    answers, modules = execute(written / "tiny_graph" / "1", "images", pixels, tmp_path)
    # As many images at once on as many threads: ONNX Runtime's last bits depend on both.
    options = EngineOptions(batch_size=4, num_threads=max(1, available_processors() // 2))
    with open_engine(model, "onnxruntime", options) as engine:
        predictions = engine.run(expected)
    for name, array in (("probabilities", predictions.probabilities), ("view_classes", predictions.view_classes)):
        assert [len(each[name]) for each in answers] == [2, 1]
        np.testing.assert_array_equal(np.concatenate([each[name] for each in answers]), array)
    assert not modules.keys() & {"msgspec", "onnx", "PIL"}


def test_what_is_copied_is_what_is_imported() -> None:
    files = model_files("decode_model")
    assert files["alexdeploy/images/decode.py"] == (PACKAGE / "images" / "decode.py").read_bytes()
    assert not [name for name in files if "spec" in name or "graphs" in name]
    # An import that only a type checker follows is none.
    assert "alexdeploy/graphs/files.py" not in model_files("network_model")


def test_another_pillow_is_told(written: Path, tmp_path: Path) -> None:
    copied = tmp_path / "tiny_decode" / "1"
    shutil.copytree(written / "tiny_decode" / "1", copied)
    record = json.loads((copied / "alexdeploy.json").read_text())
    (copied / "alexdeploy.json").write_text(json.dumps({**record, "pillow": "9.5.0"}))
    asked = tmp_path / "requests"
    asked.write_bytes(pickle.dumps([]))
    words = [sys.executable, "-I", SERVER / "execute.py", copied, "files", asked, tmp_path / "answers"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "the model was written with 9.5.0" in done.stdout


def test_a_second_version_comes_beside_and_the_ensemble_switches_to_it(model: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r"
    write_triton_repository(model, path, TritonOptions(version=3))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    write_triton_repository(model, path, TritonOptions(version=4, precision="fp16"))
    assert list(config_of(path / "tiny").version_policy.specific.versions) == [4]
    assert {step.model_version for step in config_of(path / "tiny").ensemble_scheduling.step} == {4}
    changed = {file.relative_to(path).as_posix() for file in before if file.read_bytes() != before[file]}
    assert changed == {"tiny/config.pbtxt"}
    first, second = (json.loads((path / f"tiny_graph/{v}/alexdeploy.json").read_text()) for v in (3, 4))
    assert (first["precision"], second["precision"]) == ("fp32", "fp16")
    assert second["artifact"] == load_metadata(model, "fp16", model.spec()).sha256
    # An older number does not become the one that answers.
    notes = write_triton_repository(model, path, TritonOptions(version=1)).notes
    assert notes[-1].startswith("tiny does not switch to version 1, because 4 is newer")
    assert list(config_of(path / "tiny").version_policy.specific.versions) == [4]
    assert sorted(each.name for each in (path / "tiny_decode").iterdir()) == ["1", "3", "4", "config.pbtxt"]
    assert [each.name for each in path.parent.iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (TritonOptions(), "has version 1 already"),
        (TritonOptions(version=2, num_views=10), "written with --views 1, now --views 10:"),
        (TritonOptions(version=2, jpeg=False), "written without --no-jpeg, now with it:"),
        (TritonOptions(version=2, gpu_ids=(0, 2)), "written without --gpus, now with --gpus 0,2:"),
        (
            TritonOptions(version=2, backend="openvino", max_queue=3),
            "with --backend onnxruntime, now --backend openvino; with --max-queue 64, now --max-queue 3:",
        ),
    ],
)
def test_a_version_that_cannot_come_beside_is_refused(
    model: ModelFolder, tmp_path: Path, options: TritonOptions, told: str
) -> None:
    write_triton_repository(model, tmp_path / "r", TritonOptions())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as raised:
        write_triton_repository(model, tmp_path / "r", options)
    assert told in raised.value.text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("removed", "version", "told"),
    [
        ("tiny_graph/3", 3, "tiny_decode has version 3 already\nWrite it beside: --version 6\nor remove"),
        ("tiny", 6, "tiny has no config.pbtxt, and the model needs each of"),
        ("tiny_decode/config.pbtxt", 6, "tiny_decode has no config.pbtxt"),
        ("tiny_graph", 6, "tiny_decode is there already, and tiny_graph has no version"),
    ],
)
def test_nothing_is_added_to_a_model_with_parts_removed(
    model: ModelFolder, tmp_path: Path, removed: str, version: int, told: str
) -> None:
    path = tmp_path / "r"
    write_triton_repository(model, path, TritonOptions(version=3))
    write_triton_repository(model, path, TritonOptions(version=5))
    gone = path / removed
    gone.unlink() if gone.is_file() else shutil.rmtree(gone)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as raised:
        write_triton_repository(model, path, TritonOptions(version=version))
    assert told in raised.value.text
    # All three, so that one command mends it.
    assert all(str(path / name) in raised.value.text for name in ("tiny_graph", "tiny_decode", "tiny"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("field", "option", "most"),
    [
        ("version", "--version", 2**63 - 1),
        ("batch_size", "--batch-size", 2**31 - 1),
        ("num_instances", "--instances", 2**31 - 1),
        ("max_delay_us", "--max-delay-us", 2**64 - 1),
        ("max_queue", "--max-queue", 2**32 - 1),
    ],
)
def test_a_number_that_triton_cannot_take_is_refused_by_its_option(
    model: ModelFolder, tmp_path: Path, field: str, option: str, most: int
) -> None:
    # Triton's schema takes the largest of them.
    options = dataclasses.replace(TritonOptions(), **{field: most})
    assert write_triton_repository(model, tmp_path / "r", options).is_verified
    with pytest.raises(UsageError) as raised:
        dataclasses.replace(options, **{field: most + 1})
    assert raised.value.text == f"{option} {most + 1}: Triton takes at most {most}"


def test_the_largest_number_of_a_gpu_is_the_limit_of_gpus() -> None:
    assert TritonOptions(gpu_ids=(0, 2**31 - 1)).gpu_ids == (0, 2**31 - 1)
    with pytest.raises(UsageError, match="2147483648: Triton takes at most 2147483647"):
        TritonOptions(gpu_ids=(0, 2**31))


def test_each_setting_is_compared(written: Path) -> None:
    path = written / "tiny_graph" / "1" / "alexdeploy.json"
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    others: dict[str, Any] = {
        "backend": "onnxruntime",
        "num_classes": 6,
        "num_views": 5,
        "batch_size": 5,
        "num_instances": 3,
        "gpu_ids": (1,),
        "max_delay_us": 1,
        "max_queue": 1,
        "jpeg": False,
        "plans": (("9.0", "model.sm90.plan"),),
    }
    check_beside(written, dataclasses.replace(record, version=2), [1])
    # The name is that of the folder.
    for field in dataclasses.fields(Settings)[1:]:
        settings = dataclasses.replace(record.settings, **{field.name: others[field.name]})
        with pytest.raises(UsageError, match="the configuration is for all versions"):
            check_beside(written, dataclasses.replace(record, version=2, settings=settings), [1])


def _rename_class(folder: ModelFolder, name: str) -> None:
    """Leave the FP16 graph only, for a model whose first class has another name."""
    for path in (folder.onnx_path(), folder.sum_path(), folder.weights_path, folder.sum_path("fp16")):
        path.unlink()
    graph, spec = onnx.load(folder.onnx_path("fp16")), folder.spec()
    renamed = dataclasses.replace(spec, classes=(name, *spec.classes[1:]))
    folder.write_spec(renamed)
    (entry,) = (entry for entry in graph.metadata_props if entry.key == CONTRACT_KEY)
    entry.value = renamed.contract_sha256
    onnx.save(graph, folder.onnx_path("fp16"))


def test_other_classes_are_another_model(tiny_model: ModelFolder, tmp_path: Path) -> None:
    write_triton_repository(tiny_model, tmp_path / "r", TritonOptions(jpeg=False))
    _rename_class(tiny_model, "other")
    with pytest.raises(UsageError, match="5 classes, now other ones"):
        write_triton_repository(tiny_model, tmp_path / "r", TritonOptions(jpeg=False, version=2, precision="fp16"))


def test_what_is_not_of_this_program_is_left_alone(model: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "r" / "tiny").mkdir(parents=True)
    with pytest.raises(UsageError, match="is there already, and tiny_graph has no version"):
        write_triton_repository(model, tmp_path / "r", TritonOptions())
    (tmp_path / "s" / "tiny_graph" / "7").mkdir(parents=True)
    with pytest.raises(UsageError, match="was not written by this program"):
        write_triton_repository(model, tmp_path / "s", TritonOptions())
    # Models of others stay.
    (tmp_path / "t" / "theirs").mkdir(parents=True)
    write_triton_repository(model, tmp_path / "t", TritonOptions())
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"theirs", "tiny", "tiny_decode", "tiny_graph"}


def test_the_working_folder_and_a_link_may_be_the_repository(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "r")
    monkeypatch.chdir(tmp_path / "r")
    write_triton_repository(model, ".", TritonOptions())
    write_triton_repository(model, tmp_path / "elsewhere" / "link", TritonOptions(version=2))
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["tiny", "tiny_decode", "tiny_graph"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "r"]


@pytest.mark.parametrize("name", ["sp ace", "a$(touch injected)b", "blü", "a:b", "-x", "x\n"], ids=ascii)
def test_a_name_that_triton_cannot_load_is_refused(model: ModelFolder, tmp_path: Path, name: str) -> None:
    named = tmp_path / name
    named.symlink_to(model.path)
    # A link has the name of what it points to.
    assert write_triton_repository(named, tmp_path / "r", TritonOptions(jpeg=False)).models == ("tiny_graph",)
    named.unlink()
    shutil.copytree(model.path, named)
    with pytest.raises(UsageError, match=r"Triton cannot load a model called .*\nRename the model folder"):
        write_triton_repository(named, tmp_path / "s", TritonOptions())
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("directory", "told"), [("", "DIR is empty"), (".", "is in the model"), ("in/it", "is in the")]
)
def test_the_model_folder_is_no_repository(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch, directory: str, told: str
) -> None:
    monkeypatch.chdir(model.path)
    before = sorted(model.path.rglob("*"))
    with pytest.raises(UsageError, match=told):
        write_triton_repository(model.path, directory, TritonOptions())
    assert sorted(model.path.rglob("*")) == before


def test_a_path_that_the_python_backend_cannot_load_from_is_told(model: ModelFolder, tmp_path: Path) -> None:
    told = "passes paths to a shell"
    assert told in write_triton_repository(model, tmp_path / "sp ace" / "r", TritonOptions()).notes[-1]
    assert not write_triton_repository(model, tmp_path / "sp ace" / "s", TritonOptions(jpeg=False)).notes
    assert not [note for note in write_triton_repository(model, tmp_path / "t", TritonOptions()).notes if told in note]


@pytest.mark.parametrize("name", ["two\nlines", "end\n", "\u2028"])
def test_a_class_with_a_line_break_cannot_be_a_label(tiny_model: ModelFolder, tmp_path: Path, name: str) -> None:
    _rename_class(tiny_model, name)
    with pytest.raises(ModelError, match="has a line break"):
        write_triton_repository(tiny_model, tmp_path / "r", TritonOptions(precision="fp16"))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("word", "instead", "told"),
    [
        ("max_batch_size", "max_batch_sise", "not one of Triton.*max_batch_sise"),
        ("dims: [5]", "dims: [6]", r"\[6\].*the graph has.*\[5\]"),
        ("TYPE_UINT8\n  dims", "TYPE_FP32\n  dims", "TYPE_FP32.*the graph has.*TYPE_UINT8"),
        ("tiny_graph", "tiny", "config.pbtxt of tiny_graph is of 'tiny'"),
    ],
)
def test_nothing_appears_if_a_configuration_is_wrong(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, instead: str, told: str
) -> None:
    monkeypatch.setattr(repository, "graph_config", lambda settings: graph_config(settings).replace(word, instead))
    with pytest.raises(ModelError, match=f"(?s){told}"):
        write_triton_repository(model, tmp_path / "r", TritonOptions())
    assert list(tmp_path.iterdir()) == []


def test_without_tritonclient_it_is_written_and_said_to_be_unverified(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_triton_repository(model, tmp_path / "r", TritonOptions()).is_verified
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    assert not write_triton_repository(model, tmp_path / "r", TritonOptions(version=2)).is_verified


def _engine(model: ModelFolder, plan: bytes, **changes: object) -> Path:
    facts, spec = load_metadata(model, "fp16", model.spec()), model.spec()
    made_for = {"graph_sha256": facts.sha256, "weights_sha256": facts.network_sha256}
    return make_engine(model, plan, **{**made_for, "contract_sha256": spec.contract_sha256, **changes})


def test_the_engine_of_each_gpu_is_a_plan_under_its_compute_capability(tiny_model: ModelFolder, tmp_path: Path) -> None:
    options = TritonOptions(backend="tensorrt", precision="fp16", num_views=10, batch_size=16)
    with pytest.raises(ModelError, match="no engine that fits: fp16, num_views=10, batches of 16"):
        write_triton_repository(tiny_model, tmp_path / "r", options)
    _engine(tiny_model, b"hopper", compute_capabilities=((9, 0),))
    ada = _engine(tiny_model, b"ada", compute_capabilities=((8, 9),))
    _engine(tiny_model, b"for less", compute_capabilities=((8, 0),), profile=(1, 8, 8))
    _engine(tiny_model, b"of another library", backend="tensorrt-rtx", compute_capabilities=((8, 6), (12, 0)))
    _engine(tiny_model, b"stale", compute_capabilities=((7, 5),), graph_sha256="0" * 64)
    found = write_triton_repository(tiny_model, tmp_path / "r", options)
    assert found.notes[0] == "the engines are of TensorRT 10.16.1.11; the one in Triton must be the same"
    config = config_of(tmp_path / "r" / "tiny_graph")
    assert config.platform == "tensorrt_plan"
    assert dict(config.cc_model_filenames) == {"8.9": "model.sm89.plan", "9.0": "model.sm90.plan"}
    assert [(group.kind, list(group.gpus)) for group in config.instance_group] == [(ModelInstanceGroup.KIND_GPU, [])]
    version = tmp_path / "r" / "tiny_graph" / "1"
    assert {path.name: path.read_bytes() for path in version.glob("*.plan")} == {
        "model.sm89.plan": b"ada",
        "model.sm90.plan": b"hopper",
    }
    # An engine is code: one that this installation did not sign goes nowhere.
    record = json.loads(sidecar_path(ada).read_text())
    sidecar_path(ada).write_text(json.dumps({**record, "signed_by": "somebody"}))
    with pytest.raises(ModelError, match="built by another installation"):
        write_triton_repository(tiny_model, tmp_path / "s", options)


def test_openvino_opens_the_graph_as_its_backend_in_triton_does(model: ModelFolder, tmp_path: Path) -> None:
    write_triton_repository(model, tmp_path / "r", TritonOptions(backend="openvino", batch_size=4))
    config = config_of(tmp_path / "r" / "tiny_graph")
    assert (config.backend, config.parameters["ENABLE_BATCH_PADDING"].string_value) == ("openvino", "YES")
    core = openvino.Core()
    graph = core.read_model(tmp_path / "r" / "tiny_graph" / "1" / config.default_model_filename)
    # The backend sets types and layouts from the configuration, and then the batch.
    steps = openvino.preprocess.PrePostProcessor(graph)
    steps.input("images").tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("N..."))
    graph = steps.build()
    openvino.set_batch(graph, config.max_batch_size)
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = smooth_images(4)
    with open_engine(model, "onnxruntime", EngineOptions(batch_size=4)) as engine:
        expected = engine.run(images).probabilities
    np.testing.assert_allclose(compiled(images)["probabilities"], expected, atol=1e-5)


def test_what_it_returns_names_what_was_written(model: ModelFolder, tmp_path: Path) -> None:
    found = write_triton_repository(model, tmp_path / "r", TritonOptions())
    assert found == TritonRepository(
        path=tmp_path / "r",
        models=("tiny_graph", "tiny_decode", "tiny"),
        version=1,
        artifact=load_metadata(model, "fp32", model.spec()).sha256,
        is_verified=True,
        notes=(
            f"tiny_decode needs in Triton's Python: numpy, pillow=={PIL.__version__} (tiny_decode/1/requirements.txt)",
        ),
    )


def test_there_are_no_bf16_graphs() -> None:
    with pytest.raises(UsageError, match="there are no BF16 graphs"):
        TritonOptions(precision="bf16")
