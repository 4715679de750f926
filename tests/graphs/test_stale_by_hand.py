"""What makes a graph stale, on folders of a few bytes: each record that may differ, and the command that renews it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Member, ModelSpec, Preprocessing
from alexdeploy.graphs.freshness import check_fresh, ensemble_command, export_command, newer_weights, renewal
from alexdeploy.graphs.metadata import GraphMetadata
from alexdeploy.graphs.ranges import CalibrationImage, Ranges, TensorRange, with_key, write_ranges


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def write_weights(folder: ModelFolder, value: float) -> str:
    save_file({"w": np.full(3, value, np.float32)}, folder.weights_path)
    return digest(folder.weights_path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """models/my rose, trained: weights, and graphs that are no ONNX files, whose bytes are hashed alone."""
    monkeypatch.chdir(tmp_path)
    made = ModelFolder(Path("models/my rose"))
    made.path.mkdir(parents=True)
    spec = ModelSpec(name="my rose", classes=("a", "b"), preprocessing=Preprocessing())
    made.write_spec(spec.replace_provenance(weights_sha256=write_weights(made, 1.0), best_epoch=7))
    for precision in ("fp32", "fp16", "int8"):
        made.onnx_path(precision).write_bytes(precision.encode())
    made.onnx_path("fp16", 10).write_bytes(b"deployed")
    return made


def facts(folder: ModelFolder, of: str = "fp32", *, num_views: int | None = None, **changes: str) -> GraphMetadata:
    """The metadata of a graph that is fresh, but for the changes; a change to "" leaves the record out."""
    metadata = {
        "precision": of,
        "contract_sha256": folder.spec().contract_sha256,
        "weights_sha256": digest(folder.weights_path) if folder.weights_path.exists() else "",
    }
    if of != "fp32" or num_views is not None:
        metadata |= {"source": "model.onnx", "source_sha256": digest(folder.onnx_path())}
    if num_views is not None:
        metadata |= {"num_views": str(num_views)}
    metadata |= changes
    return GraphMetadata(
        metadata={f"alexdeploy.{key}": value for key, value in metadata.items() if value},
        sha256=digest(folder.onnx_path(of, num_views)),
    )


def refused(folder: ModelFolder, found: GraphMetadata, precision: str = "fp32") -> StaleArtifactError:
    with pytest.raises(StaleArtifactError) as caught:
        check_fresh(found, folder, precision, folder.spec())
    return caught.value


@pytest.mark.parametrize(("precision", "num_views"), [("fp32", None), ("fp16", None), ("int8", None), ("fp16", 10)])
def test_a_graph_is_fresh_whose_records_are_those_of_the_folder(
    folder: ModelFolder, precision: str, num_views: int | None
) -> None:
    found = facts(folder, precision, num_views=num_views)
    check_fresh(found, folder, precision, folder.spec())
    path = folder.onnx_path(precision, num_views)
    folder.sum_path(precision, num_views).write_text(f"{found.sha256}  {path.name}\n")
    check_fresh(found, folder, precision, folder.spec())


def test_a_graph_of_another_version_without_a_record_of_its_precision_is_taken_by_its_name(folder: ModelFolder) -> None:
    check_fresh(facts(folder, "fp16", precision=""), folder, "fp16", folder.spec())
    error = refused(folder, facts(folder, "fp16", precision="int8"), "fp16")
    assert error.message == "models/my rose/model.fp16.onnx contains the int8 graph, not the fp16 graph"


def test_a_graph_for_another_contract_is_stale(folder: ModelFolder) -> None:
    for contract in ("0" * 64, ""):
        error = refused(folder, facts(folder, contract_sha256=contract))
        assert error.message == (
            "models/my rose/model.onnx was made for another architecture, preprocessing or classes than "
            "models/my rose/spec.json has now"
        )
        assert error.hint == "Renew it: alexdeploy export 'models/my rose'"


def test_a_graph_of_other_weights_is_stale_with_and_without_those_of_the_folder(folder: ModelFolder) -> None:
    now = digest(folder.weights_path)
    error = refused(folder, facts(folder, weights_sha256="1" * 64))
    assert error.message == (
        f"models/my rose/model.onnx was made from weights.safetensors 111111111111, which is now {now[:12]}"
    )
    error = refused(folder, facts(folder, weights_sha256=""))
    assert "was made from weights.safetensors (unknown), which is now" in error.message
    folder.weights_path.unlink()
    error = refused(folder, facts(folder, weights_sha256="1" * 64))
    assert error.message == (
        f"models/my rose/model.onnx was made from weights 111111111111, spec.json records {now[:12]}"
    )
    # Where either is not recorded, nothing can be compared.
    check_fresh(facts(folder, weights_sha256=""), folder, "fp32", folder.spec())
    check_fresh(facts(folder, weights_sha256="1" * 64), folder, "fp32", replace(folder.spec(), provenance={}))
    check_fresh(facts(folder, weights_sha256=now), folder, "fp32", folder.spec())


def test_a_graph_is_stale_whose_source_is_another_now(folder: ModelFolder) -> None:
    found = facts(folder, "int8", source_sha256="2" * 64, int8_weights="7")
    error = refused(folder, found, "int8")
    now = digest(folder.onnx_path())
    assert (
        error.message
        == f"models/my rose/model.int8.onnx was made from model.onnx 222222222222, which is now {now[:12]}"
    )
    assert error.hint == "Renew it: alexdeploy export 'models/my rose' --int8 --int8-weights 7"
    error = refused(folder, facts(folder, "fp16", num_views=10, source_sha256="2" * 64), "fp16")
    assert error.hint == "Renew it: alexdeploy export 'models/my rose' --fp16 --deployment --views 10"
    # An inference machine has only the one file.
    folder.onnx_path().unlink()
    check_fresh(found, folder, "int8", folder.spec())


@pytest.mark.parametrize(
    ("content", "said"),
    [("1" * 64 + "  model.onnx\n", "111111111111"), ("", "nothing"), (" \n", "nothing"), ("short", "short")],
)
def test_a_graph_that_is_not_the_one_of_the_hash_beside_it_is_damaged(
    folder: ModelFolder, content: str, said: str
) -> None:
    folder.sum_path().write_text(content)
    found = facts(folder)
    assert refused(folder, found).message == (
        f"SHA-256 mismatch: models/my rose/model.onnx {found.sha256[:12]}, recorded {said} in model.onnx.sha256: "
        "one of them is damaged or from another export"
    )


def test_a_hash_that_cannot_be_read_is_an_error_and_not_taken_as_none(folder: ModelFolder) -> None:
    folder.sum_path().mkdir()
    with pytest.raises(ModelError, match=r"model\.onnx\.sha256 cannot be read: ") as caught:
        check_fresh(facts(folder), folder, "fp32", folder.spec())
    assert caught.value.hint == "Renew it: alexdeploy export 'models/my rose'"


def test_damaged_weights_come_first_and_the_graph_that_can_run_without_them_is_named(folder: ModelFolder) -> None:
    found = facts(folder)
    write_weights(folder, 2.0)
    matches = "model.onnx matches the recorded weights. To run it, move the damaged file away."
    assert str(refused(folder, found).hint).endswith(matches)
    others = (
        facts(folder, weights_sha256="1" * 64),
        replace(found, metadata={**found.metadata, "alexdeploy.contract_sha256": "3"}),
    )
    for other in others:
        assert matches not in str(refused(folder, other).hint)


def measured(folder: ModelFolder, scale: float, **changes: object) -> Ranges:
    tensor = TensorRange(minimum=-1, maximum=2, percentiles={}, threshold=127 * scale, scale=scale)
    ranges = Ranges(
        model=str(folder.path),
        key="",
        network_sha256=digest(folder.weights_path),
        contract_sha256=folder.spec().contract_sha256,
        method="minmax",
        percentile=99.99,
        num_views=1,
        seed=0,
        exclude=(),
        images_from="my photographs",
        num_asked=1,
        num_images=1,
        warnings=(),
        tensors={"images": tensor},
        images=(CalibrationImage(name="a.jpg", sha256="4" * 64),),
        skipped={},
    )
    found = with_key(replace(ranges, **changes))  # type: ignore[arg-type]
    folder.ranges_path.parent.mkdir(exist_ok=True)
    write_ranges(folder.ranges_path, found)
    return found


def test_an_int8_graph_is_stale_whose_ranges_were_measured_again(folder: ModelFolder) -> None:
    first = measured(folder, 0.5)
    found = facts(folder, "int8", ranges_sha256=first.sha256)
    check_fresh(found, folder, "int8", folder.spec())
    second = measured(folder, 0.25)
    error = refused(folder, found, "int8")
    assert error.message == (
        f"models/my rose/model.int8.onnx was made from my rose.ranges.json {first.sha256[:12]}, "
        f"which is now {second.sha256[:12]}"
    )
    # Those of another model with the same name, and none at all, say nothing of this graph.
    measured(folder, 0.25, network_sha256="5" * 64)
    check_fresh(found, folder, "int8", folder.spec())
    folder.ranges_path.write_bytes(b"damaged")
    check_fresh(found, folder, "int8", folder.spec())
    folder.ranges_path.unlink()
    check_fresh(found, folder, "int8", folder.spec())


def test_the_command_that_renews_a_graph_needs_its_source(folder: ModelFolder) -> None:
    assert renewal(folder, "fp16", "Make it") == "Make it: alexdeploy export 'models/my rose' --fp16"
    assert renewal(folder, "int8", weight_bits="8") == "Renew it: alexdeploy export 'models/my rose' --int8"
    folder.weights_path.unlink()
    assert renewal(folder, "int8") == "Renew it: alexdeploy export 'models/my rose' --int8"
    copy = "Copy it and spec.json again from the original folder, or import the model again."
    assert renewal(folder, "fp32") == copy
    folder.onnx_path().unlink()
    assert renewal(folder, "int8") == copy


def test_an_ensemble_is_made_again_from_its_members(folder: ModelFolder) -> None:
    assert ensemble_command(folder) is None
    members = tuple(Member(name=name, preprocessing=Preprocessing()) for name in ("one", "the other"))
    folder.write_spec(replace(folder.spec(), members=members, provenance={}))
    folder.weights_path.unlink()
    command = "alexdeploy ensemble one 'the other' --name 'my rose' --overwrite"
    assert ensemble_command(folder) == command
    assert renewal(folder, "fp32") == f"Renew it: {command}"
    assert renewal(folder, "int8") == f"Export the members with --int8 first.\nRenew it: {command}"
    # Its deployment graph is made from its own graph.
    assert renewal(folder, "fp32", num_views=5).startswith("Copy it")
    assert renewal(folder, "fp16", num_views=5).endswith("'models/my rose' --fp16 --deployment --views 5")
    folder.spec_path.write_text("damaged")
    assert ensemble_command(folder) is None


@pytest.mark.parametrize(
    ("kept", "also", "options"),
    [
        ((), (), ""),
        (("fp16",), (), " --fp16"),
        ((), ("fp16",), " --fp16"),
        (("int8",), (), " --int8 --calibrate IMAGES"),
        (("fp16",), ("int8",), " --fp16 --int8 --calibrate IMAGES"),
    ],
)
def test_the_command_for_new_weights_exports_what_there_is_and_what_is_asked_for(
    folder: ModelFolder, kept: tuple[str, ...], also: tuple[str, ...], options: str
) -> None:
    for name in {"fp16", "int8"} - set(kept):
        folder.onnx_path(name).unlink()
    assert export_command(folder, *also) == f"alexdeploy export 'models/my rose'{options}"  # type: ignore[arg-type]
    measured(folder, 1.0)
    expected = options.replace("IMAGES", "'my photographs'")
    assert export_command(folder, *also) == f"alexdeploy export 'models/my rose'{expected}"  # type: ignore[arg-type]


def test_newer_weights_are_told_with_the_command_that_uses_them(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert newer_weights(folder) is None
    folder.candidate.path.mkdir(parents=True)
    folder.candidate.write_spec(folder.spec())
    assert newer_weights(folder) is None
    folder.candidate.write_spec(folder.spec().replace_provenance(weights_sha256="6" * 64, best_epoch=12))
    now = digest(folder.weights_path)
    assert newer_weights(folder) == (
        "models/my rose has newer weights (666666666666, epoch 12) that are not exported; these are "
        f"{now[:12]}, epoch 7. "
        "Use the newer ones: alexdeploy export 'models/my rose' --fp16 --int8 --calibrate IMAGES"
    )
    folder.write_spec(replace(folder.spec(), provenance={}))
    assert "these are unknown, epoch unknown." in str(newer_weights(folder))
    folder.candidate.spec_path.write_text("damaged")
    assert str(newer_weights(folder)).startswith("newer weights are not used: ")
    # A training run or an export takes it away between the look and the reading.
    read: Callable[[ModelFolder], ModelSpec] = ModelFolder.spec

    def gone(of: ModelFolder) -> ModelSpec:
        if of == folder.candidate:
            of.spec_path.unlink()
        return read(of)

    monkeypatch.setattr(ModelFolder, "spec", gone)
    assert newer_weights(folder) is None
