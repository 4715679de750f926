"""`alexdeploy verify` as a user has it; its figures are tested in tests/inference/test_verify.py."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import smooth_images
from onnx import numpy_helper
from PIL import Image
from program import Run

from alexdeploy.core.artifacts import ModelFolder

QUICK = ("--precision", "fp16", "--backend", "onnxruntime")


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy verify` in this process, where models/tiny is, and a folder of eight pictures beside it."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    monkeypatch.delenv("COLUMNS", raising=False)
    Path("pictures").mkdir()
    for index, image in enumerate(smooth_images(8)):
        Image.fromarray(image).save(f"pictures/{index}.png")
    return partial(program, "verify")


def break_fp16(folder: ModelFolder) -> None:
    """Scale conv3's weights in the FP16 graph and keep its metadata: it is not stale, but wrong."""
    model = onnx.load(folder.onnx_path("fp16"))
    for tensor in model.graph.initializer:
        if tensor.name == "conv3.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1.5), tensor.name))
    folder.onnx_path("fp16").write_bytes(model.SerializeToString())


def test_a_row_for_each_artifact_and_backend_and_a_sentence_on_each(run: Run) -> None:
    result = run("tiny", "pictures", "--backend", "onnxruntime")
    assert result.exit_code == 0
    assert result.stdout.startswith("8 images of pictures, 1 view each\n")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:4] for line in lines if line[:1] in (["fp32"], ["fp16"])] == [
        ["fp32", "0/8", "-", "-"],
        ["fp16", "0/8", "-", "-"],
        ["fp32", "onnxruntime", "0/8", "-"],
        ["fp16", "onnxruntime", "0/8", "-"],
    ]
    assert [line.split(";")[0] for line in result.stdout.splitlines()[-4:]] == [
        "model.onnx: 0 of 8 answers differ",
        "model.fp16.onnx: 0 of 8 answers differ",
        "model.onnx on onnxruntime: 0 of 8 answers differ",
        "model.fp16.onnx on onnxruntime: 0 of 8 answers differ",
    ]
    assert result.stderr == (
        "model models/tiny\n"
        "  reading 8 of 8 images of pictures\n"
        "  model.onnx layer by layer against PyTorch\n"
        "  model.fp16.onnx layer by layer against PyTorch\n"
        "  torch fp32, the reference\n"
        "  onnxruntime fp32\n"
        "  onnxruntime fp16\n"
    )


def test_a_graph_with_other_answers_fails_after_the_report(run: Run, tiny_model: ModelFolder) -> None:
    break_fp16(tiny_model)
    result = run("tiny", "pictures", *QUICK)
    assert result.exit_code == 4
    verdicts = [line for line in result.stdout.splitlines() if line.startswith("model.fp16.onnx")]
    assert len(verdicts) == 2
    assert all(line.endswith("allowed: 1 %; the error jumps at conv3") for line in verdicts)
    assert f"error: {verdicts[0]}\n{verdicts[1]}\n" in result.stderr
    assert result.stderr.endswith(
        "Make fp16 again: alexdeploy export models/tiny --fp16\n"
        "One answer of 8 is more than 1 %: --num-images takes more of them.\n"
    )
    assert run("tiny", "pictures", *QUICK, "--max-flips", "100").exit_code == 0


def test_json_has_everything_also_when_answers_differ(run: Run, tiny_model: ModelFolder) -> None:
    break_fp16(tiny_model)
    result = run("tiny", "pictures", *QUICK, "--views", "10", "--json")
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert (found["reference"], found["num_images"], found["num_views"], found["max_flips"]) == ("torch", 8, 10, 1.0)
    (network,), (engine,) = found["networks"], found["engines"]
    assert (network["artifact"], network["jump"]) == ("model.fp16.onnx", "conv3")
    assert (network["agreement"]["num_rows"], engine["agreement"]["num_rows"]) == (80, 8)
    assert network["agreement"]["flip_rate"] == network["agreement"]["num_flips"] / 80
    assert [layer["name"] for layer in network["layers"]][:3] == ["conv1", "relu1", "norm1"]
    assert len(found["failures"]) == 2


def test_layers_are_printed_on_request_with_a_mark_at_the_jump(run: Run, tiny_model: ModelFolder) -> None:
    break_fp16(tiny_model)
    options = ("tiny", "pictures", "--backend", "torch", "--max-flips", "100")
    assert "conv2 " not in run(*options).stdout
    rows = {line.split()[0]: line for line in run(*options, "--layers").stdout.splitlines() if line}
    assert [name for name in rows if name in ("conv1", "norm2", "fc8")] == ["conv1", "norm2", "fc8"]
    assert [name for name, row in rows.items() if row.endswith(" <")] == ["conv3"]


def test_images_that_cannot_be_read_are_warned_of_by_name(run: Run, tiny_model: ModelFolder) -> None:
    Path("pictures/3.png").write_bytes(b"no picture")
    result = run("tiny", "pictures", *QUICK)
    assert result.exit_code == 3
    assert "warning: pictures/3.png: not an image of a kind that is read here" in result.stderr
    assert result.stdout.startswith("7 images of pictures, 1 view each\n")
    break_fp16(tiny_model)
    assert run("tiny", "pictures", *QUICK).exit_code == 4


def test_several_inputs_can_be_named(run: Run) -> None:
    result = run("tiny", "pictures/1.png", "pictures/2.png", *QUICK)
    assert result.exit_code == 0
    assert result.stdout.startswith("2 images of pictures/1.png, pictures/2.png, 1 view each\n")


def test_nothing_named_is_the_newest_model_on_rendered_pictures(run: Run) -> None:
    result = run(*QUICK, "--num-images", "2")
    assert result.exit_code == 0
    assert result.stdout.startswith("2 images of rendered pictures, 1 view each\n")


def test_a_stale_graph_is_a_model_error_with_the_command_that_renews_it(run: Run, tiny_model: ModelFolder) -> None:
    tiny_model.weights_path.write_bytes(tiny_model.weights_path.read_bytes() + b" ")
    result = run("tiny", "pictures")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "model.onnx was made from weights.safetensors" in result.stderr
    assert result.stderr.endswith("Renew it: alexdeploy export models/tiny\n")


@pytest.mark.parametrize(
    ("option", "given", "known"),
    [("--precision", "fp32,fp8", "fp32, fp16, bf16, int8"), ("--backend", "", "openvino, onnxruntime, torch")],
)
def test_an_unknown_name_in_a_list_is_a_usage_error_that_gives_the_known(
    run: Run, option: str, given: str, known: str
) -> None:
    result = run("tiny", "pictures", option, given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {option} names {given.split(',')[-1]!r}\nIt takes a list of: {known}\n"
