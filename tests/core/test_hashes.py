"""Hashes that are remembered: a memory that was tampered with shows who has read a file and who has not."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from alexdeploy.core import hashes
from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.hashes import remembered_sha256

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is remembered")

CONTENT = bytes(1 << 20)
FORGED = "f" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone, and a hundredth of the time until files count as left alone."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", 20_000_000)
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(CONTENT)
    _settle()
    return path


def _settle() -> None:
    time.sleep(0.05)


def _forge(cache: Path) -> None:
    """Have every hash that is remembered be another: whoever gives this answer has not read the file."""
    path = cache / "hashes" / "sha256.json"
    memory = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({key: [*entry[:3], FORGED] for key, entry in memory.items()}))


def test_a_file_that_is_as_it_was_is_not_read_again(file: Path, cache: Path) -> None:
    assert remembered_sha256(file) == sha256_file(file)
    _forge(cache)
    assert remembered_sha256(file) == FORGED


def test_a_link_and_another_name_are_the_same_file(file: Path, cache: Path, tmp_path: Path) -> None:
    remembered_sha256(file)
    _forge(cache)
    (tmp_path / "link").symlink_to(file)
    assert remembered_sha256(tmp_path / "link") == FORGED


def test_other_content_of_the_same_size_with_its_times_set_back_is_seen(file: Path, cache: Path) -> None:
    before = file.stat()
    remembered_sha256(file)
    _forge(cache)
    file.write_bytes(b"\1" + CONTENT[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert remembered_sha256(file) == sha256_file(file)


def test_a_file_that_took_the_place_of_another_is_seen(file: Path, cache: Path, tmp_path: Path) -> None:
    before = file.stat()
    other = tmp_path / "other"
    other.write_bytes(b"\1" + CONTENT[1:])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    remembered_sha256(file)
    _forge(cache)
    os.replace(other, file)
    assert remembered_sha256(file) == sha256_file(file)


def test_a_touched_file_is_read_again(file: Path, cache: Path) -> None:
    remembered_sha256(file)
    _forge(cache)
    file.touch()
    assert remembered_sha256(file) == sha256_file(file)


def test_a_file_that_was_written_just_now_is_not_remembered(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_SETTLED_NS", 3_600_000_000_000)
    remembered_sha256(file)
    assert not (cache / "hashes" / "sha256.json").exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(path: Path) -> str:
        found = sha256_file(path)
        path.write_bytes(CONTENT[1:] + b"x")
        return found

    before = sha256_file(file)
    monkeypatch.setattr(hashes, "sha256_file", read_and_change)
    assert remembered_sha256(file) == before
    assert not (cache / "hashes" / "sha256.json").exists()
    monkeypatch.setattr(hashes, "sha256_file", sha256_file)
    assert remembered_sha256(file) == sha256_file(file) != before


def test_a_file_that_goes_away_while_it_is_read_has_the_hash_that_it_had(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_remove(path: Path) -> str:
        found = sha256_file(path)
        path.unlink()
        return found

    monkeypatch.setattr(hashes, "sha256_file", read_and_remove)
    assert len(remembered_sha256(file)) == 64
    assert not (cache / "hashes" / "sha256.json").exists()


def test_where_ctime_is_not_that_of_the_last_change_every_file_is_read(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered_sha256(file)
    _forge(cache)
    monkeypatch.setattr(hashes, "_HAS_CHANGE_TIME", False)
    assert remembered_sha256(file) == sha256_file(file)


def test_a_file_of_a_file_system_without_a_change_time_is_always_read(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_keeps_change_time", lambda *_: False)
    assert remembered_sha256(file) == sha256_file(file)
    assert not (cache / "hashes" / "sha256.json").exists()


def test_where_both_times_are_equal_a_nameless_file_on_the_same_device_tells_what_they_are_worth(
    tmp_path: Path,
) -> None:
    device = tmp_path.stat().st_dev
    before = tmp_path.stat().st_mtime_ns
    assert hashes._keeps_change_time(_times(device), tmp_path / "gone", tmp_path)
    assert not hashes._keeps_change_time(_times(device + 1), tmp_path)
    assert not hashes._keeps_change_time(_times(device))
    assert hashes._keeps_change_time(_times(device + 1, changed=2))
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime_ns == before


def _times(device: int, changed: int = 1) -> os.stat_result:
    """Of a file that was written at 1 s: two of the three times in whole seconds, then in nanoseconds."""
    times = {"st_atime_ns": 10**9, "st_mtime_ns": 10**9, "st_ctime_ns": changed * 10**9}
    return os.stat_result((0o100644, 1, device, 1, 0, 0, 1, 1, 1, changed), times)


def test_a_small_file_is_always_read(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"small")
    _settle()
    assert remembered_sha256(path) == sha256_file(path)
    assert not (cache / "hashes" / "sha256.json").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"1:2": [1, 2, 3, "no hash"]}', b"\xff", b"[]"])
def test_a_damaged_memory_is_begun_again(file: Path, cache: Path, damage: bytes) -> None:
    remembered_sha256(file)
    (cache / "hashes" / "sha256.json").write_bytes(damage)
    assert remembered_sha256(file) == sha256_file(file)
    _forge(cache)
    assert remembered_sha256(file) == FORGED


def test_a_memory_that_cannot_be_written_is_done_without(file: Path, cache: Path) -> None:
    (cache / "hashes" / "sha256.json").mkdir(parents=True)
    assert remembered_sha256(file) == sha256_file(file)


def test_a_cache_that_is_no_folder_is_done_without(file: Path, cache: Path) -> None:
    cache.write_text("not a folder")
    assert remembered_sha256(file) == sha256_file(file)


def test_the_files_hashed_last_are_remembered(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_MAX_FILES", 2)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(CONTENT + path.name.encode())
    _settle()
    for path in paths:
        remembered_sha256(path)
    _forge(cache)
    assert [remembered_sha256(path) == FORGED for path in reversed(paths)] == [True, True, False]


def test_who_remembers_at_once_may_forget_but_not_mistake(tmp_path: Path, cache: Path) -> None:
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        path.write_bytes(CONTENT + path.name.encode())
    _settle()
    for _ in range(2):
        with ThreadPoolExecutor(len(paths)) as threads:
            assert list(threads.map(remembered_sha256, paths)) == [sha256_file(path) for path in paths]
    assert [path.name for path in (cache / "hashes").iterdir()] == ["sha256.json"]


def test_a_file_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        remembered_sha256(tmp_path / "nothing")
