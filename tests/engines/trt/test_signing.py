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
from made_engines import PLAN, make_engine

from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import ModelError, OutputError
from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.trt.files import (
    EngineRecord,
    check_can_write,
    load_engine,
    read_record,
    sidecar_path,
    trust_engine,
)
from alexdeploy.engines.trt.signing import own_secret, state_folder

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "m")


@pytest.mark.parametrize("size", [0, 1, len(PLAN) - 1, len(PLAN) // 2])
def test_a_truncated_engine_is_refused(folder: ModelFolder, size: int) -> None:
    path = make_engine(folder)
    path.write_bytes(PLAN[:size])
    with pytest.raises(ModelError, match=rf"has {size:,} bytes, its sidecar records 10,240"):
        load_engine(path)


@pytest.mark.parametrize("position", [0, 4096, len(PLAN) - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_an_engine_with_one_bit_flipped_is_refused(folder: ModelFolder, position: int, bit: int) -> None:
    path = make_engine(folder)
    content = bytearray(PLAN)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ModelError, match="was changed or replaced"):
        load_engine(path)


def test_the_plan_of_another_engine_of_this_installation_is_refused(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, PLAN[::-1], precision="int8")
    os.replace(other, path)
    with pytest.raises(ModelError, match="was changed or replaced"):
        load_engine(path)


def test_the_sidecar_of_another_engine_is_refused(folder: ModelFolder) -> None:
    path, other = make_engine(folder), make_engine(folder, PLAN[::-1], precision="int8")
    os.replace(sidecar_path(other), sidecar_path(path))
    with pytest.raises(ModelError, match="was changed or replaced"):
        load_engine(path)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineRecord)])
def test_no_line_of_the_sidecar_can_be_changed(folder: ModelFolder, field: str) -> None:
    path = make_engine(folder)
    content = json.loads(sidecar_path(path).read_bytes())
    changed = {
        "precision": "int8",
        "num_views": 1,
        "profile": [1, 64, 64],
        "compute_capabilities": [[8, 0]],
        "backend": "tensorrt-rtx",
        "builder": {},
        "format": 3,
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
    assert f"alexdeploy build --trust-engine {path}" in str(caught.value.hint)
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
    with pytest.raises(ModelError, match="truncated or replaced"):
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


@posix_only
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o720, 0o702])
def test_a_secret_in_a_folder_that_others_may_write_is_refused(folder: ModelFolder, state: Path, mode: int) -> None:
    path = make_engine(folder)
    state.chmod(mode)
    for refuses in (load_engine, trust_engine):
        with pytest.raises(ModelError, match=rf"state has mode {mode:04o} .* expected 0700") as caught:
            refuses(path)
    assert f"chmod 700 {state}" in str(caught.value.hint)
    state.chmod(0o755)
    assert load_engine(path)[1] == PLAN


@posix_only
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root may give a folder away")
def test_a_secret_in_a_folder_of_another_user_is_refused(folder: ModelFolder, state: Path) -> None:
    path = make_engine(folder)
    os.chown(state, 12345, -1)
    with pytest.raises(ModelError, match="state has mode 0700 and owner 12345"):
        load_engine(path)


def test_looking_at_an_engine_makes_no_secret(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(folder)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    with pytest.raises(ModelError, match="another installation"):
        load_engine(path)
    assert not (tmp_path / "other").exists()


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
        found.append(own_secret())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(list(state.iterdir())) == 1


def test_the_state_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder() == tmp_path / "state"
    monkeypatch.delenv("ALEXDEPLOY_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_folder() == tmp_path / "xdg" / "alexdeploy"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "alexdeploy"


def test_before_a_build_it_is_known_that_its_engine_can_be_written(folder: ModelFolder, state: Path) -> None:
    path = folder.path / "engines" / "m.engine"
    check_can_write(path)
    assert (state / "engine.key").is_file()
    assert list(path.parent.iterdir()) == []
    path.parent.rmdir()
    path.parent.write_bytes(b"a file in the place of the folder")
    with pytest.raises(OutputError, match=r"m\.engine could not be written"):
        check_can_write(path)
    (state / "engine.key").write_bytes(b"short")
    with pytest.raises(ModelError, match="is damaged"):
        check_can_write(path)


def test_a_user_without_a_home_is_told_what_to_set(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_engine(folder)
    for name in ("STATE", "CACHE"):
        monkeypatch.delenv(f"ALEXDEPLOY_{name}")
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
    monkeypatch.setenv("HOME", "~no-such-user")
    monkeypatch.setattr("pwd.getpwuid", dict[int, str]().__getitem__)
    for refuses in (load_engine, check_can_write):
        with pytest.raises(ModelError, match="there is no home folder") as caught:
            refuses(path)
        assert "ALEXDEPLOY_STATE=" in str(caught.value.hint)
    assert cache_folder("tensorrt") is None


def test_a_state_folder_that_is_a_file_is_told(state: Path) -> None:
    state.write_bytes(b"")
    with pytest.raises(ModelError, match=r"engine\.key cannot be read: Not a directory"):
        own_secret()
