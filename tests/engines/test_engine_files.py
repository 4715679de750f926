"""Which engine files may be loaded: tried with files that are no engines, since none of this needs a GPU."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from alexdeploy.core.artifacts import ModelFolder, sha256_bytes
from alexdeploy.core.errors import ModelError
from alexdeploy.engines import engine_files
from alexdeploy.engines.engine_files import (
    EngineKey,
    EngineRecord,
    Wanted,
    choose_engine,
    differences_from,
    engine_path,
    find_engines,
    key_differences,
    load_engine,
    read_record,
    sidecar_path,
    slug,
    trust_engine,
    write_engine,
)

PLAN = bytes(range(256)) * 40
KEY = EngineKey(
    graph_sha256="a" * 64,
    weights_sha256="f" * 64,
    contract_sha256="b" * 64,
    precision="fp16",
    num_views=10,
    profile=(1, 32, 32),
    tensorrt="10.16.1.11",
    compute_capability=(9, 0),
    cuda="13.0",
    builder={"workspace_bytes": 0, "tactic_sources": ""},
)
WANTED = Wanted(
    graph_sha256="a" * 64,
    weights_sha256="f" * 64,
    contract_sha256="b" * 64,
    precision="fp16",
    num_views=10,
    batch_size=8,
    tensorrt="10.16.1.11",
    compute_capability=(9, 0),
    cuda="13.0",
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "m")


def make_record(key: EngineKey = KEY) -> EngineRecord:
    return EngineRecord(
        **{field.name: getattr(key, field.name) for field in dataclasses.fields(EngineKey)},
        key=key.sha256,
        gpu="NVIDIA H100 80GB HBM3",
        engine_sha256="",
        engine_bytes=0,
        built_at="2026-01-01T00:00:00+00:00",
        build_seconds=1.5,
        alexdeploy="0.1.0",
    )


def make_engine(folder: ModelFolder, plan: bytes = PLAN, **changes: object) -> Path:
    key = dataclasses.replace(KEY, **changes)  # type: ignore[arg-type]
    path = engine_path(folder, key, "NVIDIA H100 80GB HBM3")
    write_engine(path, plan, make_record(key))
    return path


def test_an_engine_that_was_just_written_is_loaded_as_it_was(folder: ModelFolder) -> None:
    path = make_engine(folder)
    record, plan = load_engine(path)
    assert plan == PLAN == path.read_bytes(), "the plan is a plain file"
    assert (record.engine_sha256, record.engine_bytes) == (sha256_bytes(PLAN), len(PLAN))
    assert record.key == KEY.sha256


def test_the_name_says_gpu_capability_version_precision_views_and_key(folder: ModelFolder) -> None:
    path = engine_path(folder, KEY, "NVIDIA H100 80GB HBM3")
    assert path.parent == folder.path / "engines"
    assert path.name == f"h100-80gb-hbm3-sm90-trt10.16-fp16-tencrop-{KEY.sha256[:12]}.engine"
    assert (slug("Orin (nvgpu)"), slug("")) == ("orin-nvgpu", "gpu")


def test_the_sidecar_is_json_that_names_capability_and_version(folder: ModelFolder) -> None:
    path = make_engine(folder)
    assert sidecar_path(path).name == path.stem + ".json"
    found = json.loads(sidecar_path(path).read_bytes())
    assert found["compute_capability"] == [9, 0]
    assert found["tensorrt"] == "10.16.1.11"
    assert found["profile"] == [1, 32, 32]


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "c" * 64},
        {"weights_sha256": "c" * 64},
        {"contract_sha256": "c" * 64},
        {"precision": "int8"},
        {"num_views": 1},
        {"profile": (1, 8, 32)},
        {"tensorrt": "10.16.1.12"},
        {"compute_capability": (8, 9)},
        {"cuda": "12.8"},
        {"builder": {"workspace_bytes": 1, "tactic_sources": ""}},
    ],
)
def test_every_part_changes_the_key_and_is_named(change: dict[str, object]) -> None:
    other = dataclasses.replace(KEY, **change)  # type: ignore[arg-type]
    assert other.sha256 != KEY.sha256
    (told,) = key_differences(make_record(), other)
    (name,) = change
    assert told.startswith(name.removesuffix("_sha256"))
    assert key_differences(make_record(), KEY) == ()


def test_the_key_is_the_same_in_every_process() -> None:
    builder = dict(reversed(list(KEY.builder.items())))
    assert dataclasses.replace(KEY, builder=builder).sha256 == KEY.sha256
    assert KEY.sha256 == "ec151323b06f60a53164e7081cb38813603829910eaca95825dc0dad21531c52"


@pytest.mark.parametrize("size", [0, 1, len(PLAN) - 1, len(PLAN) // 2])
def test_a_truncated_engine_is_refused(folder: ModelFolder, size: int) -> None:
    path = make_engine(folder)
    path.write_bytes(PLAN[:size])
    with pytest.raises(ModelError, match=rf"has {size:,} bytes, its sidecar says 10,240"):
        load_engine(path)


@pytest.mark.parametrize("position", [0, 4096, len(PLAN) - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_an_engine_with_one_bit_flipped_is_refused(folder: ModelFolder, position: int, bit: int) -> None:
    path = make_engine(folder)
    content = bytearray(PLAN)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ModelError, match="was changed or exchanged"):
        load_engine(path)


def test_the_plan_of_another_engine_of_this_installation_is_refused(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, PLAN[::-1], precision="int8")
    os.replace(other, path)
    with pytest.raises(ModelError, match="was changed or exchanged"):
        load_engine(path)


def test_the_sidecar_of_another_engine_is_refused(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, PLAN[::-1], precision="int8")
    os.replace(sidecar_path(other), sidecar_path(path))
    with pytest.raises(ModelError, match="was changed or exchanged"):
        load_engine(path)


def test_a_plan_and_its_sidecar_under_another_name_are_taken_for_what_they_are(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, PLAN[::-1], precision="int8")
    os.replace(other, path)
    os.replace(sidecar_path(other), sidecar_path(path))
    with pytest.raises(ModelError, match="it is int8, asked for fp16"):
        choose_engine(folder, WANTED)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineRecord)])
def test_no_line_of_the_sidecar_can_be_changed(folder: ModelFolder, field: str) -> None:
    path = make_engine(folder)
    content = json.loads(sidecar_path(path).read_bytes())
    changed = {
        "precision": "int8",
        "num_views": 1,
        "profile": [1, 64, 64],
        "compute_capability": [8, 0],
        "builder": {},
        "engine_bytes": 10_241,
        "build_seconds": 2.5,
    }
    content[field] = changed.get(field, "0" * 64)
    sidecar_path(path).write_text(json.dumps(content))
    with pytest.raises(ModelError):
        load_engine(path)


def test_a_plan_that_was_changed_together_with_its_hash_is_refused(folder: ModelFolder) -> None:
    path = make_engine(folder)
    other = PLAN[::-1]
    path.write_bytes(other)
    content = json.loads(sidecar_path(path).read_bytes())
    content["engine_sha256"] = sha256_bytes(other)
    sidecar_path(path).write_text(json.dumps(content))
    for refuses in (load_engine, trust_engine):
        with pytest.raises(ModelError, match="was changed since the engine was built"):
            refuses(path)


def test_what_is_not_in_the_sidecars_form_is_refused(folder: ModelFolder) -> None:
    path = make_engine(folder)
    for content in (b"", b"{}", b"[]", b"\xff", b'{"precision": "fp8"}'):
        sidecar_path(path).write_bytes(content)
        with pytest.raises(ModelError, match="is damaged"):
            load_engine(path)


def test_an_engine_without_a_sidecar_is_refused_and_cannot_be_trusted(folder: ModelFolder) -> None:
    path = make_engine(folder)
    sidecar_path(path).unlink()
    for refuses in (load_engine, trust_engine):
        with pytest.raises(ModelError, match=r"has no readable .*\.json"):
            refuses(path)


def test_a_sidecar_without_an_engine_is_refused(folder: ModelFolder) -> None:
    path = make_engine(folder)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_engine(path)


def test_another_installations_engine_is_refused_until_it_is_trusted(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(folder)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    with pytest.raises(ModelError, match="was built by another installation") as caught:
        load_engine(path)
    assert f"alexdeploy build --trust-engine {path}" in str(caught.value.cure)
    trust_engine(path)
    assert load_engine(path)[1] == PLAN
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    with pytest.raises(ModelError, match="another installation"):
        load_engine(path)


def test_a_damaged_engine_of_another_installation_cannot_be_trusted(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(folder)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    path.write_bytes(PLAN[:-1])
    with pytest.raises(ModelError, match="was truncated or exchanged"):
        trust_engine(path)


def test_a_sidecar_that_claims_this_installations_name_needs_its_secret(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make_engine(folder)
    name = read_record(ours).signed_by
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    theirs = make_engine(folder, PLAN[::-1], precision="int8")
    content = json.loads(sidecar_path(theirs).read_bytes())
    assert content["signed_by"] != name
    content["signed_by"] = name
    sidecar_path(theirs).write_text(json.dumps(content))
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    with pytest.raises(ModelError, match="was changed since the engine was built"):
        load_engine(theirs)


def test_the_signature_is_hmac_sha256_over_the_rest_of_the_sidecar(folder: ModelFolder, state: Path) -> None:
    path = make_engine(folder)
    content = json.loads(sidecar_path(path).read_bytes())
    signature = content["signature"]
    content["signature"] = ""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hmac.new((state / "engine.key").read_bytes(), text.encode(), hashlib.sha256).hexdigest() == signature


@posix_only
def test_the_secret_is_32_bytes_for_this_user_alone(folder: ModelFolder, state: Path) -> None:
    make_engine(folder)
    secret = state / "engine.key"
    assert len(secret.read_bytes()) == 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["engine.key"]


@posix_only
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_secret_of_another_mode_is_refused(folder: ModelFolder, state: Path, mode: int) -> None:
    path = make_engine(folder)
    (state / "engine.key").chmod(mode)
    with pytest.raises(ModelError, match=rf"has mode {mode:04o} .* expected 0600"):
        load_engine(path)
    with pytest.raises(ModelError, match="expected 0600"):
        make_engine(folder)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(folder: ModelFolder, state: Path, size: int) -> None:
    path = make_engine(folder)
    (state / "engine.key").write_bytes(b"x" * size)
    with pytest.raises(ModelError, match="is damaged: expected 32 bytes"):
        load_engine(path)


def test_a_lost_secret_makes_this_installation_another_one(folder: ModelFolder, state: Path) -> None:
    path = make_engine(folder)
    (state / "engine.key").unlink()
    with pytest.raises(ModelError, match="another installation"):
        load_engine(path)


def test_the_secret_is_made_once_by_whoever_is_first(state: Path) -> None:
    barrier, found = threading.Barrier(8), []

    def read() -> None:
        barrier.wait()
        found.append(engine_files._secret())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(list(state.iterdir())) == 1


def test_the_state_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_files.state_folder() == tmp_path / "state"
    monkeypatch.delenv("ALEXDEPLOY_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert engine_files.state_folder() == tmp_path / "xdg" / "alexdeploy"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engine_files.state_folder() == tmp_path / ".local" / "state" / "alexdeploy"


def test_the_engine_that_fits_is_chosen_and_of_two_the_one_for_smaller_batches(folder: ModelFolder) -> None:
    make_engine(folder, num_views=1)
    large, small = make_engine(folder, profile=(1, 64, 64)), make_engine(folder, profile=(1, 16, 16))
    assert choose_engine(folder, WANTED) == small
    assert choose_engine(folder, dataclasses.replace(WANTED, batch_size=17)) == large


def test_no_engine_at_all_names_the_command_that_builds_one(folder: ModelFolder) -> None:
    with pytest.raises(ModelError, match="has no TensorRT engine") as caught:
        choose_engine(folder, WANTED)
    assert caught.value.cure == f"Build one: alexdeploy build {folder.path} --fp16 --views 10 --max-batch 8"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"compute_capability": (8, 0)}, "it is for sm_80, this device is sm_90"),
        ({"tensorrt": "8.6.0"}, r"it was built with TensorRT 8\.6\.0, here is 10\.16\.1\.11"),
        ({"cuda": "12.2"}, r"it was built with CUDA 12\.2, here is 13\.0"),
        ({"precision": "fp32", "graph_sha256": "d" * 64}, "does not fit: it is fp32, asked for fp16\n"),
        ({"num_views": 1}, "it averages 1 views, asked for 10"),
        ({"graph_sha256": "d" * 64}, "it was built from graph dddddddddddd, the model's is aaaaaaaaaaaa"),
        ({"weights_sha256": "d" * 64}, "it was built from weights dddddddddddd, the model's are ffffffffffff"),
        ({"contract_sha256": "d" * 64}, "another architecture, preprocessing or classes"),
        ({"profile": (1, 4, 4)}, "it takes 1 to 4 images, asked for 8"),
    ],
)
def test_an_engine_that_does_not_fit_says_in_which_part(
    folder: ModelFolder, change: dict[str, object], told: str
) -> None:
    make_engine(folder, **change)
    with pytest.raises(ModelError, match=told) as caught:
        choose_engine(folder, WANTED)
    assert "alexdeploy build" in str(caught.value.cure)


def test_of_several_that_do_not_fit_the_nearest_is_named(folder: ModelFolder) -> None:
    make_engine(folder, compute_capability=(8, 0), tensorrt="8.6.0", precision="int8")
    near = make_engine(folder, cuda="12.2")
    with pytest.raises(ModelError, match="CUDA") as caught:
        choose_engine(folder, WANTED)
    assert str(near) in caught.value.message


def test_a_damaged_sidecar_hides_its_engine_and_no_other(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, precision="int8")
    sidecar_path(other).write_text("{")
    assert [found for found, _ in find_engines(folder)] == [path]


def test_all_differences_are_told_at_once() -> None:
    record = make_record(dataclasses.replace(KEY, tensorrt="11.4.0", compute_capability=(10, 0), num_views=5))
    assert len(differences_from(record, WANTED)) == 3
