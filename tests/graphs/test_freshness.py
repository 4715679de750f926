"""What graphs say of themselves, read past the graph."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import replace_graph
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from alexdeploy.core import hashes
from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.files import read_graph
from alexdeploy.graphs.freshness import load_graph, load_metadata, read_metadata


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files of any size remembered, as soon as they are some hundredths of a second old."""
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_MIN_BYTES", 0)
    monkeypatch.setattr(hashes, "_SETTLED_NS", 20_000_000)
    time.sleep(0.05)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_facts_are_those_of_the_graph(tiny_model: ModelFolder, precision: str) -> None:
    path = tiny_model.onnx_path(precision)
    facts, graph = read_metadata(path), read_graph(path)
    assert facts.metadata == {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (facts.sha256, facts.weights_sha256, facts.network_sha256) == (
        graph.sha256,
        graph.weights_sha256,
        graph.network_sha256,
    )
    assert facts.spec() == tiny_model.spec()


def test_a_graph_of_somebody_else_has_no_facts(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "theirs", [value], [other])
    onnx.save(helper.make_model(graph), tmp_path / "theirs.onnx")
    facts = read_metadata(tmp_path / "theirs.onnx")
    assert (facts.metadata, facts.spec()) == ({}, None)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x3a\xff\xff\xff\x7f"])
def test_a_file_that_is_no_graph_is_refused_in_the_words_of_read_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as expected:
        read_graph(path)
    with pytest.raises(ModelError) as found:
        read_metadata(path)
    assert str(found.value) == str(expected.value)


def test_a_truncated_graph_is_refused_before_it_is_compiled(tiny_model: ModelFolder) -> None:
    path = tiny_model.onnx_path()
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ModelError, match="not an ONNX file, or it is truncated"):
        load_metadata(tiny_model, "fp32", tiny_model.spec())


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is remembered")
@pytest.mark.usefixtures("remembering")
def test_weights_that_changed_with_their_size_and_times_as_they_were_are_stale(tiny_model: ModelFolder) -> None:
    load_metadata(tiny_model, "fp32", tiny_model.spec())
    before, content = tiny_model.weights_path.stat(), bytearray(tiny_model.weights_path.read_bytes())
    content[-1] ^= 1
    tiny_model.weights_path.write_bytes(content)
    os.utime(tiny_model.weights_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StaleArtifactError, match=r"was made from weights\.safetensors"):
        load_metadata(tiny_model, "fp32", tiny_model.spec())


@pytest.mark.usefixtures("remembering")
def test_weights_that_took_the_place_of_others_are_stale(tiny_model: ModelFolder, tmp_path: Path) -> None:
    load_metadata(tiny_model, "fp32", tiny_model.spec())
    weights = load_file(tiny_model.weights_path)
    weights["fc8.bias"] += np.float32(1)
    save_file(weights, tmp_path / "other.safetensors")
    os.replace(tmp_path / "other.safetensors", tiny_model.weights_path)
    with pytest.raises(StaleArtifactError, match=r"was made from weights\.safetensors"):
        load_metadata(tiny_model, "fp32", tiny_model.spec())


@pytest.mark.usefixtures("remembering")
def test_an_fp16_graph_is_stale_when_another_model_onnx_took_its_place(tiny_model: ModelFolder, tmp_path: Path) -> None:
    load_metadata(tiny_model, "fp16", tiny_model.spec())
    model = onnx.load(tiny_model.onnx_path())
    model.doc_string = "changed"
    onnx.save(model, tmp_path / "other.onnx")
    os.replace(tmp_path / "other.onnx", tiny_model.onnx_path())
    with pytest.raises(StaleArtifactError, match=r"was made from model\.onnx"):
        load_metadata(tiny_model, "fp16", tiny_model.spec())


@pytest.mark.usefixtures("remembering")
def test_a_graph_that_changed_within_is_another(tiny_model: ModelFolder) -> None:
    before = load_metadata(tiny_model, "fp32", tiny_model.spec())
    model = onnx.load(tiny_model.onnx_path())
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc8.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "fc8.bias"))
    replace_graph(tiny_model, "fp32", model)
    after = load_metadata(tiny_model, "fp32", tiny_model.spec())
    assert after.sha256 != before.sha256
    assert after.sha256 == load_graph(tiny_model, "fp32", tiny_model.spec()).sha256


def test_facts_are_read_without_onnx(tiny_model: ModelFolder) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom alexdeploy.core.model_folder import ModelFolder\n"
        "from alexdeploy.graphs.freshness import load_metadata\nfolder = ModelFolder(Path(sys.argv[1]))\n"
        "load_metadata(folder, 'fp32', folder.spec())\nprint('onnx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def _read_all(folder: ModelFolder, precision: str) -> None:
    for read in (load_metadata, load_graph):
        read(folder, precision, folder.spec())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_graph_that_was_damaged_in_place_is_refused(int8_model: ModelFolder, precision: str) -> None:
    path = int8_model.onnx_path(precision)
    _read_all(int8_model, precision)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\x3c" * 3000
    path.write_bytes(content)
    for read in (load_metadata, load_graph):
        with pytest.raises(
            StaleArtifactError, match=rf"SHA-256 mismatch: .*{path.name} .* in {path.name}\.sha256"
        ) as caught:
            read(int8_model, precision, int8_model.spec())
        assert "alexdeploy export" in str(caught.value.hint)


def test_a_damaged_graph_without_its_weights_is_to_be_copied_again(tiny_model: ModelFolder) -> None:
    tiny_model.weights_path.unlink()
    tiny_model.sum_path().write_text("no hash at all\n")
    with pytest.raises(StaleArtifactError, match=r"recorded no.* in model\.onnx\.sha256") as caught:
        load_metadata(tiny_model, "fp32", tiny_model.spec())
    assert "Copy it and spec.json again" in str(caught.value.hint)


def test_a_graph_without_a_hash_beside_it_is_taken_as_it_is(tiny_model: ModelFolder) -> None:
    tiny_model.sum_path().unlink()
    tiny_model.weights_path.unlink()
    _read_all(tiny_model, "fp32")


def test_the_hash_beside_a_graph_is_one_that_sha256sum_checks(tiny_model: ModelFolder) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "model.fp16.onnx.sha256"], cwd=tiny_model.path, check=True)


def test_a_graph_of_another_precision_under_a_new_name_is_refused(int8_model: ModelFolder) -> None:
    int8_model.sum_path("fp16").unlink()
    int8_model.onnx_path("fp16").write_bytes(int8_model.onnx_path("int8").read_bytes())
    with pytest.raises(StaleArtifactError, match=r"model\.fp16\.onnx contains the int8 graph"):
        load_metadata(int8_model, "fp16", int8_model.spec())


def test_an_export_that_is_killed_between_graph_and_hash_leaves_a_graph_that_runs(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(path: Path, content: bytes) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(graph_files, "sum_line", kill)
    with pytest.raises(KeyboardInterrupt):
        graph_files.write_graph(tiny_model, "fp32", tiny_model.onnx_path().read_bytes())
    _read_all(tiny_model, "fp32")


def test_what_is_missing_to_a_graph_is_told_with_what_makes_it(tiny_model: ModelFolder) -> None:
    path = tiny_model.onnx_path()
    path.write_bytes(path.read_bytes()[:-100_000])
    for read in (load_metadata, load_graph):
        with pytest.raises(ModelError, match="truncated") as caught:
            read(tiny_model, "fp32", tiny_model.spec())
        assert caught.value.hint == f"Renew it: alexdeploy export {tiny_model.path}"
