"""What the processes of torchrun print: the user sees the output of one, and one error."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alexdeploy.cli.rank_output import one_voice, silence_nonzero_ranks
from alexdeploy.core.errors import AlexDeployError, DataError

# Streams that are replaced are left to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

Launch = Callable[..., None]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Sets the environment of one of `size` processes on this machine; afterwards streams and signals are as before."""
    streams = sys.stdout, sys.stderr

    def set_environment(rank: int, size: int) -> None:
        names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 0}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    yield set_environment
    if sys.stdout not in (streams[0], sys.__stdout__):
        sys.stdout.close()
    sys.stdout, sys.stderr = streams
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_machine_prints(launch: Launch, rank: int) -> None:
    before = sys.stdout
    silence_nonzero_ranks()
    assert sys.stdout is before
    launch(rank, 2)
    silence_nonzero_ranks()
    assert (sys.stdout is before) == (rank == 0)


def test_the_reason_is_written_where_torchrun_looks_for_it(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(0, 1)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    sizes = []

    def fail() -> None:
        with one_voice("cpu") as group:
            sizes.append(None if group is None else group.size)
            raise DataError("no images", hint="Name some.")

    with pytest.raises(DataError):
        fail()
    assert sizes == [1]
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "no images\nName some."
    assert sys.stdout is sys.__stdout__
    # torchrun ends the others by it, and this one still has an error to print.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_that_cannot_begin_the_first_says_why(launch: Launch, rank: int) -> None:
    launch(rank, 2)
    with pytest.raises(AlexDeployError, match="2 processes cannot all train on cuda:0"), one_voice("cuda:0"):
        pass
    assert (sys.stdout is sys.__stdout__) == (rank == 0)
