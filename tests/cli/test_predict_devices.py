"""`predict` on several replicas gives the bytes of one, whatever befalls them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers import write_pictures
from patience import HANG, PATIENCE, wait_for
from program import Run

from alexdeploy.core.model_folder import ModelFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "placement"))
from faults import Gate, inject, one_worker_is_slow

COMMAND = ("predict", "pictures", "--tencrop", "--backend", "onnxruntime", "--batch-size", "4", "--format", "jsonl")


@pytest.fixture
def work(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models/tiny and 40 pictures, one of them broken."""
    root = tiny_model.path.parents[1]
    monkeypatch.chdir(root)
    write_pictures(root / "pictures", 40)
    (root / "pictures" / "031.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def _known() -> dict[str, str]:
    """What tests have found and others need not find again."""
    return {}


@pytest.fixture
def expected(program: Run, work: Path, _known: dict[str, str]) -> str:
    """The rows of one replica: model and pictures are the same in every test."""
    if "rows" not in _known:
        result = program(*COMMAND, "--devices", "cpu", "--threads", "1")
        assert result.exit_code == 3
        assert len(result.stdout.splitlines()) == 40
        _known["rows"] = result.stdout
    return _known["rows"]


def test_two_replicas_give_the_bytes_of_one_and_each_says_what_it_did(program: Run, work: Path, expected: str) -> None:
    result = program(*COMMAND, "--devices", "cpu,cpu", "--threads", "2")
    assert result.exit_code == 3
    assert result.stdout == expected
    lines = [line for line in result.stderr.splitlines() if line.startswith("cpu") and "images (" in line]
    assert len(lines) == 2
    assert all("waited" in line for line in lines)


def test_a_replica_that_is_killed_half_way_changes_nothing(
    work: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(work / "gate")
    # Each of them answers three batches freely: those of the first 12 rows are among them.
    inject(monkeypatch, work / "faults", gate.after(3))
    command = [sys.executable, "-m", "alexdeploy", *COMMAND, "--devices", "cpu,cpu", "--threads", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        first = [run.stdout.readline() for _ in range(12)]
        workers = [child for child in psutil.Process(run.pid).children() if "placement.worker" in str(child.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        gate.open()
        # Not communicate(), which loses what readline() has read ahead.
        rest, messages = run.stdout.read(), run.stderr.read()
    assert run.returncode == 3
    assert "".join(first) + rest == expected
    assert "lost 1 time (ended by signal 9" in messages


@pytest.mark.parametrize(
    ("number", "exit_code", "fault"),
    [(signal.SIGINT, 130, f"time.sleep({HANG})"), (signal.SIGTERM, 143, "os.kill(os.getpid(), signal.SIGSTOP)")],
)
def test_ctrl_c_does_not_wait_for_replicas_that_hang(
    work: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int, fault: str
) -> None:
    journal, hanging = work / "rows.partial", work / "hanging"
    hanging.mkdir()
    fault = f"""
        if count > 3:
            open(os.path.join({str(hanging)!r}, str(os.getpid())), "w").close()
            {fault}
    """
    inject(monkeypatch, work / "faults", fault)
    command = [sys.executable, "-m", "alexdeploy", *COMMAND, "--devices", "cpu,cpu", "--threads", "2", "-o", "rows"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        try:
            wait_for(lambda: run.poll() is not None or len(list(hanging.iterdir())) == 2)
            wait_for(lambda: run.poll() is not None or journal.stat().st_size)
            rows = journal.read_bytes()
            run.send_signal(number)
            _, messages = run.communicate(timeout=PATIENCE)
        finally:
            run.kill()
    assert run.returncode == exit_code
    assert "the rows so far are in" in messages
    assert journal.read_bytes().startswith(rows)


def test_a_replica_that_is_much_slower_changes_nothing(
    program: Run, work: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Were they to take turns, each would wait for the other.
    inject(monkeypatch, work / "faults", one_worker_is_slow(work / "slow", 10))
    result = program(*COMMAND, "--devices", "cpu,cpu", "--threads", "2")
    assert result.stdout == expected
    assert "lost" not in result.stderr
    shares = sorted(int(line.split(": ")[1].split()[0]) for line in result.stderr.splitlines() if " images (" in line)
    assert shares[0] * 2 < shares[1]


@pytest.mark.parametrize("placement", ["towers", "pipeline"])
def test_a_network_on_two_devices_gives_the_same_answers(
    program: Run, work: Path, expected: str, placement: str
) -> None:
    result = program(*COMMAND, "--placement", placement)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 40
    for one, other in zip(found, map(json.loads, expected.splitlines()), strict=True):
        assert one["source"] == other["source"]
        if other["error"] is None:
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
            assert one["label"] == other["label"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--devices", "gpu7"), "--devices gpu7: found 'gpu7', expected all or one of: cpu"),
        (("--batch-size", "many"), "--batch-size many: expected a number of images from 1 on, or auto"),
        (("--placement", "towers", "--devices", "cpu"), "needs two devices, found 1"),
        (("--placement", "towers", "--backend", "openvino"), "--placement runs in ONNX Runtime"),
    ],
)
def test_what_cannot_be_placed_is_a_usage_error(
    program: Run, work: Path, options: tuple[str, ...], message: str
) -> None:
    result = program("predict", "pictures", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_batch_size_of_auto_takes_what_fits_the_device(program: Run, work: Path) -> None:
    assert program("predict", "pictures", "--batch-size", "auto").exit_code == 3
