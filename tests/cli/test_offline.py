"""No command uses the network, or writes to the user's home outside alexdeploy's own cache and state."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import offline
import pytest
from patience import slow_but_for
from PIL import Image

from alexdeploy.core.model_folder import ModelFolder

_SCRIPT = str(Path(offline.__file__))
_TRAIN = (
    "train",
    "data",
    *("--recipe", "alexnet-quarter", "--epochs", "1", "--name", "new"),
    *("--set", "architecture.width=0.0625", "--set", "architecture.hidden=[256, 256]"),
)
_BENCH = ("bench", "tiny", "--images", "pictures", "--num-images", "4", "--batch-size", "1", "--views", "1")
_COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "help": (0, ("--help",)),
    "sample": (0, ("sample", "made", "--num-train", "1", "--num-val", "1")),
    "prepare": (0, ("prepare", "data", "packed")),
    "train": (0, _TRAIN),
    "calibrate": (0, ("calibrate", "tiny", "pictures")),
    "export": (0, ("export", "tiny", "--fp16", "--int8", "--calibrate", "pictures", "--max-drop", "100")),
    "build": (2 if find_spec("tensorrt") is None else 5, ("build", "tiny")),
    "predict, OpenVINO": (0, ("predict", "pictures", "--backend", "openvino")),
    "predict, ONNX Runtime": (0, ("predict", "pictures", "--backend", "onnxruntime")),
    "predict, PyTorch": (0, ("predict", "pictures", "--backend", "torch")),
    "embed": (0, ("embed", "pictures", "-o", "features.npy")),
    "predict, workers": (0, ("predict", "pictures", "--backend", "onnxruntime", "--devices", "cpu,cpu")),
    "predict, two devices": (0, ("predict", "pictures", "--placement", "towers", "--devices", "cpu,cpu")),
    "explain": (0, ("explain", "pictures/000.png", "--size", "128", "--stride", "128", "--html", "explained.html")),
    "evaluate": (0, ("evaluate", "data", "--html", "report.html")),
    "verify": (0, ("verify", "tiny", "pictures", "--num-images", "4", "--max-flips", "100", "--html", "verify.html")),
    "bench": (0, (*_BENCH, "--backend", "openvino,onnxruntime", "--seconds", "0", "--html", "bench.html", "--json")),
    "inspect": (0, ("inspect", "tiny")),
    "card": (0, ("card", "tiny", "--images", "data", "--output", "handed")),
    "import": (0, ("import", "models/tiny/model.onnx", "--name", "again", "--scale", "0.004", "--mean", "0,0,0")),
    "devices": (0, ("devices",)),
    "doctor": (0, ("doctor",)),
}
_QUICK = ("help", "sample", "prepare", "predict, OpenVINO", "predict, ONNX Runtime", "inspect", "devices")
"""Those that other tests need not wait for: what is opened, compiled and trained takes seconds each."""


@functools.cache
def _why_not() -> str | None:
    if offline.CALLS is None:
        return "needs Linux on x86-64 or AArch64, for its seccomp filter"
    tried = _try("IPv4")
    return None if tried.stdout else f"this system allows no seccomp filter: {tried.stderr.strip().splitlines()[-1]}"


def _try(kind: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, _SCRIPT, "--try", kind], capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def _skip_without_filter() -> None:
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def workplace(int8_model: ModelFolder) -> Path:
    """The working folder: models/tiny with INT8, pictures/, and data/ with its five classes."""
    for index in range(10):
        folder = Path("data") / f"class-{index % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (25 * index, 100, 50)).save(folder / f"{index}.png")
    return Path.cwd()


@pytest.mark.parametrize("kind", ["IPv4", "IPv6", "no connection"])
def test_the_filter_ends_a_process_that_uses_the_network(kind: str) -> None:
    if kind == "IPv6" and not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    tried = _try(kind)
    assert tried.stdout == "filtered\n"
    assert tried.returncode == -signal.SIGSYS


@pytest.mark.parametrize("name", slow_but_for(_QUICK, _COMMANDS))
def test_no_command_uses_the_network_or_writes_elsewhere_in_the_home_folder(
    name: str, workplace: Path, tmp_path: Path
) -> None:
    exit_code, words = _COMMANDS[name]
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("XDG_", "ALEXDEPLOY_", "ORT_", "MPL")) and key != "HOME"
    }
    done = subprocess.run(
        [sys.executable, _SCRIPT, *words],
        env={**kept, "HOME": str(home), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    # What the filter ends of other processes is only reported.
    assert "SIGSYS" not in done.stdout
    assert "lost" not in done.stderr
    if name == "bench":
        # Where the processor has bfloat16 there is one more than these six.
        rows = json.loads(done.stdout)["rows"]
        assert len(rows) >= 6
        assert {row["error"] for row in rows} == {None}
    written = {path.relative_to(home) for path in home.rglob("*")}
    own = (Path(".cache/alexdeploy"), Path(".local/state/alexdeploy"))
    allowed = {parent for folder in own for parent in folder.parents}
    assert {path for path in written - allowed if not any(path.is_relative_to(folder) for folder in own)} == set()
