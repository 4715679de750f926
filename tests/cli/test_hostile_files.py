"""What stands in the place of a file, or is damaged in it, ends in a named error within seconds: in every command."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from program import Result, Run
from safetensors.numpy import load_file

from alexdeploy.core.model_folder import ModelFolder

CODES = {0, 2, 3, 4, 5, 6}
_SECONDS = 120
"""That nothing waits for ever is what is tested; a loaded machine may take its time."""

_PREDICT = ("predict", "pictures/000.png", "--model", "tiny", "--format", "jsonl")
_EVALUATE = ("evaluate", "--model", "tiny", "--views", "1", "--backend", "onnxruntime")
_IMPORT = ("import", "--recipe", "torchvision", "--name", "other", "--overwrite")

READERS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    (
        "models/tiny/spec.json",
        (_PREDICT, ("inspect", "models/tiny"), ("export", "tiny"), ("verify", "tiny", "data")),
    ),
    ("models/tiny/weights.safetensors", (_PREDICT, ("inspect", "models/tiny/weights.safetensors"))),
    ("models/tiny/mean.npy", (_PREDICT,)),
    ("models/tiny/model.onnx", (_PREDICT, ("inspect", "models/tiny/model.onnx"))),
    ("models/tiny/model.onnx.sha256", (_PREDICT,)),
    ("models/tiny/backends.json", (_PREDICT, ("inspect", "models/tiny"))),
    ("models/tiny/model.int8.onnx", ((*_PREDICT, "--precision", "int8"),)),
    ("calibration/tiny.ranges.json", (("export", "tiny", "--int8"), (*_PREDICT, "--precision", "int8"))),
    ("graph.onnx", ((*_IMPORT, "graph.onnx"),)),
    ("weights.pth", ((*_IMPORT, "weights.pth"),)),
    ("weights.safetensors", ((*_IMPORT, "weights.safetensors"), ("inspect", "weights.safetensors"))),
    ("weights.caffemodel", ((*_IMPORT, "weights.caffemodel"),)),
    ("mean.npy", ((*_IMPORT, "graph.onnx", "--mean-image", "mean.npy", "--channels", "rgb"),)),
    ("labels.txt", ((*_IMPORT, "graph.onnx", "--labels", "labels.txt"),)),
    ("list.txt", (("predict", "@list.txt", "--model", "tiny", "--format", "jsonl"),)),
    ("labelled.txt", ((*_EVALUATE, "data", "--labels", "labelled.txt"),)),
    ("recipe.toml", (("inspect", "recipe.toml"),)),
    ("rows.jsonl", (("predict", "pictures", "--model", "tiny", "-o", "rows.jsonl", "--resume"),)),
    ("packed/index.json", ((*_EVALUATE, "packed"),)),
    ("packed/plan.json", ((*_EVALUATE, "packed"),)),
    ("packed/val-names.json", (("predict", "packed", "--model", "tiny", "--format", "jsonl"),)),
    ("packed/val-labels.npy", ((*_EVALUATE, "packed"),)),
)
"""File -> commands that read it."""

KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo if hasattr(os, "mkfifo") else lambda path: pytest.skip("no fifos here"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "endless": lambda path: path.symlink_to("/proc/self/pagemap"),
}


@pytest.fixture(scope="module")
def _made(_quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one of each kind of file, all of them right."""
    root = tmp_path_factory.mktemp("hostile") / "work"
    shutil.copytree(_quantized, root)
    model = ModelFolder(root / "models" / "tiny")
    for label, name in enumerate(f"class-{index}" for index in range(5)):
        (root / "data" / name).mkdir(parents=True)
        for number in (2 * label, 2 * label + 1):
            shutil.copy(root / "pictures" / f"{number:03}.png", root / "data" / name)
    shutil.copy(model.onnx_path(), root / "graph.onnx")
    shutil.copy(model.weights_path, root / "weights.safetensors")
    tensors = {name: torch.from_numpy(value) for name, value in load_file(model.weights_path).items()}
    torch.save(tensors, root / "weights.pth")
    (root / "weights.caffemodel").write_bytes(b"\x0a\x04tiny" + random.Random(0).randbytes(1000))
    np.save(root / "mean.npy", np.full((3, 256, 256), 110, np.float32))
    (root / "labels.txt").write_text("".join(f"class-{index}\n" for index in range(5)))
    (root / "list.txt").write_text("pictures/000.png\npictures/001.png\n")
    (root / "labelled.txt").write_text("class-0/000.png 0\nclass-1/002.png 1\n")
    shutil.copy(Path(__file__).parents[2] / "models" / "alexnet.toml", root / "recipe.toml")
    for words in (
        ("prepare", "data", "packed", "--val-fraction", "0.5"),
        ("predict", "pictures", "--model", "tiny", "-o", "rows.jsonl"),
    ):
        subprocess.run([sys.executable, "-m", "alexdeploy", *words], cwd=root, check=True, timeout=_SECONDS)
    return root


