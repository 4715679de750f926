"""`alexdeploy train` and `alexdeploy sample` as a user has them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import Result, Run
from safetensors.numpy import load_file

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.training import train
from alexdeploy.training.report import can_write_report

TINY = (
    "--set",
    "architecture.input=67",
    "--set",
    "architecture.width=0.0625",
    "--set",
    "architecture.hidden=[256, 256]",
)


@pytest.fixture
def run(program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the program in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    return program


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Two classes of eight images."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 180)):
        (tmp_path / "halves" / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 60, (64, 64, 3)) + level
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "halves" / name / f"{index}.png")
    return tmp_path / "halves"


def train_halves(run: Run, *arguments: str) -> Result:
    return run("train", "halves", "--recipe", "alexnet-quarter", *TINY, "--epochs", "2", "--threads", "1", *arguments)


def test_train_prints_one_line_an_epoch_and_the_next_command(run, halves):
    result = train_halves(run)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    for word in ("loss", "val top-1 error", "lr", "images/s"):
        assert word in lines[0]
    assert "top-5" not in result.stderr, "of two classes the right one is always among the best five"
    assert "next: alexdeploy export --fp16" in result.stderr
    assert Path("models/alexnet-quarter/spec.json").is_file()


def test_of_six_classes_the_top_5_error_is_told_in_every_line(run, halves):
    for index in range(4):
        shutil.copytree(halves / "dark", halves / f"dark-{index}")
    result = train_halves(run)
    lines = [line for line in result.stderr.splitlines() if line.startswith(("epoch ", "  one view:", "  ten views:"))]
    assert len(lines) == 4
    interval = r"( \(95 % interval: [\d.]+% to [\d.]+%\))?"
    assert all(re.search(rf"top-1 error +[\d.]+%{interval},? +top-5 +[\d.]+%", line) for line in lines), lines


def test_json_is_one_document_and_nothing_else(run, halves):
    result = train_halves(run, "--json", "--name", "mine")
    document = json.loads(result.stdout)
    assert document["model"] == "models/mine"
    assert document["classes"] == ["dark", "light"]
    assert document["num_epochs"] == 2
    assert document["val_top5_error"] == document["val_top5_error_10_views"] == 0.0


def test_a_folder_with_a_model_is_not_touched_without_being_told(run, halves):
    assert train_halves(run).exit_code == 0
    before = Path("models/alexnet-quarter/weights.safetensors").read_bytes()
    result = train_halves(run)
    assert result.exit_code == 2
    for hint in ("--resume", "--name", "--overwrite"):
        assert hint in result.stderr
    assert Path("models/alexnet-quarter/weights.safetensors").read_bytes() == before
    assert train_halves(run, "--overwrite").exit_code == 0


def test_resuming_a_finished_run_says_so(run, halves):
    train_halves(run)
    result = train_halves(run, "--resume")
    assert result.exit_code == 0
    assert "all 2 epochs are done" in result.stderr


def test_broken_images_give_exit_code_3_and_their_names(run, halves):
    (halves / "dark" / "3.png").write_bytes(b"nothing")
    result = train_halves(run)
    assert result.exit_code == 3
    assert "3.png" in result.stderr
    assert "--skip-broken" in result.stderr


def test_images_left_out_are_named_the_first_few_and_in_the_json_all(run, halves):
    for index in range(7):
        (halves / "dark" / f"bad{index}.png").write_bytes(b"nothing")
    result = train_halves(run, "--skip-broken", "--json")
    assert result.exit_code == 0, result.stderr
    named = [line for line in result.stderr.splitlines() if line.startswith("warning: halves/dark/bad")]
    assert len(named) == 5
    assert all(line.endswith(".png cannot be decoded and is left out") for line in named)
    assert "\nwarning: and 2 more\nwarning: 7 images left out in all\n" in result.stderr
    document = json.loads(result.stdout)
    expected = [f"halves/dark/bad{index}.png" for index in range(7)]
    assert (document["num_skipped"], sorted(document["skipped"])) == (7, expected)
    finished = json.loads(train_halves(run, "--resume", "--json").stdout)
    assert sorted(finished["skipped"]) == expected


def test_one_image_left_out_is_one_image_whatever_its_name(run, halves):
    (halves / "dark" / os.fsdecode(b"caf\xe9\x1b.png")).write_bytes(b"nothing")
    result = train_halves(run, "--skip-broken", "--json")
    assert result.exit_code == 0, result.stderr
    name = r"halves/dark/caf\xe9"
    assert rf"warning: {name}\x1b.png cannot be decoded" in result.stderr
    assert "\nwarning: 1 image left out in all\n" in result.stderr
    assert json.loads(result.stdout)["skipped"] == [f"{name}\x1b.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume", "--overwrite"), "Give one of them"),
        (
            ("--set", "training.epochs=7"),
            "--set training.epochs and --epochs are for the same thing\nGive one of them.",
        ),
        (("--set", "training.batch_size = 4", "--batch-size", "8"), "--set training.batch_size and --batch-size are"),
        (
            ("--pretrained", "x", "--freeze", "conv1", "--set", "training.freeze_epoch=3"),
            "--set training.freeze_epoch and --freeze are for the same thing",
        ),
        (("--precision", "int8"), "precision"),
        (("--devices", "toaster"), "Devices: cpu, cuda"),
        (("--learning-rate", "0"), "learning_rate"),
        (("--name", "../x", "--overwrite"), "--name '../x' is not a name of a folder under models/"),
        (("--name", "a/b"), "--name 'a/b' is not a name of a folder under models/"),
        (("--name", ""), "--name '' is not a name of a folder under models/"),
    ],
)
def test_what_makes_no_sense_gives_exit_code_2(run, halves, arguments, said):
    result = train_halves(run, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_with_no_data_the_sample_and_photographs_are_rendered(run, monkeypatch):
    monkeypatch.setattr(train, "SAMPLE_NUM_TRAIN", 2)
    monkeypatch.setattr(train, "SAMPLE_NUM_VAL", 1)
    result = run("train", *TINY, "--epochs", "1")
    assert result.exit_code == 0, result.stderr
    assert len(list(Path("data/sample/train").rglob("*.jpg"))) == 20
    assert len(list(Path("images").iterdir())) == 24
    assert Path("models/alexnet-quarter/spec.json").is_file()
    shutil.rmtree("images")
    Path("images").mkdir()
    assert run("train", *TINY, "--epochs", "1", "--overwrite").exit_code == 0
    assert not list(Path("images").iterdir())


def test_without_pytorch_it_says_so_before_anything_is_rendered(run, monkeypatch):
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    result = run("train")
    assert result.exit_code == 2
    assert "pip install 'alexdeploy[train]'" in result.stderr
    assert not Path("data").exists()


def test_what_limits_the_speed_is_said_after_the_first_epoch_and_in_the_json(run, halves):
    result = train_halves(run, "--json")
    said = [line for line in result.stderr.splitlines() if "the loader alone gives" in line]
    assert len(said) == 1
    assert "steps alone" in said[0]
    document = json.loads(result.stdout)
    assert document["loader_images_per_second"] > 0
    assert document["step_images_per_second"] > 0
    assert document["images_per_second"] > 0


def test_without_a_compiler_compile_says_what_it_needs(run, halves, tmp_path, monkeypatch):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "no-such-compiler")))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    result = train_halves(run, "--compile")
    assert result.exit_code == 5
    assert "torch.compile does not work here" in result.stderr
    assert "apt install g++" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same(run, halves, tmp_path):
    """In a process of its own: what torch.compile warns of inside is not ours to mend."""
    arguments = ["train", "halves", "--recipe", "alexnet-quarter", *TINY, "--epochs", "1", "--threads", "1", "--json"]
    expected = json.loads(run(*arguments).stdout)["val_loss"]
    command = [sys.executable, "-m", "alexdeploy", *arguments, "--overwrite", "--compile"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_pretrained_goes_on_from_a_model_under_another_name(run, halves):
    train_halves(run, "--name", "first")
    result = run("train", "halves", "--pretrained", "first", "--epochs", "1", "--threads", "1", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["model"] == "models/first-tuned"
    assert document["parent"] == "first"
    assert len(document["parent_weights_sha256"]) == 64
    assert "starting from first: same 2 classes, so fc8 is kept too" in result.stderr


def test_freeze_keeps_layers_whatever_the_recipe_says(run, halves):
    train_halves(run, "--name", "first")
    arguments = ("--pretrained", "first", "--epochs", "1", "--threads", "1", "--recipe", "alexnet-chm")
    result = run("train", "halves", *arguments, "--freeze", "conv1, conv2")
    assert result.exit_code == 0, result.stderr
    assert "\nfrozen: conv1, conv2\n" in result.stderr
    before, after = (load_file(f"models/{name}/weights.safetensors") for name in ("first", "first-tuned"))
    same = {name for name in after if (after[name] == before[name]).all()}
    assert same == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--pretrained", "first", "--name", "first"), 2, "the new model would take the place of that one"),
        (("--pretrained", "models/first", "--name", "first", "--overwrite"), 2, "Give it another name: --name NAME"),
        (("--pretrained", "frist"), 2, "Models here: first"),
        (("--pretrained", "first", "--freeze", "conv9"), 2, "conv1, conv2, conv3, conv4, conv5, fc6"),
        (("--freeze", "conv1"), 2, "Name one: --pretrained MODEL"),
        (("--pretrained", "first", "--set", "preprocessing.mean=channel"), 2, "trained with its own preprocessing"),
        (("--pretrained", "first", "--set", "architecture.width=0.5"), 2, "leave the architecture as it is"),
    ],
)
def test_a_parent_that_cannot_be_taken_so_is_refused(run, halves, arguments, code, said):
    train_halves(run, "--name", "first")
    result = run("train", "halves", *arguments)
    assert result.exit_code == code
    assert said in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="FIFOs of POSIX")
def test_a_fifo_among_the_images_is_a_broken_image(run, halves):
    os.mkfifo(halves / "dark" / "fifo.png")
    result = train_halves(run)
    assert result.exit_code == 3
    assert "fifo.png: is not a regular file" in result.stderr


def test_the_classes_are_named_at_the_start(run, halves):
    result = train_halves(run)
    assert "classes: dark, light\n" in result.stderr
    for index in range(10):
        shutil.copytree(halves / "dark", halves / f"dark-{index}")
    result = train_halves(run, "--overwrite")
    assert "classes: dark, dark-0, dark-1, dark-2, dark-3, dark-4, dark-5, dark-6, dark-7, dark-8 and 2 more\n" in (
        result.stderr
    )


def test_a_model_trained_among_the_classes_is_none_of_them_the_next_time(run, halves, monkeypatch):
    monkeypatch.chdir(halves)
    words = ("train", ".", "--recipe", "alexnet-quarter", *TINY, "--epochs", "1", "--threads", "1")
    assert run(*words, "--name", "first").exit_code == 0
    again = run(*words, "--name", "second", "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["classes"] == ["dark", "light"]
    assert ".: alexdeploy's own folders ignored: models\n" in again.stderr
    resumed = run(*words, "--name", "first", "--resume")
    assert resumed.exit_code == 0, resumed.stderr


def test_a_folder_that_is_no_class_can_be_excluded(run, halves):
    (halves / "empty").mkdir()
    refused = train_halves(run)
    assert refused.exit_code == 3
    assert "--exclude empty" in refused.stderr
    result = train_halves(run, "--exclude", "empty", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["classes"] == ["dark", "light"]
    misspelt = train_halves(run, "--exclude", "emtpy", "--overwrite")
    assert (misspelt.exit_code, "--exclude emtpy: no such folder in halves" in misspelt.stderr) == (2, True)


def test_sample_writes_what_it_is_asked_for(run):
    result = run("sample", "shapes", "--num-train", "2", "--num-val", "1")
    assert result.exit_code == 0
    assert len(list(Path("shapes/train/disc").iterdir())) == 2
    assert len(list(Path("shapes/val/disc").iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stopping_saves_and_resuming_goes_on(run, halves, tmp_path, number, code):
    arguments = ["train", "halves", "--recipe", "alexnet-quarter", *TINY, "--epochs", "200", "--threads", "1"]
    command = [sys.executable, "-m", "alexdeploy", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == code, said
    assert "stopped; " in said
    assert "--resume" in said
    num_epochs = 1 + said.count("\nepoch ") + said.startswith("epoch ")
    arguments[arguments.index("200")] = str(num_epochs + 2)
    resumed = run(*arguments, "--resume")
    assert resumed.exit_code == 0
    assert "\nresuming after" in resumed.stderr


@pytest.mark.skipif(not can_write_report(), reason="needs matplotlib")
def test_the_report_is_named(run, halves, drawn_curves):
    result = train_halves(run)
    assert re.search(r"^wrote models/\S+/checkpoints/report\.html and curves\.png$", result.stderr, re.MULTILINE)


def test_one_busy_processor_does_not_stop_the_threads_of_training(run, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert run("train", "GONE").exit_code == 2
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_where_graphs_are_already_the_next_command_renews_them(run, halves):
    assert train_halves(run).exit_code == 0
    folder = ModelFolder(Path("models/alexnet-quarter"))
    folder.onnx_path().touch()
    folder.onnx_path("fp16").touch()
    again = train_halves(run, "--resume")
    assert again.exit_code == 0, again.stderr
    assert again.stderr.splitlines()[-1] == "next: alexdeploy export models/alexnet-quarter --fp16"
    folder.candidate.path.mkdir(parents=True)
    folder.candidate.write_spec(folder.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    again = train_halves(run, "--resume")
    assert again.exit_code == 0, again.stderr
    assert "has newer weights (000000000000, epoch 7) that are not exported" in again.stderr.splitlines()[-1]


@pytest.mark.parametrize("devices", ["cpu,cpu", "all"])
def test_one_process_trains_on_one_device(run, halves, devices):
    result = train_halves(run, "--devices", devices)
    assert result.exit_code == 2
    assert f"--devices {devices}: expected one device" in result.stderr


def test_json_of_a_sample_says_what_was_rendered(run):
    result = run("sample", "made", "--num-train", "1", "--num-val", "1", "--seed", "3", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"folder": "made", "num_train": 1, "num_val": 1, "seed": 3}
    assert len(list(Path("made").rglob("*.jpg"))) == 20
