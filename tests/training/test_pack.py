from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from training_helpers import tiny_recipe

from alexdeploy.core.errors import DataError, OutputError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images import packed
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.images.originals import from_labelled
from alexdeploy.images.packed import open_packed
from alexdeploy.training.checkpoint import read_checkpoint
from alexdeploy.training.data import open_data
from alexdeploy.training.events import Event, Notice, Started, Step
from alexdeploy.training.pack import PackOptions, Prepared, pack_images
from alexdeploy.training.trainer import RunOptions, train

ONE_THREAD = RunOptions(device="cpu", threads=1)
SMALL = PackOptions(images_per_shard=7, num_threads=2)


def pack(data: LabelledImages, folder: Path, options: PackOptions = SMALL) -> Prepared:
    return pack_images(from_labelled(data), folder, options, lambda done, total: None)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: ModelFolder) -> dict[str, bytes]:
    """Weights and velocities of the last checkpoint, and the published weights, to the bit."""
    learner = read_checkpoint(folder.checkpoint_path).learner
    kinds = ("weights", "velocities")
    tensors = {f"{kind} {name}": value.numpy().tobytes() for kind in kinds for name, value in learner[kind].items()}
    return tensors | {"published": folder.weights_path.read_bytes()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> ModelFolder:
    """Three epochs on the folder itself."""
    folder = ModelFolder(tmp_path_factory.mktemp("whole") / "model")
    train(read_image_folder(tiny_folder), tiny_recipe(), folder, ONE_THREAD, lambda event: None)
    return folder


def test_rows_labels_and_names_are_those_of_the_folder(tmp_path, tiny_data):
    prepared = pack(tiny_data, tmp_path / "set")
    assert (prepared.num_made, prepared.num_shards) == (6 + 3, 6 + 3)
    opened = open_packed(tmp_path / "set")
    assert opened.index.classes == ("above", "below")
    for examples, images, name in ((tiny_data.train, opened.train, "train"), (tiny_data.val, opened.val, "val")):
        expected = [decode(Path(path).read_bytes()) for path, *_ in examples]
        np.testing.assert_array_equal(images.read(np.arange(len(examples))), expected)
        assert images.labels.tolist() == [label for _, label, _ in examples]
        assert images.names == tuple(f"{name}/{Path(path).parent.name}/{Path(path).name}" for path, *_ in examples)
    # A plain memory map reads a shard, as the documentation promises.
    rows = np.memmap(tmp_path / "set" / "train-00001.bin", np.uint8, "r").reshape(-1, 256, 256, 3)
    np.testing.assert_array_equal(rows, opened.train.read(np.arange(7, 14)))


def test_statistics_are_those_of_all_training_pixels(tmp_path, tiny_data):
    pack(tiny_data, tmp_path / "set")
    images = np.stack([decode(Path(path).read_bytes()) for path, *_ in tiny_data.train]).astype(np.float64)
    opened = open_packed(tmp_path / "set")
    np.testing.assert_array_equal(opened.pixel_sums(), images.sum(axis=0))
    shown = opened.index.statistics
    covariance = np.cov(images.reshape(-1, 3).T, bias=True)
    np.testing.assert_allclose(shown.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(shown.covariance, covariance, rtol=1e-9)
    np.testing.assert_allclose(np.square(shown.std), np.linalg.eigvalsh(covariance)[::-1], rtol=1e-8)
    axes = np.array(shown.axes).T
    np.testing.assert_allclose(axes @ np.diag(np.square(shown.std)) @ axes.T, covariance, rtol=1e-8)


def test_training_on_the_set_gives_the_bits_of_training_on_the_folder(tmp_path, tiny_data, trained):
    pack(tiny_data, tmp_path / "set")
    # The name of the folder is the model's, and in the file of its weights.
    folder = ModelFolder(tmp_path / "model")
    train(open_packed(tmp_path / "set"), tiny_recipe(), folder, ONE_THREAD, lambda event: None)
    assert state(folder) == state(trained)
    assert folder.spec().preprocessing == trained.spec().preprocessing


def test_a_run_on_the_folder_goes_on_with_its_set(tmp_path, tiny_data, trained):
    pack(tiny_data, tmp_path / "set")
    folder = ModelFolder(tmp_path / "model")

    def interrupt(event: Event) -> None:
        if isinstance(event, Step) and (event.epoch, event.step) == (2, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, interrupt)
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    train(open_packed(tmp_path / "set"), tiny_recipe(), folder, resume, lambda event: None)
    assert state(folder) == state(trained)


def test_broken_images_are_listed_and_the_rest_trains_as_with_skip_broken(tmp_path, data_with_broken):
    prepared = pack(data_with_broken, tmp_path / "set")
    names = ["train/above/03.png", "train/below/04.png", "val/below/05.png"]
    assert [item.name for item in prepared.broken] == names
    listed = msgspec.json.decode((tmp_path / "set" / "broken.json").read_bytes())
    assert [item["name"] for item in listed] == names
    assert listed[1] == {"split": "train", "name": names[1], "reason": "the file is empty"}
    one_epoch = tiny_recipe("training.epochs=1")
    by_folder, by_set = ModelFolder(tmp_path / "a" / "model"), ModelFolder(tmp_path / "b" / "model")
    skip = dataclasses.replace(ONE_THREAD, skip_broken=True)
    train(data_with_broken, one_epoch, by_folder, skip, lambda event: None)
    events: list[Event] = []
    train(open_packed(tmp_path / "set"), one_epoch, by_set, ONE_THREAD, events.append)
    assert state(by_set) == state(by_folder)
    assert [event.num_train for event in events if isinstance(event, Started)] == [38]
    notes = [event.message for event in events if isinstance(event, Notice)]
    assert any("3 of 56 images could not be decoded when the set was packed" in note for note in notes)


def test_a_stopped_run_goes_on_and_leaves_the_same_bytes(tmp_path, data_with_broken):
    pack(data_with_broken, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_images(from_labelled(data_with_broken), tmp_path / "set", SMALL, stop)
    assert not list((tmp_path / "set").rglob("*.tmp"))
    with pytest.raises(DataError, match="2 of 9 shards are written") as caught:
        open_packed(tmp_path / "set")
    assert caught.value.hint == f"Resume it: alexdeploy prepare DATA {tmp_path / 'set'}"
    assert pack(data_with_broken, tmp_path / "set").num_made == 7
    assert files(tmp_path / "set") == files(tmp_path / "whole")


_SCRIPT = """
import sys
from pathlib import Path
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.originals import from_labelled
from alexdeploy.training.pack import PackOptions, pack_images
originals = from_labelled(read_image_folder(sys.argv[1]))
show = lambda done, total: print(done, flush=True)
pack_images(originals, Path(sys.argv[2]), PackOptions(images_per_shard=7, num_threads=2), show)
"""


def test_sigkill_at_any_moment_costs_no_byte(tmp_path, tiny_folder, tiny_data):
    pack(tiny_data, tmp_path / "whole")
    rng = random.Random(5)
    for _ in range(4):
        command = [sys.executable, "-c", _SCRIPT, str(tiny_folder), str(tmp_path / "set")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
    pack(tiny_data, tmp_path / "set")
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_what_a_kill_leaves_of_any_file_is_removed(tmp_path, tiny_data):
    pack(tiny_data, tmp_path / "set")
    whole = files(tmp_path / "set")
    for name in whole:
        path = tmp_path / "set" / name
        path.with_name(f".{path.name}.12345678.tmp").write_bytes(b"a part")
    pack(tiny_data, tmp_path / "set")
    assert files(tmp_path / "set") == whole


def test_jpegs_are_near_and_so_are_their_statistics(tmp_path, tiny_data):
    pack(tiny_data, tmp_path / "raw")
    pack(tiny_data, tmp_path / "set", dataclasses.replace(SMALL, jpeg_quality=95))
    raw, jpeg = open_packed(tmp_path / "raw"), open_packed(tmp_path / "set")
    everything = np.arange(40)
    found = jpeg.train.read(everything)
    difference = np.abs(found.astype(np.int16) - raw.train.read(everything))
    assert 0 < difference.mean() < 2
    np.testing.assert_array_equal(jpeg.pixel_sums(), found.sum(axis=0, dtype=np.int64))
    with Image.open(io.BytesIO(jpeg.val.encoded(3))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 256))
    sizes = [sum(path.stat().st_size for path in folder.glob("*.bin")) for folder in (raw.path, jpeg.path)]
    assert sizes[1] < sizes[0] / 4
    shas = [open_data(opened, "crop", num_threads=1).data_sha256 for opened in (raw, jpeg)]
    assert shas[0] != shas[1]


def test_warped_images_are_kept_apart_from_cropped_ones(tmp_path, tiny_data):
    pack(tiny_data, tmp_path / "set", dataclasses.replace(SMALL, resize="warp"))
    with pytest.raises(DataError, match='packed with resize="warp"; expected crop') as caught:
        open_data(open_packed(tmp_path / "set"), "crop", num_threads=1)
    assert caught.value.hint == "Pack the images again: alexdeploy prepare DATA OUT --resize crop"


def test_a_scan_sees_every_image(tmp_path, tiny_data):
    pack(tiny_data, tmp_path / "set")
    data = open_data(open_packed(tmp_path / "set"), "crop", num_threads=2)
    seen: list[int] = []
    done: list[int] = []
    assert data.val.scan(lambda image: seen.append(int(image.sum())), done.append) == {}
    assert seen == [int(decode(Path(path).read_bytes()).sum()) for path, *_ in tiny_data.val]
    assert done == list(range(1, 17))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("train-00002.bin", shorten, r"train-00002\.bin has 1,376,255 bytes; expected 1,376,256"),
        ("val-00000.bin", Path.unlink, r"val-00000\.bin is missing"),
        ("train-labels.npy", change, r"train-labels\.npy is not the file that was written"),
        ("pixel-sums.npy", change, r"pixel-sums\.npy is not the file that was written"),
    ],
)
def test_a_damaged_set_is_refused_and_mended_by_the_command_that_is_named(
    tmp_path, tiny_data, name: str, harm: Callable[[Path], None], message: str
):
    folder = tmp_path / "set"
    pack(tiny_data, folder)
    before = files(folder)
    harm(folder / name)
    with pytest.raises(DataError, match=message) as caught:
        open_data(open_packed(folder), "crop", num_threads=1)
    assert caught.value.hint == f"Repair it: alexdeploy prepare DATA {folder} --check"
    pack(tiny_data, folder, dataclasses.replace(SMALL, check=True))
    assert files(folder) == before


def test_a_changed_byte_in_a_shard_is_found_by_checking(tmp_path, tiny_data):
    folder = tmp_path / "set"
    pack(tiny_data, folder)
    before = files(folder)
    change(folder / "train-00001.bin")
    open_packed(folder)
    assert pack(tiny_data, folder).num_made == 0
    assert pack(tiny_data, folder, dataclasses.replace(SMALL, check=True)).num_made == 1
    assert files(folder) == before


def test_a_jpeg_that_is_damaged_is_named_when_it_is_read(tmp_path, tiny_data):
    folder = tmp_path / "set"
    pack(tiny_data, folder, dataclasses.replace(SMALL, jpeg_quality=90))
    path = folder / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[:100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train/above/00\.png in .*: unsupported file type") as caught:
        list(open_data(open_packed(folder), "crop", num_threads=1).train.batches([np.array([1, 0])]))
    assert "--check" in (caught.value.hint or "")


def test_another_set_is_not_overwritten_unless_asked(tmp_path, tiny_data):
    folder = tmp_path / "set"
    pack(tiny_data, folder)
    fewer = dataclasses.replace(tiny_data, train=tiny_data.train[1:])
    with pytest.raises(UsageError, match="40 training and 16 validation images, not 39 training and 16"):
        pack(fewer, folder)
    with pytest.raises(UsageError, match="holds another packed set: of raw pixels, not jpeg_quality=95") as caught:
        pack(tiny_data, folder, dataclasses.replace(SMALL, jpeg_quality=95))
    assert "Resume it" not in str(caught.value.hint)
    with pytest.raises(UsageError, match='holds another packed set: resize="crop", not warp'):
        pack(tiny_data, folder, dataclasses.replace(SMALL, resize="warp"))
    with pytest.raises(UsageError, match="holds another packed set: 7 images in a shard, not 8"):
        pack(tiny_data, folder, dataclasses.replace(SMALL, images_per_shard=8))
    others = dataclasses.replace(
        tiny_data, train=tuple(each._replace(label=1 - each.label) for each in tiny_data.train)
    )
    with pytest.raises(UsageError, match="the names, classes or sizes of some images have changed"):
        pack(others, folder)
    pack(fewer, folder, dataclasses.replace(SMALL, overwrite=True))
    assert len(open_packed(folder).train) == 39


def test_a_plan_that_is_damaged_is_replaced_only_with_overwrite(tmp_path, tiny_data):
    folder = tmp_path / "set"
    pack(tiny_data, folder)
    before = files(folder)
    plan = folder / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"plan\.json"):
        pack(tiny_data, folder)
    pack(tiny_data, folder, dataclasses.replace(SMALL, overwrite=True))
    assert files(folder) == before


def test_classes_of_one_image_each_have_none_to_validate_on(tmp_path, tiny_data):
    few = dataclasses.replace(tiny_data, val=())
    with pytest.raises(DataError, match="40 training and 0 validation images; both are required") as caught:
        pack(few, tmp_path / "set")
    assert "--val" in caught.value.hint
    with pytest.raises(DataError, match="40 training and 0 validation images; both are required"):
        train(few, tiny_recipe(), ModelFolder(tmp_path / "model"), ONE_THREAD, lambda event: None)


def test_a_folder_with_other_files_is_never_touched(tmp_path, tiny_data):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="exists but is not a packed set"):
            pack(tiny_data, folder, dataclasses.replace(SMALL, overwrite=overwrite))
    assert files(folder) == {"plan.json": b"{}"}