@pytest.fixture
def work(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "work"
    # Pictures and packed pixels are only read.
    shutil.copytree(_made, root, copy_function=os.link)
    monkeypatch.chdir(root)
    return root


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _check(program: Run, words: tuple[str, ...]) -> Result:
    with _time_limit():
        result = program(*words)
    said = result.stdout + result.stderr
    assert result.exit_code in CODES, said
    assert "Traceback" not in said
    if words[0] == "predict" and result.exit_code in (0, 3) and "-o" not in words:
        # Rows in are rows out.
        assert result.stdout.count("\n") == result.stdout.count('{"index":') >= 1
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="devices and /proc as Linux has them")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("file", "commands"), READERS, ids=[file for file, _ in READERS])
def test_what_is_in_the_place_of_a_file_is_never_waited_for(
    program: Run, work: Path, file: str, commands: tuple[tuple[str, ...], ...], kind: str
) -> None:
    (work / file).unlink()
    KINDS[kind](work / file)
    for words in commands:
        result = _check(program, words)
        # An output may be a pipe or a device, but for --resume.
        if result.exit_code != 0 and "--resume" not in words:
            assert Path(file).stem in result.stdout + result.stderr or str(Path(file).parent) in result.stderr


@pytest.mark.parametrize(("file", "commands"), READERS, ids=[file for file, _ in READERS])
def test_damaged_bytes_end_in_a_named_error(
    program: Run, work: Path, file: str, commands: tuple[tuple[str, ...], ...]
) -> None:
    path, right = work / file, (work / file).read_bytes()
    random_ = random.Random(file)
    places = (random_.randrange(min(len(right), 1000)), random_.randrange(len(right)), len(right) - 1)
    bits = (random_.choice((1, 0x80)), 1, 0x80)
    damaged = [
        right[:place] + bytes([right[place] ^ bit]) + right[place + 1 :]
        for place, bit in zip(places, bits, strict=True)
    ]
    for content in (*damaged, right[: len(right) // 2], b"[" * 100_000, b"\0" * 1000):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        for words in commands:
            _check(program, words)


def test_a_spec_with_a_byte_that_is_no_utf8_is_damaged(program: Run, work: Path) -> None:
    spec = work / "models" / "tiny" / "spec.json"
    content = bytearray(spec.read_bytes())
    content[content.index(b"class-0") + 1] ^= 0x80
    spec.unlink()
    spec.write_bytes(content)
    for words in (_PREDICT, ("inspect", "models/tiny"), ("export", "tiny"), ("verify", "tiny", "data")):
        result = program(*words)
        assert result.exit_code == 4
        # In msgspec's words, which were Python's before 0.23.
        assert "spec.json is damaged: " in result.stderr
        assert "utf-8" in result.stderr.lower()


LONG = "n" * 300


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("predict", "pictures/000.png", "--model", LONG), 2),
        (("predict", "pictures/000.png", "--model", f"models/{LONG}"), 2),
        (("export", LONG), 2),
        (("export", f"models/{LONG}"), 2),
        (("verify", LONG, "data"), 2),
        (("evaluate", "data", "--model", LONG), 2),
        (("calibrate", LONG, "pictures"), 2),
        (("inspect", LONG), 2),
        (("inspect", f"{LONG}.toml"), 2),
        (("inspect", f"{LONG}.onnx"), 2),
        (("train", "data", "--name", LONG), 2),
        (("train", "data", "--recipe", LONG), 2),
        (("train", "data", "--pretrained", LONG), 2),
        ((*_IMPORT[:-1], "graph.onnx", "--name", LONG), 2),
        ((*_IMPORT, f"{LONG}.onnx"), 2),
        ((*_IMPORT, "graph.onnx", "--labels", LONG), 2),
        (("predict", "pictures/000.png", "--model", "tiny", "-o", f"{LONG}.jsonl"), 6),
        # 251 bytes are a name, with the .partial of the journal they are none.
        (("predict", "pictures/000.png", "--model", "tiny", "-o", "n" * 245 + ".jsonl"), 6),
        (("predict", "pictures/000.png", "--model", "tiny", "-o", "n" * 245 + ".jsonl", "--resume"), 6),
        (("evaluate", "data", "--model", "tiny", "-o", f"{LONG}.csv"), 6),
        (("prepare", "data", LONG), 6),
        (("prepare", LONG, "out"), 3),
        (("predict", f"{LONG}.jpg", "--model", "tiny", "--format", "jsonl"), 2),
        (("predict", f"@{LONG}", "--model", "tiny", "--format", "jsonl"), 2),
    ],
)
def test_a_name_too_long_for_the_file_system_is_an_error_of_its_own(
    program: Run, work: Path, words: tuple[str, ...], code: int
) -> None:
    result = _check(program, words)
    assert result.exit_code == code
    if code in (2, 6):
        assert LONG in result.stderr.replace("\n", "") or "too long" in result.stderr


def test_the_longest_names_of_an_output_work(program: Run, work: Path) -> None:
    # 247 bytes, and with .partial 255: what is written beside it has a shorter name.
    output = work / ("n" * 241 + ".jsonl")
    assert _check(program, ("predict", "pictures/000.png", "--model", "tiny", "-o", output.name)).exit_code == 0
    assert output.read_text().count("\n") == 1
