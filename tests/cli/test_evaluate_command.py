"""`alexdeploy evaluate` as a user has it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import make_model
from PIL import Image
from program import Run, run_and_signal

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
from alexdeploy.evaluation.results import ImageResult, Plan
from alexdeploy.evaluation.rows import RowsFile


@pytest.fixture
def workplace(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models/tiny, and data/ with ten photographs of five classes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(10):
        folder = tmp_path / "data" / f"class-{index % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        blocks = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        blocks.resize((320, 240), Image.Resampling.NEAREST).save(folder / f"{index}.jpg")
    return tmp_path


@pytest.fixture
def run(program: Run, workplace: Path) -> Run:
    """The command in this process, on ONNX Runtime."""
    return partial(program, "evaluate", "--backend", "onnxruntime")


def test_the_table_has_a_row_for_each_configuration(run: Run) -> None:
    result = run("data", "--precision", "fp32,fp16", "--views", "1,10")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1] == "data: 10 images"
    assert lines[2].split() == [
        *("backend", "precision", "views", "top-1", "error", "%", "ECE", "images/s"),
        *("points", "against", "flips"),
    ]
    assert [line.split()[:3] for line in lines[3:7]] == [
        ["onnxruntime", "fp32", "1"],
        ["onnxruntime", "fp32", "10"],
        ["onnxruntime", "fp16", "1"],
        ["onnxruntime", "fp16", "10"],
    ]
    assert "decoding beside it" in result.stdout
    assert "worst classes of onnxruntime fp32 1 view" in result.stdout
    assert result.stderr == ""


def test_five_classes_have_no_top_5_column_and_six_have_one(program: Run, workplace: Path) -> None:
    make_model(workplace / "models" / "six", num_classes=6)
    for model, has_column in (("tiny", False), ("six", True)):
        words = ("evaluate", "data", "--model", model, "--backend", "torch", "--views", "1")
        assert ("top-5" in program(*words).stdout) is has_column
        (score,) = json.loads(program(*words, "--json").stdout)["scores"]
        assert "top5" in score


def test_intervals_stay_whole_on_a_narrow_terminal(
    program: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(workplace / "models" / "six", num_classes=6)
    monkeypatch.setenv("COLUMNS", "100")
    lines = program("evaluate", "data", "--model", "six", "--backend", "torch").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    intervals = [re.findall(r"\[[-+0-9.]+, [-+0-9.]+\]", line) for line in lines[:7]]
    assert [len(found) for found in intervals if found] == [2, 3]


def test_a_report_that_could_not_be_written_is_refused_before_the_work(run: Run, workplace: Path) -> None:
    (workplace / "file").touch()
    result = run("data", "--html", "file/r.html")
    assert (result.exit_code, result.stdout) == (6, "")


def test_results_are_printed_also_where_the_report_cannot_be_written_at_the_end(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexdeploy.reports import page

    (workplace / "file").touch()
    # As where the folder was there when the work began.
    monkeypatch.setattr(page, "check_page_path", lambda *_, **_options: None)
    result = run("data", "--views", "1", "--html", "file/r.html")
    assert result.exit_code == 6
    assert "data: 10 images" in result.stdout


def test_values_given_twice_run_once(run: Run) -> None:
    result = run("data", "--precision", "fp32, fp32", "--views", "1,1", "--json")
    assert [score["configuration"] for score in json.loads(result.stdout)["scores"]] == [
        {"backend": "onnxruntime", "precision": "fp32", "num_views": 1}
    ]


def test_one_view_and_ten_views_are_the_default(run: Run) -> None:
    found = json.loads(run("data", "--json").stdout)
    named = [score["configuration"] for score in found["scores"]]
    assert [(entry["precision"], entry["num_views"]) for entry in named] == [("fp32", 1), ("fp32", 10)]
    assert found["num_images"] == 10


def test_a_broken_image_counts_and_gives_exit_code_3_after_all_is_written(run: Run, workplace: Path) -> None:
    (workplace / "data" / "class-3" / "3.jpg").write_bytes(b"")
    result = run("data", "--views", "1", "--html", "r.html", "-o", "rows.jsonl")
    assert result.exit_code == 3
    assert "data: 10 images, 1 of them could not be read and counts as wrong" in result.stdout
    assert "data/class-3/3.jpg: the file is empty" in result.stdout
    assert (workplace / "r.html").stat().st_size > 10_000
    rows = [json.loads(line) for line in (workplace / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    (broken,) = [row for row in rows if row["error"]]
    assert (broken["source"], broken["label"], broken["answers"]) == ("data/class-3/3.jpg", "class-3", [])
    found = run("data", "--views", "1", "--json")
    assert found.exit_code == 3
    assert json.loads(found.stdout)["num_broken"] == 1


def test_rows_as_csv_have_two_columns_for_each_configuration(run: Run, workplace: Path) -> None:
    (workplace / "data" / "class-3" / "3.jpg").write_bytes(b"")
    run("data", "--output", "rows.csv")
    with (workplace / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("index", "source", "label", "label_index"),
        *("label_onnxruntime_fp32_1", "index_onnxruntime_fp32_1", "probability_onnxruntime_fp32_1"),
        *("label_onnxruntime_fp32_10", "index_onnxruntime_fp32_10", "probability_onnxruntime_fp32_10"),
        *("model", "error"),
    ]
    assert len(rows) == 10
    for row in rows:
        assert row["label"] == Path(row["source"]).parent.name
        if row["source"].endswith("3.jpg"):
            assert row["error"] == "the file is empty"
            assert row["label_onnxruntime_fp32_1"] == ""
        else:
            assert row["error"] == ""
            assert 0.2 <= float(row["probability_onnxruntime_fp32_10"]) <= 1


def test_a_list_of_labels_is_taken_in_place_of_folders(run: Run, workplace: Path) -> None:
    (workplace / "val.txt").write_text("class-0/0.jpg 0\nclass-1/1.jpg class-1\n")
    result = run("data", "--labels", "val.txt", "--views", "1")
    assert result.exit_code == 0
    assert "data: 2 images; 8 more without a label do not count" in result.stdout
    assert "ignored: 8" in result.stderr


@pytest.mark.parametrize(
    "text", ["class-0/0.jpg, 0\nclass-1/1.jpg, 1\n", "ImageId,Class\nclass-0/0,0\nclass-1/1,class-1\n"]
)
def test_a_list_of_labels_may_be_csv(run: Run, workplace: Path, text: str) -> None:
    (workplace / "val.csv").write_text(text, encoding="utf-16")
    result = run("data", "--labels", "val.csv", "--views", "1", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["num_images"], found["num_broken"], found["num_unlabelled"]) == (2, 0, 8)


def test_a_list_of_other_images_is_refused_before_anything_is_written(run: Run, workplace: Path) -> None:
    (workplace / "val.txt").write_text("".join(f"ILSVRC2012_val_{index:08}.JPEG, {index % 5}\n" for index in range(50)))
    result = run("data", "--labels", "val.txt", "--html", "r.html", "-o", "rows.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the list has 'ILSVRC2012_val_00000000.JPEG', the folder 'class-0/0.jpg'" in result.stderr
    assert not (workplace / "r.html").exists()
    assert not (workplace / "rows.csv").exists()


def test_folders_that_are_no_classes_can_be_excluded(run: Run, workplace: Path) -> None:
    (workplace / "data" / "extra").mkdir()
    refused = run("data", "--views", "1")
    assert (refused.exit_code, "--exclude NAME" in refused.stderr) == (3, True)
    assert run("data", "--views", "1", "--exclude", "extra").exit_code == 0


def test_quiet_says_nothing_on_stderr_and_json_one_document_on_stdout(run: Run) -> None:
    result = run("data", "--precision", "bf16,fp32", "--views", "1", "--quiet", "--json", "-o", "rows.csv")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["notes"] == ["onnxruntime bf16 is left out: onnxruntime does not run bf16"]


@pytest.mark.parametrize(
    ("args", "exit_code", "said"),
    [
        (("--precision", "fp61"), 2, "'fp61', expected any of fp32, fp16, bf16, int8; did you mean fp16?"),
        (("--precision", ""), 2, "expected any of fp32"),
        (("--views", "1,7"), 2, "'7', expected any of 1, 5, 10"),
        (("--backend", "onnx-runtime"), 2, "did you mean onnxruntime?"),
        (("--precision", "bf16"), 2, "nothing is left to evaluate"),
        (("--precision", "int8"), 4, "--int8"),
        (("--output", "rows.parquet"), 2, "known are .jsonl, .csv"),
        (("--html", "data"), 2, "is a folder"),
        (("--plots", "data"), 2, "--plots data is a folder that is not empty"),
        (("--plots", "models/tiny/spec.json"), 2, "spec.json is a file; expected a folder"),
        (("--model", "none"), 2, "no model at none"),
        (("--labels", "none.txt"), 2, "none.txt does not exist"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(
    run: Run, workplace: Path, args: tuple[str, ...], exit_code: int, said: str
) -> None:
    result = run("data", *args)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert said in result.stderr
    assert not (workplace / "rows.parquet").exists()


def test_folders_that_are_no_classes_are_named(run: Run, workplace: Path) -> None:
    (workplace / "data" / "class-1").rename(workplace / "data" / "klass-1")
    result = run("data")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "'klass-1' (nearest: 'class-1')" in result.stderr


def test_an_html_report_without_matplotlib_is_refused_before_anything_runs(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexdeploy.reports import page

    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    result = run("data", "--html", "r.html")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'alexdeploy[report]'" in result.stderr
    assert not (workplace / "r.html").exists()


def test_plots_are_files_without_a_page_as_well_and_replace_older_ones(run: Run, workplace: Path) -> None:
    Path("plots").mkdir()
    Path("plots/classes.csv").write_text("old")
    result = run("data", "--views", "1", "--plots", "plots", "--overwrite")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "wrote plots")
    names = {path.name for path in Path("plots").iterdir()}
    assert {"classes.csv", "confusion-matrix.png", "confusion-matrix.svg"} <= names
    assert Path("plots/classes.csv").read_text() != "old"


def test_no_plots_no_matplotlib(workplace: Path) -> None:
    code = (
        "import sys; from alexdeploy.cli.app import app; "
        "app(['evaluate', 'data', '--views', '1', '--backend', 'onnxruntime'], standalone_mode=False); "
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_escape_codes_in_names_do_not_reach_the_terminal(run: Run, workplace: Path) -> None:
    (workplace / "data" / "class-0" / "red\x1b[31m.jpg").write_bytes(b"x")
    result = run("data", "--views", "1")
    assert result.exit_code == 3
    assert "\x1b" not in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_ctrl_c_prints_the_partial_table_and_resume_goes_on(
    run: Run, workplace: Path, number: signal.Signals, exit_code: int
) -> None:
    for folder in (workplace / "data").iterdir():
        for index in range(24):
            shutil.copy(next(folder.glob("?.jpg")), folder / f"copy-{index}.jpg")
    journal = workplace / "rows.csv.partial"
    # No more than 50 images are decoded before the first of them is counted.
    words = ("data", "--output", "rows.csv", "--threads", "2", "--views", "1")
    done = run_and_signal(workplace, number, "copy-", 80, "evaluate", "--backend", "onnxruntime", *words)
    assert done.exit_code == exit_code
    found = re.search(
        r"^PARTIAL: stopped after ([\d,]+) of 130 images: the figures are of these alone$", done.stdout, re.M
    )
    assert found is not None
    assert re.search(rf"^data: {found[1]} images$", done.stdout, re.M)
    assert re.search(r"^onnxruntime +fp32 +1 +[\d.]+ \[", done.stdout, re.M)
    assert "the rows so far are in rows.csv.partial. To go on, add --resume." in done.stderr
    assert not (workplace / "rows.csv").exists()
    assert run(*words).exit_code == 2
    resumed = run(*words, "--resume")
    assert (resumed.exit_code, journal.exists()) == (0, False)
    assert "data: 130 images" in resumed.stdout
    assert len((workplace / "rows.csv").read_text().splitlines()) == 131


def test_who_resumes_with_other_labels_is_not_told_to_resume(
    run: Run, workplace: Path, tiny_model: ModelFolder
) -> None:
    words = ("data", "--output", "rows.csv")
    (workplace / "labels.txt").write_text("class-0/0.jpg 1\n")

    def stop(event: Plan | ImageResult) -> None:
        if isinstance(event, Plan):
            return
        rows.write(event)
        if event.index == 8:
            raise KeyboardInterrupt

    with RowsFile(Path("rows.csv")) as rows:
        options = EvaluateOptions(backends=("onnxruntime",), num_views=(1, 10), batch_size=1)
        evaluate(tiny_model, "data", options, on_event=stop, kept=rows.kept)
    result = run(*words, "--batch-size", "1", "--resume", "--labels", "labels.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Stopped; the rows so far are in rows.csv.partial.\n" in result.stderr
    assert "add --resume" not in result.stderr
    assert "was written with number of images" in result.stderr


@pytest.mark.parametrize(("option", "name"), [("-o", "rows.csv"), ("-o", "rows.jsonl"), ("--html", "page.html")])
def test_a_file_is_replaced_with_overwrite_alone(run: Run, workplace: Path, option: str, name: str) -> None:
    Path(name).write_text("precious")
    refused = run("data", "--views", "1", option, name)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{name} exists already" in refused.stderr
    assert Path(name).read_text() == "precious"
    result = run("data", "--views", "1", option, name, "--overwrite")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == f"wrote {name}" + ": 10 rows" * (option == "-o")
    assert "precious" not in Path(name).read_text(encoding="utf-8")


def test_rows_have_the_same_values_as_csv_and_as_json_lines(run: Run, workplace: Path) -> None:
    for name in ("rows.csv", "rows.jsonl"):
        assert run("data", "--precision", "fp32,fp16", "--views", "1", "-o", name).exit_code == 0
    nested = [json.loads(line) for line in Path("rows.jsonl").read_text(encoding="utf-8").splitlines()]
    with Path("rows.csv").open(newline="", encoding="utf-8") as file:
        flat = list(csv.DictReader(file))
    for row, cells in zip(nested, flat, strict=True):
        for answer in row.pop("answers"):
            key = "_".join(str(answer[name]) for name in ("backend", "precision", "num_views"))
            row |= {f"{name}_{key}": answer[name] for name in ("label", "index", "probability")}
        assert row.pop("model") == cells.pop("model") == "tiny"
        assert cells == {name: "" if value is None else str(value) for name, value in row.items()}


# The last bits of ONNX Runtime depend on an engine's threads, which replicas on one device share.
@pytest.mark.parametrize("backend", [("openvino", "--precision", "fp32,fp16"), ("onnxruntime", "--threads", "1")])
def test_on_two_devices_rows_and_figures_are_those_of_one(
    program: Run, workplace: Path, backend: tuple[str, ...]
) -> None:
    (workplace / "data" / "class-1" / "6.jpg").write_bytes(b"broken")
    words = ("evaluate", "data", "--views", "1", "--batch-size", "2", "--json", "--backend", *backend)
    documents, rows = [], []
    for number, devices in enumerate(("cpu", "cpu,cpu")):
        result = program(*words, "--devices", devices, "--output", f"{number}.jsonl", "--quiet")
        assert result.exit_code == 3
        document = json.loads(result.stdout)
        assert all(score.pop("seconds") > 0 and score.pop("images_per_second") > 0 for score in document["scores"])
        documents.append(document)
        rows.append(Path(f"{number}.jsonl").read_bytes())
    assert documents[0] == documents[1]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("words", [("--devices", "7"), ("--replicas", "0")])
def test_devices_that_are_not_there_are_told_before_the_images_are_read(
    program: Run, workplace: Path, words: tuple[str, str]
) -> None:
    result = program("evaluate", "no-such-folder", *words)
    assert result.exit_code == 2
    assert "no-such-folder" not in result.stderr


def test_resume_needs_a_file(run: Run) -> None:
    result = run("data", "--resume")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--output FILE" in result.stderr


def test_of_many_broken_images_the_first_are_named(run: Run, workplace: Path) -> None:
    for index in range(23):
        (workplace / "data" / "class-0" / f"b{index:02}.jpg").write_bytes(b"broken")
    result = run("data", "--views", "1")
    assert result.exit_code == 3
    assert "data/class-0/b19.jpg: " in result.stdout
    assert "b20.jpg" not in result.stdout
    assert "and 3 more; --output and --json name them all" in result.stdout
