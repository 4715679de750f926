"""`alexdeploy import` as a user has it; what it makes of graphs is tested in tests/importing/test_onnx.py."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import caffe_files as files
import matlab_files
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from program import Result, Run

from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import find_model
from alexdeploy.core.spec import Preprocessing
from alexdeploy.importing import published_files
from alexdeploy.importing.published_files import KnownFile

CLASSES = 4
MEASURED = ("--recipe", "torchvision")


@pytest.fixture
def run(program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy import` in this process, in an empty folder that holds theirs.onnx."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.onnx").write_bytes(classifier().SerializeToString())
    return lambda *args, command="import": program(command, *args)


def classifier(size: int = 32) -> onnx.ModelProto:
    """One convolution over the whole picture, a fixed batch, and a softmax."""
    w = np.random.default_rng(0).normal(0, 0.01, (CLASSES, 3, size, size)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["data", "w"], ["conv"]),
        helper.make_node("Reshape", ["conv", "shape"], ["fc"]),
        helper.make_node("Softmax", ["fc"], ["prob"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array([1, CLASSES]), "shape")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_folder_is_made_and_what_comes_next_is_said(run: Run) -> None:
    Path("labels.txt").write_text("cat\ndog\ncrane\ncrane\n", encoding="utf-8")
    result = run("theirs.onnx", *MEASURED, "--labels", "labels.txt")
    assert result == Result(
        exit_code=0,
        stdout="",
        stderr="wrote models/theirs: 4 classes, views of 32 pixels\nnext: alexdeploy verify models/theirs\n",
    )
    spec = find_model("theirs").spec()
    assert spec.classes == ("cat", "dog", "crane", "crane")
    assert spec.recipe == "torchvision"
    assert spec.preprocessing == Preprocessing(
        scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=32
    )


def test_labels_may_be_written_out(run: Run) -> None:
    assert run("theirs.onnx", *MEASURED, "--labels", "cat, dog,crane,crane").exit_code == 0
    assert find_model("theirs").spec().classes == ("cat", "dog", "crane", "crane")
    many = ",".join(f"a class with a long name {index}" for index in range(1000))
    assert "has 4 classes; found 1000 labels" in run("theirs.onnx", *MEASURED, "--labels", many, "--name", "b").stderr
    Path("a,b").write_text("eins\nzwei\ndrei\nvier\n")
    assert run("theirs.onnx", *MEASURED, "--labels", "a,b", "--name", "c").exit_code == 0
    assert find_model("c").spec().classes[0] == "eins"


def test_the_output_that_is_taken_is_said_and_can_be_chosen(run: Run) -> None:
    model = classifier()
    model.graph.output.insert(0, helper.make_tensor_value_info("conv", TensorProto.FLOAT, [1, CLASSES, 1, 1]))
    Path("two.onnx").write_bytes(model.SerializeToString())
    result = run("two.onnx", *MEASURED)
    assert result.exit_code == 0
    assert "warning: class scores are taken from output prob [1, 4]; other outputs: conv [1, 4, 1, 1]" in result.stderr
    assert "(choose with --output-name)" in result.stderr
    chosen = run("two.onnx", *MEASURED, "--output-name", "conv", "--overwrite")
    assert "are taken from" not in chosen.stderr
    assert find_model("two").spec().provenance["imported_output"] == "conv"


def test_without_labels_the_classes_get_names_and_a_warning(run: Run) -> None:
    result = run("theirs.onnx", *MEASURED, "--name", "mine")
    assert "warning: no --labels: the classes are called class-0 to class-3" in result.stderr
    assert find_model("mine").spec().classes[-1] == "class-3"


def test_an_imported_model_is_exported_inspected_and_predicts(run: Run) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 10, 10)).save("red.png")
    assert run("theirs.onnx", *MEASURED).exit_code == 0
    exported = run("--fp16", command="export")
    assert exported.exit_code == 0
    assert "FP16: how near each layer is to the limit" in exported.stdout
    assert Path("models/theirs/model.fp16.onnx").is_file()
    inspected = run("theirs", command="inspect")
    assert inspected.exit_code == 0
    assert "imported_from" in inspected.stdout
    predicted = run("red.png", "--tencrop", "--backend", "onnxruntime", command="predict")
    assert predicted.exit_code == 0
    assert "class-" in predicted.stdout


def test_no_preprocessing_at_all_is_a_usage_error_with_its_cure(run: Run) -> None:
    result = run("theirs.onnx", "--channels", "bgr")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "does not define the preprocessing" in result.stderr
    assert "--recipe torchvision" in result.stderr
    assert not Path("models").exists()


@pytest.mark.parametrize("recipe", ["alexnet", "caffe-alexnet"])
def test_a_recipe_that_measures_its_mean_needs_it_given(run: Run, recipe: str) -> None:
    refused = run("theirs.onnx", "--recipe", recipe)
    assert refused.exit_code == 2
    example = "104.007,116.669,122.679" if recipe == "caffe-alexnet" else "122.679,116.669,104.007"
    assert f"or a mean per channel: --mean {example}" in refused.stderr
    scaled = run("theirs.onnx", "--recipe", recipe, "--scale", "0.0078125", "--channels", "bgr")
    assert "--mean 0.812555,0.911477,0.95843" in scaled.stderr
    assert run("theirs.onnx", "--recipe", recipe, "--mean", "104.007,116.669,122.679").exit_code == 0
    steps = find_model("theirs").spec().preprocessing
    assert steps.mean == (104.007, 116.669, 122.679)
    assert steps.channels == ("bgr" if recipe == "caffe-alexnet" else "rgb")


def test_single_options_override_the_recipe(run: Run) -> None:
    options = ("--channels", "bgr", "--scale", "1", "--mean", "1,2,3", "--std", "4,5,6", "--resize", "warp")
    assert run("theirs.onnx", *MEASURED, *options).exit_code == 0
    assert find_model("theirs").spec().preprocessing == Preprocessing(
        channels="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), resize="warp", crop=32
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "1,2"), "--mean '1,2' is not three numbers"),
        (("--mean", "a,b,c"), "--mean 'a,b,c' is not three numbers"),
        (("--mean", "nan,0,0"), "--mean is nan, 0.0, 0.0; expected numbers"),
        (("--std", "1,0,1"), "--std is 1.0, 0.0, 1.0; expected numbers above 0"),
        (("--scale", "0"), "--scale is 0.0; expected numbers above 0"),
        (("--scale", "inf"), "scale is inf; expected a finite number"),
        (("--channels", "grey"), "'grey' is not one of 'rgb'"),
        (("--recipe", "torchvison"), "did you mean 'torchvision'"),
        (("--name", "a/b"), "--name 'a/b' is not a name"),
        (("--name", ".."), "--name '..' is not a name"),
        (("--labels", "a,,c,d"), "--labels 'a,,c,d' has an empty name"),
        (("--labels", "nowhere.txt"), "nowhere.txt does not exist"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_names_it(run: Run, options: tuple[str, ...], message: str) -> None:
    result = run("theirs.onnx", *MEASURED, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("content", "exit_code", "message"),
    [
        ("a\nb\nc\n", 4, "theirs.onnx has 4 classes; found 3 labels"),
        ("", 2, "line 1 is empty"),
        ("a\n\nb\nc\n", 2, "line 2 is empty"),
    ],
)
def test_labels_that_do_not_fit_are_refused(run: Run, content: str, exit_code: int, message: str) -> None:
    Path("labels.txt").write_text(content)
    result = run("theirs.onnx", *MEASURED, "--labels", "labels.txt")
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert not Path("models").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_labels_written_on_windows_are_read(run: Run, encoding: str) -> None:
    Path("labels.txt").write_bytes("eins\r\nzwei\r\ndrei\r\nfünf\r\n\r\n".encode(encoding))
    assert run("theirs.onnx", *MEASURED, "--labels", "labels.txt").exit_code == 0
    assert find_model("theirs").spec().classes == ("eins", "zwei", "drei", "fünf")


def test_an_existing_model_needs_overwrite(run: Run) -> None:
    assert run("theirs.onnx", *MEASURED).exit_code == 0
    before = Path("models/theirs/spec.json").read_bytes()
    refused = run("theirs.onnx", "--scale", "1")
    assert refused.exit_code == 2
    assert "error: models/theirs already holds a model" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert Path("models/theirs/spec.json").read_bytes() == before
    assert run("theirs.onnx", "--scale", "1", "--overwrite").exit_code == 0
    assert find_model("theirs").spec().preprocessing.scale == 1.0


def test_an_unknown_suffix_is_a_usage_error_that_lists_the_known_ones(run: Run) -> None:
    Path("weights.xyz").write_bytes(b"")
    result = run("weights.xyz", *MEASURED)
    assert result.exit_code == 2
    assert "error: unsupported file type: weights.xyz" in result.stderr
    assert "Supported: .onnx, .caffemodel, .pth, .pt, .pth.tar, .ckpt, .bin, .safetensors, .npy, .mat" in result.stderr


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [
        ("net.h5", "a Keras model", "keras.models.load_model('net.h5').export('net.onnx', format='onnx')"),
        ("net.hdf5", "a Keras model", "keras.models.load_model('net.hdf5').export('net.onnx', format='onnx')"),
        ("net.KERAS", "a Keras model", "keras.models.load_model('net.KERAS').export('net.onnx', format='onnx')"),
        ("net.pb", "a TensorFlow graph", "python -m tf2onnx.convert --graphdef net.pb --inputs INPUT:0"),
        ("saved/saved_model.pb", "a TensorFlow graph", "python -m tf2onnx.convert --saved-model saved --output"),
        ("net.tflite", "a TensorFlow Lite model", "python -m tf2onnx.convert --tflite net.tflite --output net.onnx"),
        ("net.mlmodel", "a Core ML model", "o.convert_coreml(coremltools.utils.load_spec('net.mlmodel')), 'net.onnx')"),
        ("net.mlpackage", "a Core ML package", "export the model to ONNX from the framework"),
        ("net.torchscript", "a TorchScript archive", "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_its_conversion(run: Run, name: str, kind: str, command: str) -> None:
    result = run(name, *MEASURED)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {name} is {kind}, which is not supported; convert it to ONNX" in result.stderr
    assert command in result.stderr


@pytest.mark.parametrize("content", [pickle.dumps(os.getcwd), b"", classifier().SerializeToString()[:-100]])
def test_a_file_that_is_no_onnx_is_a_model_error(run: Run, content: bytes) -> None:
    Path("bad.onnx").write_bytes(content)
    result = run("bad.onnx", *MEASURED)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "error: bad.onnx" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("models").exists()


def test_a_picture_larger_than_256_pixels_is_a_model_error(run: Run) -> None:
    Path("large.onnx").write_bytes(classifier(300).SerializeToString())
    result = run("large.onnx", *MEASURED)
    assert result.exit_code == 4
    assert "data float32 [1, 3, 300, 300]; expected float32 [N, 3, H, H]" in result.stderr


def test_a_models_folder_that_cannot_be_written_is_exit_code_6(run: Run) -> None:
    Path("models").write_text("a file where the folder should be")
    result = run("theirs.onnx", *MEASURED)
    assert result.exit_code == 6
    assert "could not be written" in result.stderr


BLUE_FIRST = np.repeat(np.array([104, 117, 123], np.float32), 256 * 256).reshape(3, 256, 256)
"""A mean image as Caffe's are, BGR."""


