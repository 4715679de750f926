"""`alexdeploy bench` as a user has it; its figures are tested in tests/benchmark/test_bench.py."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import pytest
from helpers import write_pictures
from patience import PATIENCE, slow_but_for
from program import Run

from alexdeploy.core.model_folder import ModelFolder

QUICK = ("--backend", "onnxruntime", "--precision", "fp32", "--images", "pictures", "--seconds", "0")
ONE = (*QUICK, "--views", "1", "--batch-size", "1")


@pytest.fixture
def workplace(tiny_model: ModelFolder, quick_bench: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models/tiny, and four pictures."""
    folder = tiny_model.path.parents[1]
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)
    write_pictures(folder / "pictures", 4)
    return folder


@pytest.fixture
def run(program: Run, workplace: Path) -> Run:
    return partial(program, "bench")


def test_a_table_for_each_number_of_views_and_the_command_of_the_fastest(run: Run, program: Run) -> None:
    result = run("tiny", *QUICK, "--views", "1,10", "--batch-size", "1,2")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("model models/tiny, spec ")
    head = ["backend", "precision", "batch", "engine", "files", "bound", "p50", "p95", "same", "ceiling", "MB", "first"]
    heads = [number for number, line in enumerate(lines) if line.split() == head]
    assert [lines[number - 1] for number in heads] == ["1 view an image", "10 views an image"]
    for number in heads:
        rows = [line.split() for line in lines[number + 1 : number + 3]]
        assert [row[:3] for row in rows] == [["onnxruntime", "fp32", "1"], ["onnxruntime", "fp32", "2"]]
        assert all("4/4" in row for row in rows)
    commands = [line.strip() for line in lines if line.startswith("  alexdeploy predict ")]
    assert len(commands) == 2
    assert "--views 10" in commands[1]
    # It is a command that runs.
    ran = program(*shlex.split(commands[0])[1:], "--format", "jsonl")
    assert (ran.exit_code, len(ran.rows)) == (0, 4)


@pytest.mark.slow
def test_a_folder_whose_name_begins_with_a_dash_is_one_in_the_command_as_well(
    run: Run, program: Run, workplace: Path
) -> None:
    (workplace / "pictures").rename(workplace / "-p")
    result = run("tiny", *ONE[:4], "--images=-p", "--seconds", "0", "--views", "1", "--batch-size", "1")
    (command,) = [line.strip() for line in result.stdout.splitlines() if line.startswith("  alexdeploy predict ")]
    ran = program(*shlex.split(command)[1:], "--format", "jsonl")
    assert (ran.exit_code, len(ran.rows)) == (0, 4)


def test_what_is_opened_for_its_answers_alone_is_told_as_that(run: Run) -> None:
    lines = run("tiny", *ONE, "--precision", "fp16").stderr.splitlines()
    opened = [line for line in lines if line.startswith("opening ")]
    assert len(opened) == 2
    assert opened[0] == "opening 3 processes, one after the other"
    assert re.fullmatch(r"opening \w+ fp32 1 view as well, for answers to compare with", opened[1])


def test_no_figure_is_cut_on_a_narrow_terminal_and_few_rounds_are_told_on_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("tiny", *ONE, "--min-agreement", "1")
    assert "…" not in result.stdout
    assert re.search(r"onnxruntime +fp32 +1 +[\d,.]+ +[\d,.]+ +[\d,]+ % +[\d,.]+ +[\d,.]+ +4/4", result.stdout)
    assert "memory, first row and share of the ceiling: from 100 columns on, and in --json, --html" in result.stdout
    assert "p99, views/s and load time: in --json and --html" in result.stdout
    # The run is longer than was asked for, too.
    lines = result.stderr.splitlines()
    opening = lines.index("opening 3 processes, one after the other")
    assert re.fullmatch(
        r"a round takes about \d+ s, and to open everything took \d+ s: together more than --seconds 0\. Name fewer "
        r"--backend, --precision, --views or --batch-size for a shorter run",
        lines[opening + 1],
    )
    assert lines[opening + 2] == "measuring, round after round"
    assert lines[-1].startswith("0 s were enough for 1 whole round: a median of so few is doubtful.")
    # All of a few images may be asked for.
    assert "differs" not in result.stderr


