from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import write_pictures
from program import Run, run_and_signal
from rich.progress import Progress, TaskID

from alexdeploy.cli import prepare
from alexdeploy.images.packed import open_packed
from alexdeploy.training.events import Listed, Packed

QUICK = ("--recipe", "alexnet-quarter", "--set", "architecture.width=0.0625", "--set", "architecture.hidden=[64,64]")


@pytest.fixture
def run(program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy` in this process, where photos/train and photos/val are, of two classes."""
    for place, name in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "photos" / "train" / name, 6, seed=place)
        write_pictures(tmp_path / "photos" / "val" / name, 2, seed=10 + place)
    monkeypatch.chdir(tmp_path)
    return program


def test_a_folder_is_packed_and_trained_on_and_the_next_command_is_named(run: Run) -> None:
    result = run("prepare", "photos", "set")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "2 classes, 12 training and 4 validation images from photos\n"
        "wrote set: 12 training and 4 validation images, 3 MB in 2 shards\n"
        "next: alexdeploy train set\n"
    )
    trained = run("train", "set", "--epochs", "1", "--name", "mine", "--json", "--threads", "1", *QUICK)
    assert trained.exit_code == 0
    facts = json.loads(trained.stdout)
    assert (facts["data"], facts["num_train"], facts["num_val"], facts["num_skipped"]) == ("set", 12, 4, 0)
    assert "from set\n" in trained.stderr


def test_a_broken_image_is_told_and_the_exit_code_is_3_and_training_says_so(run: Run) -> None:
    Path("photos/train/cat/002.png").write_bytes(b"broken")
    result = run("prepare", "photos", "set", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert (document["num_train"], document["num_val"], document["num_shards_made"]) == (11, 4, 2)
    assert [item["name"] for item in document["broken"]] == ["train/cat/002.png"]
    assert "warning: train/cat/002.png was left out: " in result.stderr
    assert "warning: 1 image left out in all: set/broken.json" in result.stderr
    again = run("prepare", "photos", "set")
    assert again.exit_code == 3
    assert "2 shards of 2 were there already" in again.stderr
    trained = run("train", "set", "--epochs", "1", "--name", "mine", *QUICK)
    assert trained.exit_code == 0
    assert "1 of 16 images could not be decoded when the set was packed; set/broken.json" in trained.stderr


def test_lists_are_packed_as_the_folders_are(run: Run) -> None:
    for split in ("train", "val"):
        lines = [
            f"{path.relative_to('photos')} {path.parent.name}" for path in sorted(Path("photos", split).rglob("*.png"))
        ]
        Path(f"{split}.txt").write_text("\n".join(lines))
    assert run("prepare", "photos", "set").exit_code == 0
    assert run("prepare", "photos", "listed", "--train-list", "train.txt", "--val-list", "val.txt").exit_code == 0
    by_folder, by_list = open_packed("set").index, open_packed("listed").index
    assert by_list.train == by_folder.train
    assert by_list.statistics == by_folder.statistics
    assert by_list.plan.sources_sha256 == by_folder.plan.sources_sha256
    # What finishes it has the options in it.
    Path("listed/index.json").unlink()
    refused = run("train", "listed", *QUICK)
    assert refused.exit_code == 3
    command = "alexdeploy prepare photos listed --train-list train.txt --val-list val.txt"
    assert f"error: listed is not finished: 2 of 2 shards are written\nResume it: {command}\n" in refused.stderr
    assert run(*command.split()[1:]).exit_code == 0
    assert open_packed("listed").index == by_list


def test_a_list_of_other_images_is_a_usage_error(run: Run) -> None:
    Path("train.txt").write_text("x.JPEG, 0\ny.JPEG, 1\n")
    result = run("prepare", "photos", "set", "--train-list", "train.txt")
    assert result.exit_code == 2
    assert "the list has 'x.JPEG', the folder 'train/cat/000.png'" in result.stderr
    assert not Path("set").exists()


def test_what_is_excluded_stays_so_where_the_command_is_named(run: Run) -> None:
    write_pictures(Path("photos/train/extra"), 2)
    refused = run("prepare", "photos", "set")
    assert (refused.exit_code, "Missing in the second: extra" in refused.stderr) == (3, True)
    assert run("prepare", "photos", "set", "--exclude", "extra").exit_code == 0
    assert open_packed("set").classes == ("cat", "dog")
    Path("set/index.json").unlink()
    unfinished = run("train", "set", *QUICK)
    assert "Resume it: alexdeploy prepare photos set --exclude extra\n" in unfinished.stderr
    assert run("prepare", "photos", "set", "--exclude", "extra").exit_code == 0


def test_images_that_have_changed_are_told_and_the_command_that_failed_is_no_cure(run: Run) -> None:
    assert run("prepare", "photos", "set").exit_code == 0
    shutil.copy("photos/train/cat/000.png", "photos/train/cat/more.png")
    changed = run("prepare", "photos", "set")
    assert changed.exit_code == 2
    assert changed.stderr.endswith(
        "error: the images have changed since set was packed: "
        "12 training and 4 validation images, not 13 training and 4 validation images\n"
        "Replace it: --overwrite, or name another folder.\n"
    )
    assert run("prepare", "photos", "set", "--overwrite").exit_code == 0
    assert len(open_packed("set").train) == 13
    other = run("prepare", "photos", "set", "--jpeg", "90")
    assert other.exit_code == 2
    assert other.stderr.endswith(
        "error: set holds another packed set: of raw pixels, not --jpeg 90\n"
        "Go on with that: alexdeploy prepare photos set\n"
        "Replace it: --overwrite, or name another folder.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photos", "photos"), "photos exists but is not a packed set"),
        (("photos", "photos/set"), "photos/set lies in photos, where each folder is a class of images"),
        (("photos/train", "photos/val/cat/set", "--val", "photos/val"), "photos/val/cat/set lies in photos/val"),
        (("photos", "set", "--val-list", "a.txt"), "belong to a --train-list"),
        (("photos", "set", "--train-list", "a.txt", "--val", "photos/val"), "with --train-list it is a list"),
        (("photos/train", "set", "--val-fraction", "2"), "expected a number between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("prepare", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("set").exists()


def test_validation_images_of_a_set_were_chosen_when_it_was_packed(run: Run) -> None:
    assert run("prepare", "photos", "set").exit_code == 0
    for words in (("--val", "photos/val"), ("--val-fraction", "0.2")):
        result = run("train", "set", *words, *QUICK)
        assert result.exit_code == 2
        assert "its validation images were chosen when it was packed" in result.stderr


def test_a_recipe_that_warps_is_refused_on_a_set_that_was_cropped(run: Run) -> None:
    assert run("prepare", "photos", "set").exit_code == 0
    result = run("train", "set", "--set", "preprocessing.resize=warp", *QUICK)
    assert result.exit_code == 3
    assert "set was packed with --resize crop; expected warp" in result.stderr
    assert "Pack the images again: alexdeploy prepare photos OUT --resize warp" in result.stderr
    assert not Path("models").exists()


def test_ctrl_c_exits_130_and_the_same_command_goes_on(run: Run) -> None:
    for index in range(100):
        shutil.copy("photos/train/cat/000.png", f"photos/train/cat/more{index:02}.png")
    # Some are packed by then, and more are to come.
    done = run_and_signal(Path.cwd(), signal.SIGINT, "more", 50, "prepare", "photos", "set", "--threads", "1")
    assert done.exit_code == 130
    assert "stopped; " in done.stderr
    assert not list(Path().glob("set/**/.*"))
    assert run("prepare", "photos", "set").exit_code == 0
    assert len(open_packed("set").train) == 112


def test_a_model_is_calibrated_on_a_set(run: Run, tiny_model) -> None:
    assert run("prepare", "photos", "set").exit_code == 0
    result = run("calibrate", tiny_model.path, "set", "--num-images", "5", "--json")
    assert result.exit_code == 0
    names = [image["name"] for image in json.loads(result.stdout)["images"]]
    by_folder = run("calibrate", tiny_model.path, "photos", "--num-images", "5", "--json")
    assert names == [image["name"].replace("photos/", "set!", 1) for image in json.loads(by_folder.stdout)["images"]]
    assert json.loads(result.stdout)["tensors"] == json.loads(by_folder.stdout)["tensors"]
    assert run("prepare", "photos", "warped", "--resize", "warp").exit_code == 0
    refused = run("calibrate", tiny_model.path, "warped")
    assert refused.exit_code == 3
    assert "was packed with --resize warp" in refused.stderr


def test_data_whose_path_is_not_utf8_is_packed(run: Run) -> None:
    name = os.fsdecode(b"caf\xe9")
    Path("photos").rename(name)
    out = os.fsdecode(b"s\xe9t")
    result = run("prepare", name, out, "--json")
    assert (result.exit_code, json.loads(result.stdout)["set"]) == (0, "s\\xe9t")
    assert open_packed(out).index.plan.arguments == ("caf\\xe9",)


def test_a_class_that_is_not_utf8_is_an_error_at_once(run: Run) -> None:
    for split in ("train", "val"):
        Path("photos", split, "cat").rename(Path("photos", split, os.fsdecode(b"caf\xe9")))
    result = run("prepare", "photos", "set")
    assert result.exit_code == 3
    assert "the class 'caf\\\\xe9' has a name that is not UTF-8\nRename it." in result.stderr
    assert not Path("set").exists()


def test_a_set_is_not_written_to_a_url(run: Run) -> None:
    result = run("prepare", "photos", "s3://bucket/set")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "OUT s3://bucket/set is a URL; expected a local folder" in result.stderr


def test_with_verbose_every_image_that_is_left_out_is_named(run: Run) -> None:
    for index in range(6):
        Path(f"photos/train/cat/{index:03}.png").rename(f"photos/train/cat/broken-{index}.png")
        Path(f"photos/train/cat/{index:03}.png").write_bytes(Path(f"photos/train/cat/broken-{index}.png").read_bytes())
        Path(f"photos/train/cat/broken-{index}.png").write_bytes(b"broken")
    few = run("prepare", "photos", "set")
    assert (few.exit_code, few.stderr.count("was left out: ")) == (3, 5)
    assert "and 1 more" in few.stderr
    all_ = run("prepare", "photos", "set", "--verbose")
    assert (all_.exit_code, all_.stderr.count("was left out: ")) == (3, 6)


def test_a_terminal_shows_the_archives_that_are_listed_and_the_images_that_are_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[str, int, int | None]] = []

    def record(bar: Progress, task: TaskID, *, description: str, completed: int, visible: bool, **more: int) -> None:
        assert visible
        shown.append((description, completed, more.get("total")))

    monkeypatch.setattr(Progress, "update", record)
    with prepare._watching() as show:
        show(Listed(num_found=1000))
        show(Packed(folder=Path("set"), num_done=3, num_total=12))
    assert shown == [("reading the archives' headers", 1000, None), ("packing set", 3, 12)]


def test_files_that_are_no_images_are_told(run: Run) -> None:
    Path("photos/train/cat/notes.txt").write_text("cats")
    result = run("prepare", "photos", "set")
    assert result.exit_code == 0
    assert "skipped 1 file that is not an image (.txt 1) in the class folders" in result.stderr
