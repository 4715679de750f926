"""What one process has, another does not get; what a killed one had, the next one gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexdeploy.core import locks
from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.core.locks import hold_folder, take_lock, wait_for_lock

fcntl = pytest.importorskip("fcntl")
BUSY = UsageError("busy")

_HOLDER = """
import os, signal, sys
from pathlib import Path
from alexdeploy.core.errors import UsageError
from alexdeploy.core.locks import hold_folder
with hold_folder(Path(sys.argv[1]), UsageError("busy")):
    print("held", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_one_processs_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="busy"), hold_folder(folder, BUSY):
            raise AssertionError
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == -9
    with hold_folder(folder, BUSY):
        pass


def test_a_refused_one_takes_nothing_from_the_one_that_holds(tmp_path: Path) -> None:
    with hold_folder(tmp_path, BUSY):
        for _ in range(2):
            with pytest.raises(UsageError, match="busy"), hold_folder(tmp_path, BUSY):
                raise AssertionError


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_is_left_as_it_was_found(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "mine"
    if is_there:
        folder.mkdir()
    with pytest.raises(KeyError), hold_folder(folder, BUSY):
        raise KeyError
    assert folder.exists() == is_there
    assert not is_there or not list(folder.iterdir())


def test_what_was_written_to_a_new_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with hold_folder(folder, BUSY):
        (folder / "spec.json").touch()
    assert [path.name for path in folder.iterdir()] == ["spec.json"]


def test_where_the_file_system_has_no_locks_one_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_folder(tmp_path, BUSY), hold_folder(tmp_path, BUSY):
        pass


def test_a_file_that_was_renamed_before_the_lock_is_anothers(tmp_path: Path) -> None:
    path = tmp_path / "rows.partial"
    with path.open("w") as file:
        path.rename(tmp_path / "rows")
        assert not take_lock(file.fileno(), path)
        path.touch()
        assert not take_lock(file.fileno(), path)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="could not be written"), hold_folder(tmp_path / "file" / "mine", BUSY):
        raise AssertionError


def test_a_lock_is_waited_for_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    assert take_lock(descriptor, path)
    waits = []

    def wait(seconds: float) -> None:
        # The other process ends after the third look.
        waits.append(seconds)
        if len(waits) == 3:
            path.unlink()
            os.close(descriptor)

    monkeypatch.setattr(locks.time, "sleep", wait)
    with wait_for_lock(path):
        assert len(waits) == 3
        assert path.exists()
    assert not path.exists()


def test_a_lock_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert take_lock(descriptor, path)
        monkeypatch.setattr(locks, "_MOST_SECONDS", 0.0)
        with pytest.raises(UsageError, match="another process"), wait_for_lock(path):
            raise AssertionError
    finally:
        os.close(descriptor)
    assert path.exists()