def test_json_is_one_document_whose_figures_fit_together(run: Run) -> None:
    result = run("tiny", *ONE, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    (row,) = found["rows"]
    assert row["name"] == "onnxruntime fp32 1 view, batch 1"
    assert row["configuration"] == {"backend": "onnxruntime", "precision": "fp32", "num_views": 1, "batch_size": 1}
    assert row["agreed"] == {"reference": "onnxruntime", "num_images": 4, "num_same": 4, "share": 1.0}
    assert row["images_per_second"] == row["views_per_second"] > 0
    assert 0 < row["start"]["load_seconds"] < row["start"]["first_row_seconds"]
    assert found["machine"]["num_processors"] >= 1
    assert set(found["machine"]["versions"]) == {"alexdeploy", "python", "numpy", "pillow", "onnxruntime"}
    assert found["picked"][0]["configuration"] == row["configuration"]
    assert found["failure"] is None


def test_limits_that_nothing_keeps_are_exit_code_5_after_the_table(run: Run) -> None:
    result = run("tiny", *ONE, "--budget-ms", "0.0001")
    assert result.exit_code == 5
    assert re.search(r"onnxruntime +fp32 +1 +[\d,.]+ +[\d,.]+ ", result.stdout)
    assert "fastest" not in result.stdout
    assert "error: no configuration keeps p95 of a batch at most 0.0001 ms: the quickest batch has a p95 of" in (
        result.stderr
    )
    assert "(onnxruntime fp32 1 view, batch 1)" in result.stderr


@pytest.mark.slow
def test_a_backend_that_breaks_has_its_error_and_the_others_their_figures(run: Run, workplace: Path) -> None:
    (workplace / "models/tiny/model.fp16.onnx").write_bytes(b"no graph")
    result = run("tiny", *ONE, "--precision", "fp32,fp16")
    assert result.exit_code == 0
    assert re.search(r"onnxruntime +fp16 +1 +error", result.stdout)
    assert "onnxruntime fp16 1 view: models/tiny/model.fp16.onnx is not an ONNX file" in result.stdout


def test_an_error_is_one_line_for_all_batches_and_its_cure_is_told_once(run: Run, workplace: Path) -> None:
    with ModelFolder(workplace / "models/tiny").onnx_path("fp16").open("ab") as file:
        file.write(b" ")
    result = run("tiny", *QUICK, "--views", "1,10", "--batch-size", "1,2", "--precision", "fp16")
    assert len(re.findall(r"onnxruntime +fp16 +[12] +error", result.stdout)) == 4
    assert result.stdout.count(" is not an ONNX file") == 2
    lines = [*result.stdout.splitlines(), *result.stderr.splitlines()]
    assert lines.count("Renew it: alexdeploy export models/tiny --fp16") == 1


@pytest.mark.parametrize("limits", slow_but_for([("--budget-ms", "100")], [(), ("--budget-ms", "100")]))
def test_if_all_break_the_command_fails_as_others_do_for_the_first_reason(
    run: Run, workplace: Path, limits: tuple[str, ...]
) -> None:
    (workplace / "models/tiny/model.onnx").write_bytes(b"no graph")
    result = run("tiny", *ONE, *limits, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["num_rounds"] == 0
    assert "error: nothing could be measured: onnxruntime fp32 1 view, batch 1: models/tiny/model.onnx" in result.stderr


def test_what_an_agreement_on_few_images_means_is_told(run: Run) -> None:
    result = run("tiny", *ONE, "--min-agreement", "0.995")
    assert result.exit_code == 0
    assert "an agreement of 0.995 on 4 images allows no answer that differs. At least 200 images" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", "1,0"), "--batch-size 1,0: expected numbers of images from 1 on"),
        (("--batch-size", ""), "--batch-size : expected numbers"),
        (("--views", "3"), "--views 3: found '3', expected any of 1, 5, 10"),
        (("--html", "models"), "--html models is a folder; expected a file"),
        (("--plots", "models"), "--plots models is a folder that is not empty"),
        (("--html", "models/tiny/spec.json"), "--html models/tiny/spec.json exists already"),
        (("--seconds", "inf"), "seconds is inf; expected a finite number"),
        (("--precision", "fp8"), "expected any of fp32, fp16, bf16, int8"),
        (("--precision", "int8"), "nothing is left to measure; onnxruntime int8 is left out: there is no"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("tiny", *ONE, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_the_page_needs_nothing_from_elsewhere_and_has_every_plot(run: Run, workplace: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("tiny", *QUICK, "--views", "10", "--batch-size", "1,2", "--html", "page.html", "--plots", "plots")
    assert result.exit_code == 0
    assert result.stderr.endswith("wrote page.html\nwrote plots\n")
    assert sorted(path.suffix for path in Path("plots").iterdir()) == [*[".png"] * 4, *[".svg"] * 4]
    text = (workplace / "page.html").read_text(encoding="utf-8")
    figures = re.findall(
        r'<figure role="img" aria-label="(.+?)" class="plot">\n<div class="scroll">(<svg.*?</svg>)', text, re.S
    )
    assert [title for title, _ in figures] == [
        "Throughput against batch",
        "Latency of a batch",
        "Where the time of one image goes",
        "Time of each layer: onnxruntime fp32 10 views",
    ]
    for _, svg in figures:
        ET.fromstring(svg)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "<script" not in text
    assert not re.search(r"\bsrc\s*=|@import", text)
    assert all(place.strip("'\"").startswith("#") for place in re.findall(r"url\(([^)]*)\)", text))
    assert "prefers-color-scheme: dark" in text
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_shows_what_was_measured(workplace: Path, number: signal.Signals, exit_code: int) -> None:
    # A shell may have told those who run these tests to ignore Ctrl-C, and they its children.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    # As `quick_bench`.
    script += "from alexdeploy.benchmark import roofline, rounds, statistics\n"
    script += "roofline._CHANNELS, rounds.PAUSE_SECONDS, statistics._MOST_SLICE_SECONDS = 64, 0.0, 0.05\n"
    script += "from alexdeploy.cli.app import main; main()"
    command = [sys.executable, "-c", script, "bench", "tiny", *ONE, "--seconds", "600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("each is measured once"):
            break
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == exit_code
    assert stderr.endswith("Stopped; these are the figures so far.\n")
    assert re.search(r"onnxruntime +fp32 +1 +[\d,.]+ +[\d,.]+ ", stdout)
