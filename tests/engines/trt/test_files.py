"""What engine files are called, say of themselves and fit: tried with files that are no engines, without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from made_engines import GPU, KEY, PLAN, make_engine, make_record

from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.trt.choose import EngineRequirements, choose_engine, differences_from
from alexdeploy.engines.trt.files import (
    engine_path,
    find_engines,
    key_differences,
    load_engine,
    read_record,
    sidecar_path,
    slug,
    timing_cache_path,
    write_engine,
)
from alexdeploy.engines.trt.rebuild import rebuild_hint

WANTED = EngineRequirements(
    graph_sha256="a" * 64,
    weights_sha256="f" * 64,
    contract_sha256="b" * 64,
    precision="fp16",
    num_views=10,
    batch_size=8,
    version="10.16.1.11",
    compute_capability=(9, 0),
    cuda="13.0",
)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "m")


def test_an_engine_that_was_just_written_is_loaded_as_it_was(folder: ModelFolder) -> None:
    path = make_engine(folder)
    record, plan = load_engine(path)
    assert plan == PLAN == path.read_bytes(), "the plan is a plain file"
    assert (record.engine_sha256, record.engine_bytes) == (sha256_bytes(PLAN), len(PLAN))
    assert record.key == KEY.sha256


def test_the_name_says_gpu_capability_version_precision_views_and_key(folder: ModelFolder) -> None:
    path = engine_path(folder, KEY, GPU)
    assert path.parent == folder.path / "engines"
    assert path.name == f"h100-80gb-hbm3-sm90-trt10.16-fp16-tencrop-{KEY.sha256[:12]}.engine"
    assert (slug("Orin (nvgpu)"), slug("")) == ("orin-nvgpu", "gpu")


def test_the_sidecar_is_json_that_names_capability_and_version(folder: ModelFolder) -> None:
    path = make_engine(folder)
    assert sidecar_path(path).name == path.stem + ".json"
    found = json.loads(sidecar_path(path).read_bytes())
    assert found["compute_capabilities"] == [[9, 0]]
    assert found["version"] == "10.16.1.11"
    assert found["profile"] == [1, 32, 32]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"graph_sha256": "c" * 64}, "graph aaaaaaaaaaaa instead of cccccccccccc"),
        ({"weights_sha256": "c" * 64}, "weights ffffffffffff instead of cccccccccccc"),
        ({"contract_sha256": "c" * 64}, "contract bbbbbbbbbbbb instead of cccccccccccc"),
        ({"precision": "int8"}, "precision fp16 instead of int8"),
        ({"num_views": 1}, "views 10 instead of 1"),
        ({"profile": (1, 8, 16)}, "images 1 to 32, best 32 instead of 1 to 16, best 8"),
        ({"version": "10.16.1.12"}, "version 10.16.1.11 instead of 10.16.1.12"),
        ({"compute_capabilities": ((8, 6), (8, 9))}, "compute capabilities sm_90 instead of sm_86, sm_89"),
        ({"cuda": "12.8"}, "CUDA 13.0 instead of 12.8"),
        ({"builder": {"workspace_bytes": 1, "tactic_sources": ""}}, "workspace_bytes 0 instead of 1"),
    ],
)
def test_every_part_changes_the_key_and_is_named(change: dict[str, object], told: str) -> None:
    other = dataclasses.replace(KEY, **change)  # type: ignore[arg-type]
    assert other.sha256 != KEY.sha256
    assert key_differences(make_record(), other) == (told,)
    assert key_differences(make_record(), KEY) == ()


def test_the_key_is_the_same_in_every_process() -> None:
    builder = dict(reversed(list(KEY.builder.items())))
    assert dataclasses.replace(KEY, builder=builder).sha256 == KEY.sha256
    assert KEY.sha256 == "72e83c487610efb05350bf22db564b6fd94d284eb9d33a0dab02f749710038a2"


def test_a_sidecar_of_another_format_is_refused_by_its_number(folder: ModelFolder) -> None:
    path = make_engine(folder)
    assert json.loads(sidecar_path(path).read_bytes())["format"] == 2
    sidecar_path(path).write_text('{"format": 3, "plan": "elsewhere"}')
    with pytest.raises(ModelError, match=r"\.json has format 3, this version reads 2"):
        read_record(path)


def test_a_plan_and_its_sidecar_under_another_name_are_taken_for_what_they_are(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, PLAN[::-1], precision="int8")
    os.replace(other, path)
    os.replace(sidecar_path(other), sidecar_path(path))
    with pytest.raises(ModelError, match="its precision is int8, requested fp16"):
        choose_engine(folder, WANTED)


def test_the_engine_that_fits_is_chosen_and_of_two_the_one_for_smaller_batches(folder: ModelFolder) -> None:
    make_engine(folder, num_views=1)
    large, small = make_engine(folder, profile=(1, 64, 64)), make_engine(folder, profile=(1, 16, 16))
    assert choose_engine(folder, WANTED) == small
    assert choose_engine(folder, dataclasses.replace(WANTED, batch_size=17)) == large


def test_the_package_of_tensorrt_may_tell_more_than_its_library(folder: ModelFolder) -> None:
    path = make_engine(folder, version="8.6.1")
    assert choose_engine(folder, dataclasses.replace(WANTED, version="8.6.1.post1")) == path
    with pytest.raises(ModelError, match=r"built with TensorRT 8\.6\.1, here is 8\.6\.2"):
        choose_engine(folder, dataclasses.replace(WANTED, version="8.6.2.post1"))


def test_of_two_engines_that_differ_only_in_how_they_were_built_the_later_is_chosen(folder: ModelFolder) -> None:
    paths = [make_engine(folder, builder={"preview": name}) for name in ("", "PROFILE_SHARING_0806")]
    for latest in paths:
        for path in paths:
            year = 2027 if path == latest else 2026
            write_engine(path, PLAN, dataclasses.replace(read_record(path), built_at=f"{year}-01-01T00:00:00+00:00"))
        assert choose_engine(folder, WANTED) == latest


def test_no_engine_at_all_names_the_command_that_builds_one(folder: ModelFolder) -> None:
    with pytest.raises(ModelError, match="has no TensorRT engine") as caught:
        choose_engine(folder, WANTED)
    assert caught.value.hint == f"Build one: alexdeploy build {folder.path} --fp16 --views 10 --max-batch 8"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"compute_capabilities": ((8, 0),)}, "it is for sm_80, this device is sm_90"),
        ({"version": "8.6.0"}, r"it was built with TensorRT 8\.6\.0, here is 10\.16\.1\.11"),
        ({"cuda": "12.2"}, r"it was built with CUDA 12\.2, here is 13\.0"),
        ({"precision": "fp32", "graph_sha256": "d" * 64}, "does not fit: its precision is fp32, requested fp16\n"),
        ({"num_views": 1}, "it averages 1 views, requested 10"),
        ({"graph_sha256": "d" * 64}, "it was built from graph dddddddddddd, the model's is aaaaaaaaaaaa"),
        ({"weights_sha256": "d" * 64}, "it was built from weights dddddddddddd, the model's are ffffffffffff"),
        ({"contract_sha256": "d" * 64}, "another architecture, preprocessing or classes"),
        ({"profile": (1, 4, 4)}, "it takes 1 to 4 images, requested 8"),
    ],
)
def test_an_engine_that_does_not_fit_says_in_which_part(
    folder: ModelFolder, change: dict[str, object], told: str
) -> None:
    make_engine(folder, **change)
    with pytest.raises(ModelError, match=told) as caught:
        choose_engine(folder, WANTED)
    assert "alexdeploy build" in str(caught.value.hint)


def test_of_several_that_do_not_fit_the_nearest_is_named(folder: ModelFolder) -> None:
    make_engine(folder, compute_capabilities=((8, 0),), version="8.6.0", precision="int8")
    near = make_engine(folder, cuda="12.2")
    with pytest.raises(ModelError, match="CUDA") as caught:
        choose_engine(folder, WANTED)
    assert str(near) in caught.value.message


@pytest.mark.parametrize("max_batch", [8, 32])
def test_the_hint_of_a_damaged_engine_builds_that_engine(folder: ModelFolder, max_batch: int) -> None:
    of_rtx = {"backend": "tensorrt-rtx", "compute_capabilities": ((8, 6), (12, 0)), "num_views": 5}
    builder = {"workspace_bytes": 64 << 20, "tactic_sources": "EDGE_MASK_CONVOLUTIONS"}
    path = make_engine(folder, profile=(1, max_batch, max_batch), builder=builder, **of_rtx)
    named = f"Build it again: alexdeploy build {folder.path} --fp16 --views 5"
    cards = "--backend tensorrt-rtx --for sm86,sm120"
    path.write_bytes(PLAN[:-1])
    with pytest.raises(ModelError, match="truncated") as caught:
        load_engine(path)
    options = f"--max-batch {max_batch} --workspace 64 --tactic-sources EDGE_MASK_CONVOLUTIONS"
    assert caught.value.hint == f"{named} {options} {cards}"
    # Without the sidecar, the name of the file is left.
    sidecar_path(path).write_bytes(b"{")
    with pytest.raises(ModelError, match="is damaged") as caught:
        load_engine(path)
    assert caught.value.hint == f"{named} {cards}"
    sidecar_path(path).unlink()
    with pytest.raises(ModelError, match="has no readable") as caught:
        load_engine(path)
    assert caught.value.hint == f"Copy the .json that belongs to it.\nElse {named} {cards}"


def test_the_hint_of_a_file_under_a_name_of_its_own_is_the_command_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.engine"
    assert rebuild_hint(path) == "Build it again: alexdeploy build"
    assert rebuild_hint(path, KEY) == "Build it again: alexdeploy build MODEL --fp16 --views 10 --max-batch 32"


def test_a_damaged_sidecar_hides_its_engine_and_no_other(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, precision="int8")
    sidecar_path(other).write_text("{")
    assert [found for found, _ in find_engines(folder)] == [path]


def test_all_differences_are_told_at_once() -> None:
    record = make_record(dataclasses.replace(KEY, version="11.4.0", compute_capabilities=((10, 0),), num_views=5))
    assert len(differences_from(record, WANTED)) == 3


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_a_timing_cache_is_kept_where_nobody_else_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    asked = (GPU, (9, 0), "10.16.1.11", "13.0")
    umask = os.umask(0o002)
    try:
        path = timing_cache_path(*asked)
    finally:
        os.umask(umask)
    assert path == tmp_path / "cache" / "tensorrt" / "h100-80gb-hbm3-sm90-trt10.16.1.11-cuda13.0.timing"
    path.write_bytes(b"measured")
    path.chmod(0o644)
    assert timing_cache_path(*asked) == path
    path.chmod(0o666)
    assert timing_cache_path(*asked) is None
    path.chmod(0o600)
    path.parent.chmod(0o770)
    assert timing_cache_path(*asked) is None


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give a file away")
def test_a_timing_cache_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    path = timing_cache_path(GPU, (9, 0), "10.16.1.11", "13.0")
    assert path is not None
    path.write_bytes(b"measured")
    os.chown(path, 12345, -1)
    assert timing_cache_path(GPU, (9, 0), "10.16.1.11", "13.0") is None


def test_without_a_cache_there_is_no_timing_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "file"))
    Path(tmp_path / "file").touch()
    assert timing_cache_path("NVIDIA L4", (8, 9), "10.16", "13.0") is None
