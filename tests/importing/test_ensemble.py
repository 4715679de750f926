"""Ensembles as model folders: made of real members, run by every backend, and refused where members do not fit."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import replace_graph, smooth_images, write_pictures
from onnx import numpy_helper

from alexdeploy import (
    AlexDeployWarning,
    ModelFolder,
    calibrate,
    ensemble,
    export_model,
    figures,
    find_model,
    inspect,
    verify,
)
from alexdeploy.core.errors import AlexDeployError, ModelError, ParityError, StaleArtifactError, UsageError
from alexdeploy.engines.base import Backend, EngineOptions, Predictions, open_engine
from alexdeploy.evaluation.verify import VerifyOptions
from alexdeploy.explaining.explain import ExplainOptions, explain
from alexdeploy.export.export import ExportOptions
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.importing import ensemble as ensemble_module
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import place
from alexdeploy.training.train import TrainOptions, train

Exported = Callable[..., ModelFolder]

IMAGES = smooth_images(6, seed=3)


@pytest.fixture(scope="module")
def members(exported: Exported) -> tuple[ModelFolder, ...]:
    return exported("alexnet"), exported("alexnet", "preprocessing.channels=bgr"), exported("torchvision")


@pytest.fixture(scope="module")
def _three(members: tuple[ModelFolder, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        ensemble(members, "three")
    return root


@pytest.fixture
def three(_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """An ensemble of three in FP32, in a working folder of the test's own: models/three."""
    shutil.copytree(_three, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return find_model("three")


@pytest.fixture
def twins(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/tiny and a copy of it, models/other, both in FP32 and FP16."""
    shutil.copytree(tiny_model.path, tmp_path / "models" / "other")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answers(folder: ModelFolder, backend: Backend, num_views: int) -> Predictions:
    options = EngineOptions(num_views=10 if num_views == 10 else 1, batch_size=len(IMAGES))
    with open_engine(folder, backend, options) as engine:
        found = engine.run(IMAGES)
        return Predictions(np.array(found.probabilities), np.array(found.view_classes))


@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_answer_is_the_mean_of_what_the_members_answer(
    three: ModelFolder, members: tuple[ModelFolder, ...], backend: Backend, num_views: int
) -> None:
    found = answers(three, backend, num_views)
    expected = np.mean([answers(each, backend, num_views).probabilities for each in members], axis=0)
    # The pictures do not all get one answer, nor do the members agree.
    assert np.ptp(expected, axis=0).max() > 0.02
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-6)
    assert found.view_classes.shape == (len(IMAGES), num_views)
    if num_views == 1:
        assert (found.view_classes[:, 0] == expected.argmax(axis=1)).all()


def test_members_are_copied_and_recorded(three: ModelFolder, members: tuple[ModelFolder, ...]) -> None:
    spec = three.spec()
    assert [each.name for each in spec.members] == [each.path.name for each in members]
    assert [each.graphs for each in spec.members] == [
        {"fp32": load_graph(each, "fp32", each.spec()).sha256} for each in members
    ]
    # Beside the mean images and the graph nothing is needed, and nothing of the members' folders.
    assert sorted(path.name for path in three.path.iterdir()) == [
        *("backends.json", "mean.npy", "model.onnx", "model.onnx.sha256", "spec.json")
    ]
    mean = three.mean_image(spec)
    assert mean is not None
    assert mean.shape == (2, 3, 256, 256)
    with open_engine(three, "onnxruntime", EngineOptions()) as engine:
        assert engine.info.artifact == load_graph(three, "fp32", spec).sha256


def test_classes_in_another_order_are_put_in_that_of_the_first(twins: Path) -> None:
    shuffled = ModelFolder(Path("models/other"))
    order = [3, 0, 4, 1, 2]
    spec = shuffled.spec()
    classes = tuple(spec.classes[index] for index in order)
    # The same network with its outputs in another order, as an import of such a graph writes it.
    model = onnx.load(shuffled.onnx_path())
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[order], tensor.name))
    for path in (shuffled.weights_path, *shuffled.path.glob("*.sha256"), shuffled.onnx_path("fp16")):
        path.unlink()
    changed = dataclasses.replace(spec, classes=classes, architecture=None)
    shuffled.write_spec(changed)
    onnx.helper.set_model_props(model, {"alexdeploy.contract_sha256": changed.contract_sha256})
    shuffled.onnx_path().write_bytes(model.SerializeToString())

    with pytest.warns(AlexDeployWarning, match="no fp16 graph: models/other has none"):
        ensemble(["tiny", "other"], "both")
    both = find_model("both")
    assert both.spec().classes == spec.classes
    np.testing.assert_allclose(
        answers(both, "onnxruntime", 1).probabilities,
        answers(find_model("tiny"), "onnxruntime", 1).probabilities,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": ("class-0", "class-1", "class-2", "class-3", "cat")}, "only one of them has 'cat', 'class-4'"),
        ({"resize": "warp"}, "models/other takes images resized by warp, models/tiny by crop"),
    ],
)
def test_members_that_do_not_fit_are_refused(twins: Path, change: dict[str, object], told: str) -> None:
    other = ModelFolder(Path("models/other"))
    spec = other.spec()
    if "classes" in change:
        other.write_spec(dataclasses.replace(spec, **change))
    else:
        other.write_spec(dataclasses.replace(spec, preprocessing=dataclasses.replace(spec.preprocessing, **change)))
    with pytest.raises(UsageError, match=told):
        ensemble(["tiny", "other"], "both")
    assert not Path("models/both").exists()


def test_what_is_no_ensemble_is_refused(three: ModelFolder, tiny_model: ModelFolder) -> None:
    shutil.copytree(tiny_model.path, "models/tiny")
    for models, name, told in (
        (["tiny"], "x", "an ensemble has at least two members; found 1"),
        ("tiny", "x", "models is 'tiny'; expected a list, each a string"),
        (["tiny", "models/tiny"], "x", "models/tiny is given twice"),
        (
            ["tiny", "three"],
            "x",
            "models/three is an ensemble itself\nName its members instead: alexnet alexnet torchv",
        ),
        (["tiny", "nowhere"], "x", "no model at nowhere"),
        (["tiny", "three"], "tiny", "models/three is an ensemble itself"),
        ([three, tiny_model], "a/b", "is not a name of a folder under models/"),
    ):
        with pytest.raises(UsageError) as raised:
            ensemble(models, name, overwrite=True)
        assert told in str(raised.value)


def test_a_folder_in_use_and_a_member_are_not_overwritten(twins: Path) -> None:
    with pytest.raises(UsageError, match="models/tiny is a member itself"):
        ensemble(["tiny", "other"], "tiny", overwrite=True)
    shutil.copytree("models/tiny", "models/used")
    with pytest.raises(UsageError, match="models/used already holds a model"):
        ensemble(["tiny", "other"], "used")


def test_a_stale_or_missing_graph_of_a_member_ends_it(twins: Path) -> None:
    other = ModelFolder(Path("models/other"))
    shutil.move(other.onnx_path(), "kept")
    with pytest.raises(ModelError, match=r"models/other has no model.onnx\nMake it: alexdeploy.export_model"):
        ensemble(["tiny", "other"], "both")
    shutil.move("kept", other.onnx_path())
    other.write_spec(
        dataclasses.replace(other.spec(), preprocessing=dataclasses.replace(other.spec().preprocessing, scale=0.5))
    )
    with pytest.raises(StaleArtifactError):
        ensemble(["tiny", "other"], "both")
    assert not Path("models/both").exists()


def test_more_bytes_than_onnx_allows_are_refused(twins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_module, "_MOST_BYTES", 100_000)
    with pytest.raises(ModelError, match=r"both would have a model.onnx of [0-9,]+ bytes; ONNX allows 100,000"):
        ensemble(["tiny", "other"], "both")


def test_a_changed_graph_or_spec_is_stale_and_the_hint_makes_it_again(twins: Path) -> None:
    ensemble(["tiny", "other"], "both")
    both = find_model("both")
    spec = both.spec()
    load_graph(both, "fp16", spec)
    command = re.escape('alexdeploy.ensemble(["tiny", "other"], name="both", overwrite=True)')
    first, second = spec.members
    changed = dataclasses.replace(second, preprocessing=dataclasses.replace(second.preprocessing, scale=0.5))
    both.write_spec(dataclasses.replace(spec, members=(first, changed)))
    with pytest.raises(StaleArtifactError, match=f"Renew it: {command}"):
        load_graph(both, "fp32", both.spec())
    both.write_spec(spec)
    # The FP16 graph of another FP32 graph.
    replace_graph(both, "fp32", onnx.load(both.onnx_path()))
    both.sum_path("fp16").unlink()
    content = onnx.load(both.onnx_path("fp16"))
    onnx.helper.set_model_props(content, {**props(content), "alexdeploy.source_sha256": "0" * 64})
    both.onnx_path("fp16").write_bytes(content.SerializeToString())
    with pytest.raises(StaleArtifactError, match=f"Export the members with fp16=True first.\nRenew it: {command}"):
        load_graph(both, "fp16", spec)
    with pytest.raises(ModelError, match=f"Export the members with int8=True first.\nMake it: {command}"):
        load_graph(both, "int8", spec)


def props(model: onnx.ModelProto) -> dict[str, str]:
    return {each.key: each.value for each in model.metadata_props}


def test_verify_names_the_member_and_layer_where_an_error_begins(twins: Path) -> None:
    ensemble(["tiny", "other"], "both")
    pictures = write_pictures(twins / "pictures", 4)
    options = VerifyOptions(precisions=("fp16",), backends=("onnxruntime",))
    found = verify("both", [str(pictures)], options)
    found.check()
    (network,) = found.networks
    names = [layer.name for layer in network.layers]
    assert (names[0], names[-1]) == ("member1/conv1", "member2/fc8")
    assert len(names) == 2 * names.index("member2/conv1")

    both = find_model("both")
    model = onnx.load(both.onnx_path("fp16"))
    for tensor in model.graph.initializer:
        if tensor.name == "member1/fc6.weight":
            tensor.CopyFrom(numpy_helper.from_array(-2 * numpy_helper.to_array(tensor), tensor.name))
    replace_graph(both, "fp16", model)
    differing = verify("both", [str(pictures)], dataclasses.replace(options, max_flips=0.0))
    (network,) = differing.networks
    assert network.jump == "member1/fc6"
    with pytest.raises(ParityError) as raised:
        differing.check()
    assert str(raised.value.hint).splitlines()[:2] == [
        "Make fp16 again: alexdeploy export MEMBER --fp16",
        "After its members, make the ensemble again: alexdeploy ensemble tiny other --name both --overwrite",
    ]


def test_explain_covers_parts_of_the_image_for_all_members(three: ModelFolder, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 1)
    [found] = explain(pictures, three, ExplainOptions(size=128, stride=128))
    assert found.heatmaps[0].covered_probability != found.probability
    assert np.abs(found.heatmaps[0].values).max() > 0


def test_export_checks_an_ensemble_again_and_writes_its_deployment_graph(three: ModelFolder) -> None:
    before = three.onnx_path().read_bytes()
    network, deployed = export_model(three, ExportOptions(deployment=True, num_views=10))
    assert not network.written
    assert three.onnx_path().read_bytes() == before
    assert [check.problem for check in network.backends] == [None] * len(network.backends)
    assert deployed.path == three.onnx_path("fp32", 10)
    graph = onnx.load(deployed.path).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["probabilities", "view_classes"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda three: export_model(three, ExportOptions(int8=True, calibrate=".")),
            "its graphs are those of its members",
        ),
        (lambda three: export_model(three, ExportOptions(overwrite=True)), "its graphs are those of its members"),
        (lambda three: export_model(three, ExportOptions(fp16=True)), "has no model.fp16.onnx"),
        (lambda three: calibrate(three, "."), "the scales of its INT8 graph are its members'"),
        (lambda three: open_engine(three, "torch", EngineOptions()), "ensemble of graphs, which PyTorch does not run"),
        (
            lambda three: place(three, PredictOptions(devices="cpu,cpu", placement="pipeline")),
            "placement divides one network",
        ),
        (
            lambda three: open_engine(three, "onnxruntime", EngineOptions(layer="member1/fc7")),
            "is an ensemble of networks, each with layers of its own",
        ),
        (figures, "is an ensemble of networks, each with layers of its own"),
        (lambda three: train(".", TrainOptions(pretrained=three.path)), "is an ensemble, which has no weights"),
        (lambda three: train(None, TrainOptions(name="three", resume=True)), "has no checkpoint to resume from"),
    ],
)
def test_what_needs_weights_or_one_network_says_so(
    three: ModelFolder, call: Callable[[ModelFolder], object], told: str
) -> None:
    with pytest.raises(AlexDeployError) as raised:
        call(three)
    assert told in str(raised.value)
    assert raised.value.hint
    assert not Path("data").exists()


def test_inspect_lists_the_members(three: ModelFolder, members: tuple[ModelFolder, ...]) -> None:
    found = inspect(three)
    assert found.facts["members"] == "alexnet, alexnet, torchvision"
    assert list(found.members) == ["member1", "member2", "member3"]
    assert [each["channels"] for each in found.members.values()] == ["rgb", "bgr", "rgb"]
    singles = [inspect(each) for each in members]
    assert (found.parameters, found.macs) == (sum(x.parameters for x in singles), sum(x.macs for x in singles))


def test_classes_of_one_name_cannot_be_put_in_another_order(twins: Path) -> None:
    for name, classes in (("tiny", "aabcd"), ("other", "abacd")):
        folder = ModelFolder(Path("models") / name)
        folder.write_spec(dataclasses.replace(folder.spec(), classes=tuple(classes)))
    with pytest.raises(UsageError, match="two classes have the same name, and the members have them in different"):
        ensemble(["tiny", "other"], "both")


def test_a_member_of_an_older_opset_and_with_newer_weights_is_told_and_taken(twins: Path) -> None:
    other = ModelFolder(Path("models/other"))
    expected = answers(other, "onnxruntime", 1).probabilities
    for name in ("tiny", "other"):
        ModelFolder(Path("models") / name).onnx_path("fp16").unlink()
    older = onnx.load(other.onnx_path())
    assert older.opset_import[0].version == 17
    older.opset_import[0].version = 16
    replace_graph(other, "fp32", older)
    other.candidate.path.mkdir(parents=True)
    other.candidate.write_spec(other.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    told: list[str] = []
    ensemble(["tiny", "other"], "both", on_event=lambda event: told.append(event.message))
    assert any("models/other has newer weights (000000000000, epoch 7)" in message for message in told)
    assert [each.version for each in onnx.load("models/both/model.onnx").opset_import] == [17]
    found = answers(find_model("both"), "onnxruntime", 1).probabilities
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