@pytest.fixture
def caffemodel(run: Run, tmp_path: Path) -> Path:
    """A narrow bvlc_alexnet beside theirs.onnx, and a mean image."""
    (tmp_path / "caffe.caffemodel").write_bytes(files.net(files.alexnet(files.weights()), old=True))
    (tmp_path / "mean.binaryproto").write_bytes(files.blob(BLUE_FIRST[None], "legacy"))
    return Path("caffe.caffemodel")


def test_a_caffemodel_is_imported_with_its_mean_image_and_synsets(run: Run, caffemodel: Path) -> None:
    lines = [f"n0144076{index} tench, Tinca tinca" for index in range(files.CLASSES)]
    Path("synset_words.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = run(caffemodel, "--mean-image", "mean.binaryproto", "--labels", "synset_words.txt")
    assert (result.exit_code, result.stdout) == (0, "")
    checked, wrote, following = result.stderr.splitlines()
    assert checked.startswith("checked: off by ")
    assert checked.endswith(" of the largest score from what Caffe computes of the same input")
    assert wrote == "wrote models/caffe: 7 classes, views of 227 pixels"
    assert following == "next: alexdeploy export models/caffe"
    assert find_model("caffe").spec().classes == tuple(lines)


def test_a_mean_that_a_caffemodel_only_names_is_asked_for(run: Run, caffemodel: Path) -> None:
    result = run(caffemodel)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "was trained with the mean image mean, which is a file of its own" in result.stderr
    assert "--mean-image imagenet_mean.binaryproto" in result.stderr
    assert not Path("models").exists()
    result = run(caffemodel, "--mean", "104,117,123")
    assert result.exit_code == 0
    assert "warning: no --labels: the classes are called class-0 to class-6" in result.stderr
    assert find_model("caffe").spec().preprocessing.mean == (104.0, 117.0, 123.0)


def test_a_mean_image_goes_with_an_onnx_file_too(run: Run, caffemodel: Path) -> None:
    result = run("theirs.onnx", "--recipe", "caffe-alexnet", "--mean-image", "mean.binaryproto")
    assert result.exit_code == 0
    assert "not told" not in result.stderr
    folder = find_model("theirs")
    steps = folder.spec().preprocessing
    assert (steps.channels, steps.resize, steps.scale) == ("bgr", "warp", 1.0)
    np.testing.assert_array_equal(folder.mean_image(folder.spec()), BLUE_FIRST)


def test_a_mean_image_of_colours_in_no_known_order_is_asked_about(run: Run, caffemodel: Path) -> None:
    refused = run("theirs.onnx", "--mean-image", "mean.binaryproto")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "order of the colour channels" in refused.stderr
    assert "--recipe caffe-alexnet" in refused.stderr
    assert not Path("models").exists()
    result = run("theirs.onnx", "--mean-image", "mean.binaryproto", "--channels", "bgr")
    assert result.exit_code == 0
    assert "warning: not given; assuming: --resize crop" in result.stderr
    assert find_model("theirs").spec().preprocessing.channels == "bgr"


def test_what_is_taken_of_the_preprocessing_of_a_graph_is_said(run: Run) -> None:
    result = run("theirs.onnx", "--mean", "104,117,123")
    assert result.exit_code == 0
    assert "warning: not given; assuming: --channels rgb, --resize crop" in result.stderr
    told = run("theirs.onnx", "--mean", "1,2,3", "--channels", "rgb", "--resize", "crop", "--overwrite")
    assert "not told" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caffe.caffemodel", "--mean", "1,2,3", "--mean-image", "mean.binaryproto"), "are both given"),
        (("caffe.caffemodel", "--output-name", "prob", "--mean", "1,2,3"), "--output-name is for graphs"),
        (("caffe.caffemodel", "--std", "0,1,1", "--mean", "1,2,3"), "expected numbers above 0"),
    ],
)
def test_options_that_make_no_sense_for_weights_are_usage_errors(
    run: Run, caffemodel: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not Path("models").exists()


@pytest.mark.parametrize("name", ["theirs.pth", "theirs.pt", "theirs.safetensors", "theirs.caffemodel"])
def test_a_pickle_that_calls_something_is_a_model_error_under_any_name(run: Run, name: str) -> None:
    Path(name).write_bytes(pickle.dumps(os.getcwd, protocol=2))
    result = run(name, *MEASURED)
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"error: {name}" in result.stderr
    assert not Path("models").exists()


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.caffemodel", "nowhere.safetensors"])
def test_weights_that_are_not_there_are_a_usage_error(run: Run, name: str) -> None:
    result = run(name, *MEASURED)
    assert result.exit_code == 2
    assert f"error: {name} does not exist" in result.stderr


def test_checkpoints_and_matconvnets_files_are_imported_under_their_names(run: Run, tmp_path: Path) -> None:
    weights = files.weights()
    torch.save({"weights": {f"net.{key}": torch.from_numpy(each) for key, each in weights.items()}}, "best.pth.tar")
    result = run("best.pth.tar", "--recipe", files.narrow(tmp_path), "--mean", "104,117,123")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "wrote models/best: 7 classes, views of 227 pixels" in result.stderr
    Path("alex.mat").write_bytes(matlab_files.version_7_3(matlab_files.network(weights)))
    result = run("alex.mat")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "checked: off by" in result.stderr
    assert "no --labels" not in result.stderr
    assert find_model("alex").spec().classes[1] == "n01440764 goldfish"


def test_json_is_the_model_and_where_it_came_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownFile(name="theirs.onnx", title="published by somebody", digest=sha256_file(Path("theirs.onnx")))
    monkeypatch.setattr(published_files, "KNOWN", (known,))
    result = run("theirs.onnx", *MEASURED, "--json")
    assert result.exit_code == 0
    assert "theirs.onnx is published by somebody, by its hash" in result.stderr
    document = json.loads(result.stdout)
    assert (document["model"], len(document["classes"])) == ("models/theirs", CLASSES)
    assert document["imported_sha256"] == sha256_file(Path("theirs.onnx"))
