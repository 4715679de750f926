"""What `python -m benchmarks` counts and keeps: waves of batches, drawn images, engines, and the file of figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_pictures
from results_helpers import MACHINE

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.packed import open_packed
from benchmarks.full_decode import full_decode
from benchmarks.growth import GrowthOptions, listed, measure_batches, measure_decisions, measure_inputs, whole_waves
from benchmarks.machine import check_memory, choose_device
from benchmarks.network import check_model
from benchmarks.photographs import render_photographs
from benchmarks.process import Process
from benchmarks.raw_tensorrt import ten_view_engine
from benchmarks.report import markdown
from benchmarks.results import FORMAT, code_version, measure, outdated, read_parts
from benchmarks.storage import measure_storage
from benchmarks.subjects import Ask, Reply, Setup
from benchmarks.training import TrainingOptions, draw, measure_loader


def silent(text: str) -> None:
    """Nothing is said."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(batch size, number of files) of each call, of processes that answer at once and run three streams."""
    calls: list[tuple[int, int]] = []

    def start(self: Process, setup: Setup) -> None:
        self.setup, self.opened, self.peak_bytes = setup, Reply(num_streams=3), None

    def ask(self: Process, ask: Ask) -> Reply:
        calls.append((self.setup.batch_size, len(ask.files)))
        return Reply(images_per_second=float(len(ask.files)), peak_bytes=1)

    monkeypatch.setattr(Process, "__init__", start)
    monkeypatch.setattr(Process, "__exit__", lambda *_: None)
    monkeypatch.setattr(Process, "ask", ask)
    monkeypatch.setattr("benchmarks.process._PAUSE_SECONDS", 0.0)
    return calls


def test_numbers_are_rounded_up_to_whole_waves_and_to_four_of_them() -> None:
    assert [whole_waves(count, 16) for count in (1, 64, 65, 100, 10_000)] == [64, 64, 80, 112, 10_000]


def test_files_are_listed_again_where_more_are_wanted() -> None:
    assert listed(("a", "b"), 5) == ("a", "b", "a", "b", "a")


def test_inputs_fill_the_batches_of_all_streams(asked: list[tuple[int, int]]) -> None:
    options = GrowthOptions(files=("a", "b"), num_rounds=1, counts=(100, 1000))
    found = measure_inputs(ModelFolder(Path("model")), options, silent)
    # 3 streams of 8 images: 96 are four waves, 120 five; two waves before each.
    assert sorted(asked) == [(8, 48), (8, 48), (8, 120), (8, 1008)]
    assert found["seconds_per_image"] == {"120": [1 / 120], "1008": [1 / 1008]}
    assert found["wave"] == 24


def test_each_batch_size_fills_the_batches_of_all_streams(asked: list[tuple[int, int]]) -> None:
    options = GrowthOptions(files=("a",), num_rounds=1, batch_sizes=(1, 64), num_batch_images=128)
    measure_batches(ModelFolder(Path("model")), options, silent)
    # 43 waves of 3 images hold 128; four of 192 hold 768. In FP32 and in INT8.
    assert sorted(asked) == sorted(2 * [(1, 6), (1, 129), (64, 384), (64, 768)])


def test_a_side_says_how_many_streams_it_has(tiny_model: ModelFolder) -> None:
    from alexdeploy.inference.predictor import Predictor

    with Predictor(tiny_model.path, num_views=10) as predictor:
        expected = predictor.info.num_streams
    with Process(Setup(side="ours", model=str(tiny_model.path))) as process:
        assert process.opened.num_streams == expected


def test_decisions_are_counted_on_enlarged_photographs(tiny_model: ModelFolder, tmp_path: Path) -> None:
    files = sorted(map(str, write_pictures(tmp_path / "pictures", 1).iterdir()))
    found = measure_decisions(tiny_model, files, "fp32", silent)
    assert found["num_images"] == 1
    assert found["num_same"] in (0, 1)
    assert 0 <= found["mean_difference"] <= found["largest_difference"] < 0.1


@pytest.mark.parametrize("resize", ["crop", "warp"])
def test_decoding_in_full_takes_the_part_of_the_picture_that_ours_takes(resize: Any, tmp_path: Path) -> None:
    (path,) = render_photographs(tmp_path / "photographs", 1)
    content = Path(path).read_bytes()
    other = decode(content, "warp" if resize == "crop" else "crop")
    found = full_decode(content, resize).astype(int)
    assert np.abs(found - decode(content, resize)).mean() < 2 < np.abs(found - other).mean()


def class_folders(folder: Path, num_images: int) -> Path:
    for number, name in enumerate(("cats", "dogs")):
        write_pictures(folder / name, num_images, seed=number)
    return folder


def test_only_drawn_images_are_in_the_folder_of_the_loader(tmp_path: Path) -> None:
    data = read_image_folder(class_folders(tmp_path / "data", 6))
    folder = draw(data, 4, tmp_path / "drawn", seed=0)
    drawn = read_image_folder(folder)
    found = {(str(Path(path).resolve()), label) for path, label, _ in drawn.train}
    assert len(found) == 4
    assert found <= {(str(Path(path).resolve()), label) for path, label, _ in data.train}
    assert drawn.classes == data.classes
    assert len(drawn.val) == 2


