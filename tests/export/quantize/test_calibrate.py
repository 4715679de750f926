from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import change_weights, make_model, replace_graph, write_pictures
from PIL import Image

from alexdeploy.core.errors import (
    DataError,
    InputError,
    ModelError,
    ParityError,
    RecipeError,
    StaleArtifactError,
    UsageError,
)
from alexdeploy.core.events import Status
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import CalibrationRecipe, load_calibration
from alexdeploy.export.events import Event
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize import calibrate as calibrate_module
from alexdeploy.export.quantize.calibrate import calibrate, choose_images
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.ranges import Ranges, read_ranges
from alexdeploy.images.decode import decode
from alexdeploy.images.preprocess import network_input
from alexdeploy.network import reference
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights

FEW = CalibrationRecipe(num_images=6, method="minmax")


@pytest.fixture
def work(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """models/tiny and 40 pictures/ in a working folder."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 40)
    return ModelFolder(Path("models/tiny"))


def _measured(folder: ModelFolder, images: str = "pictures", recipe: CalibrationRecipe = FEW) -> Ranges:
    return calibrate(folder, images, recipe)


@pytest.mark.parametrize("num_views", [1, 10])
def test_the_largest_values_are_those_of_the_float64_reference(work: ModelFolder, num_views: int) -> None:
    ranges = _measured(work, recipe=dataclasses.replace(FEW, num_views=num_views))  # type: ignore[arg-type]
    spec = work.spec()
    assert spec.architecture is not None
    images = [decode(Path(image.name).read_bytes(), "crop") for image in ranges.images]
    mean = work.mean_image(spec)
    inputs = np.concatenate([network_input(image, spec.preprocessing, num_views, mean) for image in images])
    plan = plan_layers(spec.architecture, spec.num_classes)
    expected = {layer.name: x for layer, x in reference.forward(plan, load_weights(work.weights_path, plan), inputs)}
    expected["logits"] = expected.pop("fc8")
    expected["images"] = inputs.astype(np.float64)
    assert set(ranges.tensors) == set(expected)
    for name, tensor in ranges.tensors.items():
        assert tensor.minimum == pytest.approx(expected[name].min(), rel=1e-4, abs=1e-5), name
        assert tensor.maximum == pytest.approx(expected[name].max(), rel=1e-4, abs=1e-5), name
        assert tensor.threshold == pytest.approx(np.abs(expected[name]).max(), rel=1e-4), name
        assert tensor.scale == pytest.approx(tensor.threshold / 127, rel=1e-6), name


def test_calibrating_twice_gives_the_same_bytes(work: ModelFolder) -> None:
    first = _measured(work, recipe=CalibrationRecipe()).to_json()
    assert work.ranges_path.read_bytes() == first
    assert _measured(work, recipe=CalibrationRecipe()).to_json() == first


def test_a_folder_elsewhere_listed_in_another_order_gives_the_same_images(work: ModelFolder) -> None:
    before = _measured(work)
    for path in sorted(Path("pictures").iterdir(), reverse=True):
        target = Path("elsewhere") / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    after = _measured(work, "elsewhere")
    assert [image.sha256 for image in after.images] == [image.sha256 for image in before.images]
    assert (after.key, after.tensors) == (before.key, before.tensors)


def test_another_seed_chooses_other_images_and_all_seeds_the_number_asked_for(work: ModelFolder) -> None:
    chosen = [set(choose_images("pictures", dataclasses.replace(FEW, seed=seed))[0]) for seed in range(4)]
    assert all(len(names) == 6 for names in chosen)
    assert len(set(map(frozenset, chosen))) == 4


def test_excluded_images_are_never_chosen(work: ModelFolder) -> None:
    recipe = CalibrationRecipe(exclude=("*/00*", "*/01*"))
    assert sorted(choose_images("pictures", recipe)[0])[0] == "pictures/020.png"


def test_an_archive_gives_the_ranges_of_its_images(work: ModelFolder) -> None:
    with zipfile.ZipFile("pictures.zip", "w") as archive:
        for path in sorted(Path("pictures").iterdir()):
            archive.write(path, path.name)
    assert _measured(work, "pictures.zip").tensors == _measured(work).tensors


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: dataclasses.replace(recipe, method="percentile"),
        lambda recipe: dataclasses.replace(recipe, num_images=7),
        lambda recipe: dataclasses.replace(recipe, num_views=10),
        lambda recipe: dataclasses.replace(recipe, percentile=99.0),
    ],
)
def test_the_key_tells_apart_what_was_measured_differently(work: ModelFolder, change) -> None:
    assert _measured(work).key != _measured(work, recipe=change(FEW)).key


def test_the_file_is_json_that_a_person_can_read_and_diff(work: ModelFolder) -> None:
    _measured(work)
    text = work.ranges_path.read_text()
    data = json.loads(text)
    assert data["method"] == "minmax"
    assert data["num_views"] == 1
    assert data["images"][0].keys() == {"name", "sha256"}
    assert sha256_file(Path(data["images"][0]["name"])) == data["images"][0]["sha256"]
    assert text.count("\n") > 100


def test_few_images_and_copies_are_warned_about(work: ModelFolder) -> None:
    assert "6 different images are few" in _measured(work).warnings[0]
    assert _measured(work, recipe=CalibrationRecipe()).warnings == ()
    shutil.copy("pictures/000.png", "pictures/copy.png")
    assert _measured(work, recipe=CalibrationRecipe()).warnings == ("1 of 41 images are copies of others",)


def test_images_that_look_alike_to_the_network_are_warned_about(work: ModelFolder) -> None:
    grey = np.full((256, 256, 3), 120, np.uint8)
    Path("grey").mkdir()
    for index in range(40):
        grey[0, 0, 0] = index
        Image.fromarray(grey).save(f"grey/{index}.png")
    (warning,) = _measured(work, "grey", CalibrationRecipe()).warnings
    assert "all look alike to the network" in warning


def test_a_broken_image_is_left_out_and_named(work: ModelFolder) -> None:
    names, _ = choose_images("pictures", FEW)
    Path(names[2]).write_bytes(b"not a picture")
    ranges = _measured(work)
    assert list(ranges.skipped) == [names[2]]
    assert ranges.num_images == len(ranges.images) == 5


def test_no_images_are_an_error_and_leave_no_file(work: ModelFolder) -> None:
    Path("empty").mkdir()
    with pytest.raises(InputError, match="no images to calibrate on"):
        _measured(work, "empty")
    Path("empty/a.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="none of 1 images"):
        _measured(work, "empty")
    with pytest.raises(UsageError, match="standard input"):
        _measured(work, "-")
    assert not work.ranges_path.exists()


def test_a_graph_that_overflows_is_named(work: ModelFolder) -> None:
    change_weights(work, conv2__weight=lambda weight: weight * 1e38)
    # The export itself would refuse it; the graph is made as it is.
    model = onnx.load(work.onnx_path())
    for tensor in model.graph.initializer:
        if tensor.name == "conv2.weight":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1e38), tensor.name)
            )
    for entry in model.metadata_props:
        if entry.key == "alexdeploy.weights_sha256" or entry.key == "alexdeploy.source_sha256":
            entry.value = sha256_file(work.weights_path)
    replace_graph(work, "fp32", model)
    with pytest.raises(ModelError, match="conv2: a value is not finite"):
        _measured(work)


def test_a_stale_graph_is_not_calibrated(work: ModelFolder) -> None:
    change_weights(work, conv1__bias=lambda bias: bias + 1)
    with pytest.raises(StaleArtifactError, match=r"model\.onnx was made from weights"):
        _measured(work)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\x00\xff"])
def test_a_damaged_file_of_ranges_is_refused_by_name(work: ModelFolder, content: bytes) -> None:
    _measured(work)
    work.ranges_path.write_bytes(content)
    with pytest.raises(ModelError, match=r"tiny\.ranges\.json is damaged"):
        read_ranges(work.ranges_path)


def test_a_scale_that_is_not_above_0_is_refused(work: ModelFolder) -> None:
    _measured(work)
    content = json.loads(work.ranges_path.read_text())
    content["tensors"]["relu3"]["scale"] = 0.0
    work.ranges_path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"the scale of relu3 is 0\.0; it must be above 0"):
        read_ranges(work.ranges_path)


def test_defaults_come_from_the_file_of_the_working_folder(work: ModelFolder) -> None:
    assert load_calibration() == CalibrationRecipe()
    Path("calibration").mkdir()
    Path("calibration/default.toml").write_text('method = "minmax"\nnum_images = 3\n')
    assert load_calibration() == CalibrationRecipe(method="minmax", num_images=3)
    assert calibrate(work, "pictures").num_images == 3
    Path("calibration/default.toml").write_text("num_imags = 3\n")
    with pytest.raises(RecipeError, match="did you mean 'num_images'"):
        load_calibration()


# The next step refuses what is stale: INT8 from ranges, and answers from INT8.


def _export_int8(folder: ModelFolder) -> None:
    export_model(folder, ExportOptions(int8=True))


def test_one_changed_weight_makes_the_ranges_stale(int8_model: ModelFolder) -> None:
    change_weights(int8_model, fc8__bias=lambda bias: bias + np.eye(1, len(bias), dtype=np.float32)[0] * 1e-3)
    before = int8_model.onnx_path("int8").read_bytes()
    with pytest.raises(StaleArtifactError, match=r"tiny\.ranges\.json was measured on the weights") as error:
        _export_int8(int8_model)
    assert "alexdeploy calibrate models/tiny pictures" in error.value.text
    assert int8_model.onnx_path("int8").read_bytes() == before
    with pytest.raises(StaleArtifactError, match=r"model\.int8\.onnx was made from weights"):
        load_graph(int8_model, "int8", int8_model.spec())


def test_one_changed_calibration_image_makes_the_ranges_stale(int8_model: ModelFolder) -> None:
    image = np.asarray(Image.open("pictures/007.png")).copy()
    image[0, 0, 0] ^= 1
    Image.fromarray(image).save("pictures/007.png")
    with pytest.raises(StaleArtifactError, match=r"was measured on pictures/007\.png") as error:
        _export_int8(int8_model)
    assert "alexdeploy calibrate models/tiny pictures" in error.value.text


def test_a_calibration_image_that_cannot_be_read_makes_the_ranges_stale(int8_model: ModelFolder) -> None:
    Path("pictures/007.png").unlink()
    Path("pictures/007.png").mkdir()
    with pytest.raises(StaleArtifactError, match=r"pictures/007\.png"):
        _export_int8(int8_model)


def test_a_calibration_image_that_is_gone_makes_them_stale_but_not_all_of_them(int8_model: ModelFolder) -> None:
    Path("pictures/007.png").unlink()
    with pytest.raises(StaleArtifactError, match=r"pictures/007\.png, which no longer exists"):
        _export_int8(int8_model)
    shutil.rmtree("pictures")
    with pytest.raises(InputError, match="are not at pictures"):
        _export_int8(int8_model)


def test_one_changed_preprocessing_constant_makes_ranges_and_int8_stale(int8_model: ModelFolder) -> None:
    spec = int8_model.spec()
    steps = dataclasses.replace(spec.preprocessing, scale=1.0000001)
    int8_model.write_spec(dataclasses.replace(spec, preprocessing=steps))
    with pytest.raises(StaleArtifactError, match=r"tiny\.ranges\.json was measured with another"):
        _export_int8(int8_model)
    with pytest.raises(StaleArtifactError, match=r"model\.int8\.onnx was made for another"):
        load_graph(int8_model, "int8", int8_model.spec())


def test_fp16_does_not_take_ranges_of_another_preprocessing(int8_model: ModelFolder) -> None:
    steps: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, Status):
            steps.append(event.message)

    export_model(int8_model, ExportOptions(fp16=True), watch)
    assert any(step.startswith("ranges of calibration/tiny.ranges.json: 40 images") for step in steps)
    spec = int8_model.spec()
    scaled = dataclasses.replace(spec.preprocessing, scale=0.5)
    int8_model.write_spec(dataclasses.replace(spec, preprocessing=scaled))
    steps.clear()
    export_model(int8_model, ExportOptions(fp16=True), watch)
    assert "calibration/tiny.ranges.json was measured on another graph or preprocessing and is not used" in steps


def test_new_ranges_make_the_int8_graph_stale(int8_model: ModelFolder) -> None:
    calibrate(int8_model, "pictures", CalibrationRecipe(method="minmax"))
    with pytest.raises(StaleArtifactError, match=r"model\.int8\.onnx was made from tiny\.ranges\.json") as error:
        load_graph(int8_model, "int8", int8_model.spec())
    assert "alexdeploy export models/tiny --int8" in error.value.text


def test_ranges_of_another_model_of_the_same_name_do_not_concern_it_and_are_not_replaced(
    int8_model: ModelFolder, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other" / "tiny", seed=5)
    export_model(other)
    with pytest.raises(UsageError, match="contains the ranges of models/tiny"):
        calibrate(other, "pictures", FEW)
    int8_model.ranges_path.unlink()
    calibrate(other, "pictures", FEW)
    load_graph(int8_model, "int8", int8_model.spec())


def test_a_file_of_ranges_that_was_only_formatted_again_is_the_same(int8_model: ModelFolder, any_drop: None) -> None:
    path = int8_model.ranges_path
    path.write_bytes(json.dumps(json.loads(path.read_text()), indent=4).replace("\n", "\r\n").encode())
    load_graph(int8_model, "int8", int8_model.spec())
    _export_int8(int8_model)
    load_graph(int8_model, "int8", int8_model.spec())


def test_a_model_graph_that_is_only_written_again_keeps_its_ranges(int8_model: ModelFolder, any_drop: None) -> None:
    """The provenance is in the file's metadata, and changes its bytes."""
    int8_model.write_spec(int8_model.spec().replace_provenance(note="changed"))
    _export_int8(int8_model)
    load_graph(int8_model, "int8", int8_model.spec())


def test_an_export_that_fails_leaves_ranges_and_graphs_as_they_were(int8_model: ModelFolder) -> None:
    write_pictures(Path("other"), 40, seed=3)
    before = {path: path.read_bytes() for path in (*int8_model.path.glob("*.onnx"), int8_model.ranges_path)}
    options = ExportOptions(int8=True, calibrate="other", budget=Budget(max_drop=0.0))
    # Each that can be given is kept by some mixture of layers.
    object.__setattr__(options.budget, "max_drop", -1.0)
    with pytest.raises(ParityError):
        export_model(int8_model, options)
    assert {path: path.read_bytes() for path in before} == before
    load_graph(int8_model, "int8", int8_model.spec())


def test_an_archive_that_is_cut_off_is_told(work: ModelFolder) -> None:
    with tarfile.open("pictures.tar.gz", "w:gz") as archive:
        archive.add("pictures")
    content = Path("pictures.tar.gz").read_bytes()
    Path("pictures.tar.gz").write_bytes(content[: len(content) * 2 // 3])
    ranges = _measured(work, "pictures.tar.gz", CalibrationRecipe())
    assert 0 < ranges.num_images < 40
    assert "the archive is truncated" in next(iter(ranges.skipped.values()))


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_measured(work: ModelFolder) -> None:
    Path("pictures").rename(os.fsdecode(b"pic\xff"))
    with pytest.raises(UsageError, match=r"pic\\xff is not UTF-8"):
        _measured(work, os.fsdecode(b"pic\xff"))


def test_where_nothing_was_calibrated_the_command_is_named(work: ModelFolder) -> None:
    with pytest.raises(ModelError, match=r"no measured ranges at calibration/tiny\.ranges\.json") as error:
        _export_int8(work)
    assert f"alexdeploy calibrate {work.path.as_posix()} IMAGES" in error.value.text


def test_a_layer_that_answers_nothing_is_named(work: ModelFolder) -> None:
    change_weights(work, conv3__bias=lambda bias: bias - 1e6)
    export_model(work)
    (warning,) = [text for text in _measured(work).warnings if text.startswith("always 0")]
    # After its ReLU; from there on come the biases of the layers that follow.
    assert warning == "always 0 on these images: relu3"


def test_an_interrupt_before_anything_was_measured_is_the_callers(
    work: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_module, "read_photographs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _measured(work)


def test_a_budget_on_images_that_cannot_be_read_is_refused(int8_model: ModelFolder) -> None:
    write_pictures(Path("labelled/class-0"), 2)
    Path("labelled/class-0/001.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"labelled/class-0/001\.png: unsupported file type"):
        export_model(int8_model, ExportOptions(int8=True, budget=Budget(max_drop=100.0, labelled="labelled")))
    shutil.rmtree("pictures")
    with pytest.raises(InputError, match=r"the images that the ranges were measured on are not at pictures"):
        export_model(int8_model, ExportOptions(int8=True, budget=Budget(max_drop=100.0)))
