"""`alexdeploy verify` as a user has it; its figures are tested in tests/evaluation/test_verify.py."""

from __future__ import annotations

import io
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import change_weights, make_model, replace_graph, write_pictures
from onnx import numpy_helper
from program import Run
from rich.console import Console

from alexdeploy.cli.verify import _print_decoders
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.evaluation.agreement import DecoderReport, compare
from alexdeploy.export.export import ExportOptions, export_model

QUICK = ("--precision", "fp16", "--backend", "onnxruntime")


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy verify` in this process, where models/tiny is, and a folder of eight pictures beside it."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    monkeypatch.delenv("COLUMNS", raising=False)
    write_pictures(Path("pictures"), 8)
    return partial(program, "verify")


def break_fp16(folder: ModelFolder) -> None:
    """Scale conv3's weights in the FP16 graph and keep its metadata: it is not stale, but wrong."""
    model = onnx.load(folder.onnx_path("fp16"))
    for tensor in model.graph.initializer:
        if tensor.name == "conv3.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1.5), tensor.name))
    replace_graph(folder, "fp16", model)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the tables, by its first words."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {" ".join(row[: 2 if row[0] == "onnxruntime" else 1]): row for row in cells if len(row) > 2}


def test_a_row_for_each_graph_and_engine_with_its_verdict(run: Run) -> None:
    result = run("tiny", "pictures", "--backend", "onnxruntime")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "8 images of pictures, 1 view each"
    assert lines[-1] == "4 comparisons, none failed; 12.5 % of the answers may differ"
    table = rows(result.stdout)
    assert table["graph"][:3] == ["graph", "flips", "mean error"]
    assert table["backend"] == ["backend", "precision", "flips", "mean error", "max error", "verdict"]
    # Nothing flips, and five classes are always all among the best five: there is nothing to say of that.
    assert "margins" not in result.stdout
    assert "top 5" not in result.stdout
    for row in ("model.onnx", "model.fp16.onnx", "onnxruntime fp32", "onnxruntime fp16"):
        assert "0 of 8" in table[row]
        assert table[row][-1] == "ok"
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
    result = run("tiny", "pictures", *QUICK, "--max-flips", "1")
    assert result.exit_code == 4
    assert result.stdout.endswith("2 of 2 comparisons failed; 1 % of the answers may differ\n")
    table = rows(result.stdout)
    assert table["graph"][-2:] == ["jumps at", "verdict"]
    assert table["model.fp16.onnx"][-2:] == ["conv3", "FAILS"]
    assert table["onnxruntime fp16"][-1] == "FAILS"
    assert re.fullmatch(r"[1-8] of 8 \([\d.]+ %\)", table["onnxruntime fp16"][2])
    messages = result.stderr.splitlines()[-4:]
    assert messages[0].startswith("error: model.fp16.onnx: ")
    assert messages[1].startswith("model.fp16.onnx on onnxruntime: ")
    assert all(message.endswith("allowed: 1 %; the error jumps at conv3") for message in messages[:2])
    assert messages[2:] == [
        "Make fp16 again: alexdeploy export models/tiny --fp16",
        "One answer of 8 is more than 1 %: --num-images takes more of them.",
    ]
    assert run("tiny", "pictures", *QUICK, "--max-flips", "100").exit_code == 0


def test_a_page_and_plots_are_written_also_when_answers_differ(run: Run, tiny_model: ModelFolder) -> None:
    pytest.importorskip("matplotlib")
    break_fp16(tiny_model)
    words = ("tiny", "pictures", *QUICK, "--html", "page.html", "--plots", "plots")
    result = run(*words)
    assert result.exit_code == 4
    assert "wrote page.html" in result.stderr
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 8
    assert "the error jumps at conv3" in page
    names = {path.name for path in Path("plots").iterdir()}
    assert {"answers.csv", "error-of-each-layer.png", "same-answers-pair-by-pair.svg"} <= names
    refused = run(*words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "page.html exists already" in refused.stderr


def test_the_widest_tables_fit_120_columns(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "models" / "twelve", num_classes=12)
    export_model(folder, ExportOptions(fp16=True))
    break_fp16(folder)
    words = ("twelve", "pictures", *QUICK, "--num-images", "4", "--views", "10", "--layers", "--max-flips", "100")
    wide = run(*words).stdout
    assert "top 5 kept" in wide
    assert "margins" in wide
    assert max(map(len, wide.splitlines())) <= 120
    monkeypatch.setenv("COLUMNS", "120")
    assert run(*words).stdout == wide


def test_json_has_everything_also_when_answers_differ(run: Run, tiny_model: ModelFolder) -> None:
    break_fp16(tiny_model)
    result = run("tiny", "pictures", *QUICK, "--views", "10", "--json")
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert (found["reference"], found["num_images"], found["num_views"], found["max_flips"]) == ("torch", 8, 10, 12.5)
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
    layers = {line.split()[0]: line for line in run(*options, "--layers").stdout.splitlines() if line}
    assert [name for name in layers if name in ("conv1", "norm2", "fc8")] == ["conv1", "norm2", "fc8"]
    assert [name for name, row in layers.items() if " > " in row] == ["conv3"]


def test_images_that_cannot_be_read_are_warned_of_by_name(run: Run, tiny_model: ModelFolder) -> None:
    Path("pictures/003.png").write_bytes(b"no picture")
    result = run("tiny", "pictures", *QUICK)
    assert result.exit_code == 3
    assert "warning: pictures/003.png: unsupported file type" in result.stderr
    assert result.stdout.startswith("7 images of pictures, 1 view each\n")
    break_fp16(tiny_model)
    assert run("tiny", "pictures", *QUICK).exit_code == 4


def test_several_inputs_can_be_named(run: Run) -> None:
    result = run("tiny", "pictures/001.png", "pictures/002.png", *QUICK)
    assert result.exit_code == 0
    assert result.stdout.startswith("2 images of pictures/001.png, pictures/002.png, 1 view each\n")


def test_nothing_named_is_the_newest_model_on_rendered_pictures(run: Run) -> None:
    result = run(*QUICK, "--num-images", "2")
    assert result.exit_code == 0
    assert result.stdout.startswith("2 images of rendered pictures, 1 view each\n")


def test_a_stale_graph_is_a_model_error_with_the_command_that_renews_it(run: Run, tiny_model: ModelFolder) -> None:
    change_weights(tiny_model, fc8__bias=lambda bias: bias + 1)
    result = run("tiny", "pictures")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "model.onnx was made from weights.safetensors" in result.stderr
    assert result.stderr.endswith("Renew it: alexdeploy export models/tiny\n")


@pytest.mark.parametrize(
    ("option", "given", "known"),
    [
        ("--precision", "fp32,fp8", "fp32, fp16, bf16, int8"),
        ("--backend", "", "tensorrt, tensorrt-rtx, openvino, onnxruntime, torch"),
    ],
)
def test_an_unknown_name_in_a_list_is_a_usage_error_that_gives_the_known(
    run: Run, option: str, given: str, known: str
) -> None:
    result = run("tiny", "pictures", option, given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {option} {given}: found {given.split(',')[-1]!r}, expected any of {known}" in result.stderr


# The last bits of ONNX Runtime depend on an engine's threads, which replicas on one device share.
@pytest.mark.parametrize("backend", [("openvino",), ("onnxruntime", "--threads", "1")])
def test_on_two_devices_the_figures_are_those_of_one(run: Run, backend: tuple[str, ...]) -> None:
    words = ("tiny", "pictures", "--precision", "fp32,fp16", "--batch-size", "3", "--json", "--backend", *backend)
    one, two = (run(*words, "--devices", devices) for devices in ("cpu", "cpu,cpu"))
    assert (one.exit_code, two.exit_code) == (0, 0)
    assert json.loads(one.stdout)["engines"]
    assert one.stdout == two.stdout


@pytest.mark.parametrize(
    ("words", "code"), [(("--devices", "7"), 2), (("--devices", "cpu", "--backend", "tensorrt"), 5)]
)
def test_what_cannot_run_is_told_before_any_image_is_read(run: Run, words: tuple[str, ...], code: int) -> None:
    result = run("tiny", "pictures", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "reading" not in result.stderr


def test_the_answers_of_another_decoder_are_a_table_of_their_own() -> None:
    expected = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    report = DecoderReport(
        decoder="nvImageCodec",
        num_images=3,
        num_left=1,
        num_identical=2,
        mean_difference=0.125,
        max_difference=3,
        agreement=compare(expected, expected[:, ::-1].copy(), expected),
        failure="3 of 3 answers differ",
    )
    text = io.StringIO()
    _print_decoders(report, Console(file=text, width=120, highlight=False))
    title, figures, _, row = filter(None, text.getvalue().splitlines())
    assert title == "Decoders: nvImageCodec against the one that predicts, answers of the FP32 reference"
    assert figures == (
        "2 of 3 JPEGs identical; values of a pixel differ by 0.12 on average, by 3 at most; "
        "1 other file left to the latter"
    )
    assert re.split(r"\s{2,}", row.strip())[0] == "3 of 3 (100.00 %)"
    assert row.split()[-1] == "FAILS"


def test_answers_that_are_not_finite_are_counted(run: Run, tiny_model: ModelFolder) -> None:
    model = onnx.load(tiny_model.onnx_path("fp16"))
    for tensor in model.graph.initializer:
        if tensor.name == "conv3.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(np.inf), tensor.name))
    replace_graph(tiny_model, "fp16", model)
    result = run("tiny", "pictures", *QUICK, "--html", "page.html")
    assert result.exit_code == 4
    assert "8 of 8 not finite" in result.stdout
    assert "8 of 8 not finite" in Path("page.html").read_text(encoding="utf-8")