@pytest.mark.slow
def test_the_loader_is_measured_on_the_same_images_from_files_and_from_both_kinds_of_sets(tmp_path: Path) -> None:
    options = TrainingOptions(num_rounds=2, num_images=8, loader_batch_size=4, seconds=0.0)
    found = measure_loader(class_folders(tmp_path / "data", 6), tmp_path, options, silent)
    assert {name: len(rates) for name, rates in found["rates"].items()} == {
        "files": 2,
        "packed": 2,
        "packed --jpeg 95": 2,
    }
    assert (found["num_images"], found["num_found"], found["num_rounds"]) == (8, 10, 2)
    files, packed = read_image_folder(tmp_path / "drawn").train, open_packed(tmp_path / "packed").train
    assert packed.read(np.arange(8)).tolist() == [decode(Path(file.path).read_bytes()).tolist() for file in files]
    assert len(open_packed(tmp_path / "packed --jpeg 95").train) == 8
    # Raw pixels: 8 images, and one of each class for validation.
    assert found["made"]["packed"]["bytes"] == 10 * 256 * 256 * 3


def test_a_part_that_was_not_asked_for_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results" / "machine.json"
    measure({"peers": lambda: {"old": 1}, "inputs": lambda: {"old": 1}}, path, command="as before", load=0.5)
    before = read_parts(path)
    found = measure({"inputs": lambda: {"new": 2}}, path, command="again", load=0.25)
    assert read_parts(path) == json.loads(json.dumps(found))
    assert found["peers"] == before["peers"]
    assert found["inputs"].keys() == {"new", "date", "commit", "command", "machine"}
    assert {"python", "openvino", "onnxruntime"} <= found["inputs"]["machine"]["versions"].keys()
    assert (found["peers"]["machine"]["load_start"], found["inputs"]["machine"]["load_start"]) == (0.5, 0.25)


@pytest.mark.parametrize("content", ["{}", '{"peers": {}}', f'{{"format": {FORMAT + 1}, "parts": {{}}}}', "[]", "{"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match="Delete it"):
        read_parts(path)


def test_code_is_known_by_the_commit_that_changed_it_and_by_what_has_changed_since(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *names, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "alexdeploy").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "alexdeploy" / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "code")
    commit = git("log", "-1", "--format=%h")
    # Figures are written as they are measured, part by part.
    (tmp_path / "benchmarks" / "results" / "machine.json").write_text("{}")
    assert code_version(tmp_path) == commit
    git("add", ".")
    git("commit", "-q", "-m", "figures")
    assert code_version(tmp_path) == commit
    (tmp_path / "alexdeploy" / "code.py").write_text("2")
    assert code_version(tmp_path) == f"{commit}+"


def test_code_that_is_in_no_checkout_is_known_by_its_version(tmp_path: Path) -> None:
    from alexdeploy import __version__

    assert code_version(tmp_path) == __version__


def test_parts_of_an_older_commit_are_marked_with_their_bars() -> None:
    part = {"command": "python", "machine": MACHINE}
    new, old = {"date": "2026-02-02", "commit": "new"}, {"date": "2026-01-01", "commit": "old"}
    decisions = {"num_same": 200, "num_images": 200, "judge": "it", "num_classes": 5}
    decisions |= {"mean_difference": 0.0, "largest_difference": 0.0}
    inputs: dict[str, Any] = {"precision": "int8", "num_rounds": 1, "wave": 16}
    inputs |= {"seconds_per_image": {"112": [0.1]}, "peak_bytes": {"112": [1]}}
    results = {"inputs": inputs | part | new, "decisions": decisions | part | old}
    assert outdated(results) == {"decisions": "old"}
    text = markdown(results)
    assert "what the code does: decisions (old)." in text
    assert "decisions equal to those of decoding in full | ≥ 0.99 | 1.000, met, at old |" in text
    assert "| cost of an image, dearest over cheapest number of inputs | ≤ 1.1 | 1.00, met |" in text


def test_too_little_memory_is_told_before_anything_is_opened() -> None:
    check_memory(13_000_000_000, 13_000_000_000)
    check_memory(13_000_000_000, None)
    with pytest.raises(SystemExit, match=r"takes 13 GB .* 4\.2 GB are free"):
        check_memory(13_000_000_000, 4_200_000_000)


def test_a_gpu_that_is_not_there_is_refused_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device(None, needs_engines=False) == "cpu"
    with pytest.raises(SystemExit, match="no GPU"):
        choose_device("cuda", needs_engines=False)
    with pytest.raises(SystemExit, match="expected one of cpu, cuda"):
        choose_device("gpu", needs_engines=False)


def test_a_missing_engine_is_told_with_the_command_that_builds_it(tiny_model: ModelFolder) -> None:
    with pytest.raises(SystemExit, match=r"alexdeploy build .* --int8 --tencrop --max-batch 8$"):
        ten_view_engine(tiny_model, "int8", 8)


def test_another_network_than_that_of_the_peers_is_refused(tiny_model: ModelFolder) -> None:
    with pytest.raises(SystemExit, match="not the network of the recipe alexnet"):
        check_model(tiny_model)


def test_one_view_is_measured_from_each_way_to_store_the_same_photographs(
    tiny_model: ModelFolder, tmp_path: Path
) -> None:
    files = tuple(sorted(map(str, write_pictures(tmp_path / "pictures", 4).iterdir())))
    options = GrowthOptions(files=files, precision="fp32", num_rounds=1)
    part = measure_storage(tiny_model, tmp_path, options, silent)
    assert min(min(rates) for rates in part["rates"].values()) > 0
    # 256 x 256 x 3 bytes an image.
    assert part["bytes"]["packed"] == 4 * 196_608
    assert part["bytes"]["files as they are"] == sum(Path(file).stat().st_size for file in files)
    origin = {"date": "2026-01-01", "commit": "abc1234", "command": "", "machine": MACHINE}
    part["rates"]["packed"] = [2 * part["rates"]["files as they are"][0]]
    lines = markdown({"storage": part | origin}).splitlines()
    assert next(line for line in lines if line.startswith("| packed | 197 |")).endswith("| 2.00 |")