def test_a_disk_that_is_too_small_is_said_before_anything_is_touched(tmp_path, tiny_data, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=70_000_000))
    with pytest.raises(OutputError, match=r"56 images take 11 MB; there is room for 70 MB at .*set") as caught:
        pack(tiny_data, tmp_path / "set")
    assert "about 3 MB in all: --jpeg 95" in (caught.value.hint or "")
    assert not (tmp_path / "set").exists()
    pack(tiny_data, tmp_path / "set", dataclasses.replace(SMALL, jpeg_quality=95))
    before = files(tmp_path / "set")
    with pytest.raises(OutputError, match="there is room for 7"):
        pack(tiny_data, tmp_path / "set", dataclasses.replace(SMALL, overwrite=True))
    assert files(tmp_path / "set") == before


def test_a_split_without_a_good_image_is_an_error(tmp_path, tiny_folder):
    copy = tmp_path / "data"
    shutil.copytree(tiny_folder, copy)
    for path in (copy / "val").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 16 images of val can be decoded"):
        pack(read_image_folder(copy), tmp_path / "set")


def test_the_hash_of_the_data_is_that_of_its_names_labels_and_sizes(tiny_folder, tiny_data):
    lines = []
    for split, examples in (("train", tiny_data.train), ("val", tiny_data.val)):
        for path, label, _ in examples:
            size = os.path.getsize(path)
            lines.append(f"{split}\0{Path(path).relative_to(tiny_folder)}\0{label}\0{size}\n")
    expected = hashlib.sha256((repr(("above", "below")) + "".join(lines)).encode()).hexdigest()
    assert from_labelled(tiny_data).sha256() == expected
    assert packed.is_packed(tiny_folder) is False


def test_overwriting_that_was_stopped_goes_on_when_it_is_asked_for_again(tmp_path, tiny_data):
    folder = tmp_path / "set"
    pack(tiny_data, tmp_path / "whole")
    pack(tiny_data, folder, dataclasses.replace(SMALL, jpeg_quality=90))
    overwrite = dataclasses.replace(SMALL, overwrite=True)

    def stop(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_images(from_labelled(tiny_data), folder, overwrite, stop)
    assert pack(tiny_data, folder, overwrite).num_made == 7
    assert files(folder) == files(tmp_path / "whole")
    # Of a set that is finished nothing is kept.
    assert pack(tiny_data, folder, overwrite).num_made == 9


@pytest.mark.parametrize("harm", [shorten, change, Path.unlink])
def test_sums_of_a_shard_that_are_damaged_are_made_again(tmp_path, tiny_data, harm: Callable[[Path], None]):
    folder = tmp_path / "set"
    pack(tiny_data, folder)
    before = files(folder)
    harm(folder / "records" / "train-00001.npy")
    assert pack(tiny_data, folder, dataclasses.replace(SMALL, check=True)).num_made == 1
    assert files(folder) == before
