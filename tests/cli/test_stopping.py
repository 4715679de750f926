"""Ctrl-C and SIGTERM end a command at once, wherever it is: on a quiet machine within two seconds."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from patience import wait_for
from PIL import Image

from alexdeploy.core.model_folder import ModelFolder

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

LIMIT_SECONDS = 20
PREDICT = ("predict", "--model", "models/tiny", "--backend", "onnxruntime")


def gzip_member(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1)


def write_tar_of_zeros(path: Path) -> None:
    """A member of 100 GB, which is not an image and is skipped, in 300 kB times 1,600."""
    size, part = 100 << 30, gzip_member(bytes(64 << 20))
    info = tarfile.TarInfo("zeros.bin")
    info.size = size
    with path.open("wb") as file:
        file.write(gzip_member(info.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(size >> 26):
            file.write(part)
        file.write(gzip_member(bytes(1024)))


def write_jpeg_of_many_scans(path: Path) -> None:
    """8,000 x 8,000 grey pixels; the last of its progressive scans, some hundred bytes, comes 4,000 times."""
    whole = io.BytesIO()
    Image.new("L", (8000, 8000), 128).save(whole, "JPEG", progressive=True)
    data = whole.getvalue()
    scan = data.rindex(b"\xff\xda")
    path.write_bytes(data[:scan] + data[scan:-2] * 4000 + data[-2:])


def write_endless_graph(path: Path) -> None:
    """A classifier that adds 1 to its scores 2^60 times."""
    scores = ("scores", TensorProto.FLOAT, [1, 10])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["value", "one"], ["sum"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", *scores[1:]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", *scores[1:]),
        ],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["first"]),
            helper.make_node("Loop", ["times", "yes", "first"], ["scores"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 227, 227])],
        [helper.make_tensor_value_info(*scores)],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [1 << 60]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            helper.make_tensor("weights", TensorProto.FLOAT, [3, 10], np.arange(30.0)),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


# What is made for a place, the event of Python's that tells of it (and stops there for a minute), and the command.
PLACES: dict[str, tuple[Callable[[Path], None] | None, str, tuple[str, ...]]] = {
    "the program is imported": (None, "event == 'import' and args[0] == 'typer' and stop()", ("inspect",)),
    "the command is imported": (None, "event == 'import' and args[0] == 'numpy' and stop()", (*PREDICT, "a.jpg")),
    "a tree is listed": (
        lambda folder: (folder / "place").mkdir(),
        "event == 'os.scandir' and pathlib.Path(str(args[0])).name == 'place' and stop()",
        (*PREDICT, "place/**/*.jpg"),
    ),
    "a member of a tar is skipped": (
        lambda folder: write_tar_of_zeros(folder / "place.tar.gz"),
        "event == 'open' and 'place.tar.gz' in str(args[0])",
        (*PREDICT, "place.tar.gz"),
    ),
    "an image is decoded": (
        lambda folder: write_jpeg_of_many_scans(folder / "place.jpg"),
        "event == 'open' and 'place.jpg' in str(args[0])",
        (*PREDICT, "place.jpg"),
    ),
    "a foreign graph is run": (
        lambda folder: write_endless_graph(folder / "place.onnx"),
        "event == 'import' and args[0] == 'onnxruntime'",
        ("import", "place.onnx", "--recipe", "torchvision", "--name", "imported"),
    ),
}

IMPORTS = ("the program is imported", "the command is imported")

SITE = """
import pathlib, sys, time
def stop():
    pathlib.Path("arrived").touch()
    time.sleep(60)
def tell(event, args):
    if %s:
        pathlib.Path("arrived").touch()
sys.addaudithook(tell)
"""


@contextlib.contextmanager
def running(folder: Path, event: str, command: tuple[str, ...]) -> Iterator[subprocess.Popen[str]]:
    """A command that has come to `event`."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE % event)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder / "site"), *sys.path)))}
    words = [sys.executable, "-m", "alexdeploy", *command]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment
    ) as process:
        try:
            limit = time.monotonic() + 60
            while not (folder / "arrived").exists():
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def processor_seconds(process: subprocess.Popen[str]) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = psutil.Process(process.pid).cpu_times()
        return float(times.user + times.system)
    return math.inf


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((place, signal.SIGINT) for place in PLACES),
        *((place, signal.SIGTERM) for place in IMPORTS),
        *(pytest.param(place, signal.SIGTERM, marks=pytest.mark.slow) for place in PLACES if place not in IMPORTS),
    ],
)
def test_a_signal_ends_the_command_wherever_it_is(
    tiny_model: ModelFolder, tmp_path: Path, place: str, number: signal.Signals
) -> None:
    make, event, command = PLACES[place]
    if make is not None:
        make(tmp_path)
    with running(tmp_path, event, command) as process:
        # Well into it, where the event is only its beginning; importing ONNX Runtime and a graph takes half of it.
        busy = processor_seconds(process) + (0.0 if "stop()" in event else 0.8)
        wait_for(lambda: processor_seconds(process) >= busy)
        process.send_signal(number)
        began = time.monotonic()
        _, messages = process.communicate(timeout=LIMIT_SECONDS)
        print(f"{place}, {number.name}: {time.monotonic() - began:.2f} s")
    # Before anything is begun it is the signal itself that ends it, which a shell calls 130 or 143 too.
    assert process.returncode in (128 + number, -number)
    assert messages == ""
