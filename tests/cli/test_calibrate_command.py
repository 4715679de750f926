from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from helpers import write_pictures
from program import Run, run_and_signal

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.graphs.freshness import read_metadata


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy` in this process, where models/tiny and 40 pictures/ are."""
    root = tiny_model.path.parents[1]
    monkeypatch.chdir(root)
    write_pictures(root / "pictures", 40)
    return program


def test_ranges_are_written_and_printed_and_the_next_command_is_named(run: Run) -> None:
    result = run("calibrate", "tiny", "pictures")
    assert result.exit_code == 0
    assert Path("calibration/tiny.ranges.json").is_file()
    rows = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("│")}
    assert {"images", "conv1", "norm1", "fc8", "logits"} - set(rows) == {"fc8"}
    assert "ranges by mse on 40 images" in result.stdout
    assert "wrote calibration/tiny.ranges.json: 40 images, key " in result.stderr
    assert "next: alexdeploy export models/tiny --int8" in result.stderr
    assert "warning" not in result.stderr


def test_a_model_that_was_only_trained_is_exported_and_then_measured(run: Run) -> None:
    for graph in Path("models/tiny").glob("model*.onnx*"):
        graph.unlink()
    result = run("calibrate", "tiny", "pictures")
    assert result.exit_code == 0
    assert "models/tiny has no model.onnx yet" in result.stderr
    assert Path("calibration/tiny.ranges.json").is_file()
    assert run("export", "tiny", "--int8", "--max-drop", "100").exit_code == 0


def test_options_overrule_the_defaults_and_json_is_the_file(run: Run) -> None:
    options = ("--num-images", "3", "--method", "percentile", "--percentile", "99", "--views", "10", "--seed", "7")
    result = run("calibrate", "tiny", "pictures", *options, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(Path("calibration/tiny.ranges.json").read_text())
    found = json.loads(result.stdout)
    assert (found["num_images"], found["method"], found["percentile"]) == (3, "percentile", 99.0)
    assert (found["num_views"], found["seed"]) == (10, 7)
    assert "warning: 3 different images are few" in result.stderr


def test_a_broken_image_is_warned_about_and_the_exit_code_is_3(run: Run) -> None:
    Path("pictures/000.png").write_bytes(b"broken")
    result = run("calibrate", "tiny", "pictures")
    assert result.exit_code == 3
    assert "warning: pictures/000.png was left out: " in result.stderr
    assert json.loads(Path("calibration/tiny.ranges.json").read_text())["num_images"] == 39


def test_no_images_are_an_error_with_a_cure(run: Run) -> None:
    Path("empty").mkdir()
    result = run("calibrate", "tiny", "empty")
    assert result.exit_code == 3
    assert "no images to calibrate on" in result.stderr
    assert "labels are not needed" in result.stderr


def test_int8_from_one_command_runs_everywhere_and_each_row_says_so(run: Run) -> None:
    result = run("export", "tiny", "--int8", "--calibrate", "pictures", "--max-drop", "50")
    assert result.exit_code == 0
    assert "ranges of 40 images, method mse" in result.stderr
    assert Path("calibration/tiny.ranges.json").is_file()
    assert "wrote models/tiny/model.int8.onnx" in result.stderr
    assert "every layer in INT8; " in result.stderr
    assert "(allowed 50; " in result.stderr
    assert "INT8: what each layer costs alone" in result.stdout
    for backend in ("openvino", "onnxruntime"):
        rows = run("predict", "pictures", "--precision", "int8", "--backend", backend, "--tencrop")
        assert rows.exit_code == 0
        found = [json.loads(line) for line in rows.stdout.splitlines()]
        assert len(found) == 40
        assert {(row["backend"], row["precision"]) for row in found} == {(backend, "int8")}
    refused = run("predict", "pictures", "--precision", "int8", "--backend", "torch")
    assert refused.exit_code == 2
    assert (
        "torch does not run int8\nUse --backend tensorrt or tensorrt-rtx or openvino or onnxruntime." in refused.stderr
    )


def test_without_a_budget_the_ranking_is_left_out_where_all_of_it_holds(run: Run) -> None:
    assert run("calibrate", "tiny", "pictures").exit_code == 0
    result = run("export", "tiny", "--int8", "--json")
    found = {item["precision"]: item for item in json.loads(result.stdout)}
    int8 = found["int8"]["quantization"]
    assert found["fp32"]["quantization"] is None
    assert int8["measured_on"] == "pictures"
    assert int8["budget"] == 2.5
    assert int8["ranges_path"] == "calibration/tiny.ranges.json"
    assert int8["choice"]["drop"]["num_images"] == 40
    assert (int8["ranking"] == []) == (int8["choice"]["num_trials"] == 1)


def test_what_makes_an_int8_export_doubtful_is_a_warning_and_in_the_json(run: Run) -> None:
    for path in sorted(Path("pictures").iterdir())[4:]:
        path.unlink()
    Path("pictures/000.png").write_bytes(b"broken")
    result = run("export", "tiny", "--int8", "--calibrate", "pictures", "--max-drop", "100", "--json")
    assert result.exit_code == 0
    _, int8 = json.loads(result.stdout)
    few, skipped, judged = int8["quantization"]["warnings"]
    assert few.startswith("3 different images are few")
    assert skipped.startswith("pictures/000.png was left out: ")
    assert judged.startswith("3 images are few")
    warned = [line for line in result.stderr.splitlines() if "warning" in line]
    assert warned == [f"warning: {message}" for message in (few, skipped, judged)]


def test_a_budget_on_labelled_images_is_points_of_error(run: Run) -> None:
    for index, path in enumerate(sorted(Path("pictures").iterdir())):
        target = Path("labelled") / f"class-{index % 5}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    result = run("export", "--int8", "--calibrate", "labelled", "--labelled", "labelled", "--max-drop", "30")
    assert result.exit_code == 0
    assert "measuring top-1 error on 40 images of labelled" in result.stderr
    assert "points (95 % interval: " in result.stderr
    assert "40 images of labelled, 40 of them also used to measure the ranges" in result.stderr


def test_a_budget_that_the_images_cannot_show_is_warned_about_with_the_number_that_can(run: Run) -> None:
    given = ("export", "tiny", "--int8", "--calibrate", "pictures")
    result = run(*given)
    assert result.exit_code == 0
    # Wilson 1927, none of n changed: z^2 / (n + z^2) is 8.8 % for 40, and at most 1 % from 381 on, with z^2 = 3.8415.
    doubt = "40 images are too few to show a drop of 1 points or less: where no answer changes"
    assert f"warning: {doubt}, the 95 % interval still reaches to 8.8; give at least 381" in result.stderr
    result = run(*given, "--max-drop", "0", "--json")
    if result.exit_code == 0:
        assert "no number of images can" in json.loads(result.stdout)[1]["quantization"]["warnings"][0]
    assert "no number of images can" in result.stderr
    assert "too few" not in run(*given, "--max-drop", "8.8").stderr


def test_the_budget_is_measured_on_images_that_took_no_part_in_the_calibration_where_there_are_enough(
    run: Run,
) -> None:
    shutil.copy("pictures/000.png", "pictures/copy.png")
    given = ("export", "tiny", "--int8", "--max-drop", "20", "--json")
    assert run("calibrate", "tiny", "pictures", "--num-images", "20").exit_code == 0
    result = run(*given)
    assert result.exit_code == 0
    found = json.loads(result.stdout)[1]["quantization"]
    # With none of 16 changed the interval ends at 19.4 %, with none of 15 at 20.4; 20 took part in the calibration.
    assert found["choice"]["drop"]["num_images"] == 20
    # A copy of one of them is no other image.
    assert found["num_calibrated"] <= 1
    assert "too few" not in result.stderr
    assert run("calibrate", "tiny", "pictures", "--num-images", "30").exit_code == 0
    found = json.loads(run(*given).stdout)[1]["quantization"]
    # The eleven others are too few.
    assert (found["choice"]["drop"]["num_images"], found["num_calibrated"]) == (30, 30)


def test_an_int8_graph_that_saves_nothing_is_refused(run: Run) -> None:
    given = ("export", "tiny", "--int8", "--calibrate", "pictures", "--max-drop", "60")
    result = run(*given, "--keep", "conv1,conv2,conv3,conv4,conv5,fc6,fc7")
    assert result.exit_code == 4
    assert "INT8 saves nothing here: 7 of 8 layers stay in FP32, the file has " in result.stderr
    assert "No INT8 file was written. Use FP16 (alexdeploy export --fp16)" in result.stderr
    assert not Path("models/tiny/model.int8.onnx").exists()
    # Hardly smaller, but nearly all of the work is in INT8.
    assert run(*given, "--keep", "fc6,fc7,fc8").exit_code == 0


def test_7_bit_weights_are_recorded_shown_and_kept_by_the_command_that_renews(run: Run) -> None:
    given = ("export", "tiny", "--int8", "--calibrate", "pictures", "--max-drop", "60")
    assert run(*given, "--int8-weights", "7").exit_code == 0
    path = Path("models/tiny/model.int8.onnx")
    assert read_metadata(path).metadata["alexdeploy.int8_weights"] == "7"
    assert "7 bits" in run("inspect", str(path)).stdout
    assert run("calibrate", "tiny", "pictures", "--num-images", "20").exit_code == 0
    stale = run("predict", "pictures", "--precision", "int8")
    assert stale.exit_code == 4
    assert "Renew it: alexdeploy export models/tiny --int8 --int8-weights 7\n" in stale.stderr
    assert run(*given).exit_code == 0
    assert read_metadata(path).metadata["alexdeploy.int8_weights"] == "8"
    assert "8 bits" in run("inspect", str(path)).stdout
    assert run(*given, "--int8-weights", "6").exit_code == 2


@pytest.mark.parametrize(
    "option",
    [("--calibrate", "pictures"), ("--max-drop", "1"), ("--labelled", "pictures"), ("--int8-weights", "7")],
)
def test_options_of_int8_need_int8(run: Run, option: tuple[str, str]) -> None:
    result = run("export", "tiny", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for --int8" in result.stderr


def test_layers_that_are_named_stay_fp32_and_unknown_ones_are_refused(run: Run) -> None:
    given = ("export", "--int8", "--calibrate", "pictures", "--max-drop", "60")
    result = run(*given, "--keep", "conv1, fc8")
    assert result.exit_code == 0
    assert "in FP32: conv1, fc8; " in result.stderr
    refused = run(*given, "--keep", "conv9")
    assert refused.exit_code == 2
    assert "no layer with weights is called 'conv9'" in refused.stderr
    refused = run(*given, "--keep", "conv1,conv2,conv3,conv4,conv5,fc6,fc7,fc8")
    assert refused.exit_code == 2


def test_a_percentile_means_that_method_and_another_is_refused(run: Run) -> None:
    result = run("calibrate", "tiny", "pictures", "--percentile", "99", "--json")
    assert json.loads(result.stdout)["method"] == "percentile"
    assert run("calibrate", "tiny", "pictures", "--percentile", "99", "--method", "mse").exit_code == 2
    assert run("calibrate", "tiny", "pictures", "--percentile", "50").exit_code == 2


def test_int8_before_calibration_names_the_command(run: Run) -> None:
    result = run("export", "tiny", "--int8")
    assert result.exit_code == 4
    assert "no measured ranges at calibration/tiny.ranges.json" in result.stderr
    assert "alexdeploy export models/tiny --int8 --calibrate IMAGES" in result.stderr
    assert "exporting" not in result.stderr
    result = run("predict", "pictures", "--precision", "int8")
    assert result.exit_code == 4
    assert "Make it: alexdeploy export models/tiny --int8" in result.stderr


def test_fp16_prints_how_near_each_layer_is_to_the_limit(run: Run) -> None:
    result = partial(run, "export", "--fp16")()
    assert result.exit_code == 0
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("│")}
    assert "of 255" in lines["norm1"]
    assert "fp32" in lines["norm1"]
    assert "square" in lines["norm1"]
    assert "fp16" in lines["conv1"]
    assert "norm1_split" not in lines


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_prints_what_was_measured_and_writes_nothing(run: Run) -> None:
    # Two batches of ten are measured by then.
    done = run_and_signal(Path.cwd(), signal.SIGINT, ".png", 26, "calibrate", "tiny", "pictures")
    assert done.exit_code == 130
    assert "ranges by mse on 20 images of 40, PARTIAL" in done.stdout
    assert "conv1" in done.stdout
    assert done.stderr.endswith("Stopped after 20 of 40 images; nothing was written.\n")
    assert not Path("calibration/tiny.ranges.json").exists()


def test_newer_weights_that_are_not_exported_are_warned_of(run: Run) -> None:
    folder = ModelFolder(Path("models/tiny"))
    folder.candidate.path.mkdir(parents=True)
    newer = folder.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7)
    folder.candidate.write_spec(newer)
    result = run("calibrate", "tiny", "pictures", "--num-images", "16")
    assert result.exit_code == 0
    assert "warning: models/tiny has newer weights (000000000000, epoch 7) that are not exported" in result.stderr
