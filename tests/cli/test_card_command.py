from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import write_pictures
from program import Run

from alexdeploy.core.model_folder import ModelFolder


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy card` in this process, where models/tiny and labelled/ are."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    for number in range(5):
        write_pictures(Path("labelled") / f"class-{number}", 1, seed=number)
    return partial(program, "card")


def test_a_card_with_the_errors_of_every_graph_and_backend(run: Run, program: Run) -> None:
    found = run("tiny", "--images", "labelled", "--views", "1", "--json")
    assert found.exit_code == 0
    written = json.loads(found.stdout)
    assert (written["path"], written["measured_on"]) == ("hub/tiny", "evaluation")
    assert "wrote hub/tiny: 11 files; errors of the evaluation\n" in found.stderr
    text = Path("hub/tiny/README.md").read_text()
    measured = program("evaluate", "labelled", "--precision", "fp32,fp16", "--views", "1", "--json", "--quiet")
    for score in json.loads(measured.stdout)["scores"]:
        way, rate = score["configuration"], score["top1"]
        interval = f"[{rate['low_percent']:.2f}, {rate['high_percent']:.2f}]"
        cells = f"`{way['precision']}` | 1 | {rate['percent']:.2f} {interval}"
        assert f"| `{way['backend']}` | {cells}" in text
        assert f"| `onnxruntime` | {cells}" in text
    Path("result.json").write_text(measured.stdout)
    Path("labelled/class-0/broken.jpg").write_bytes(b"no image")
    broken = run("tiny", "--images", "labelled", "--views", "1", "--precision", "fp32", "--output", "broken")
    assert broken.exit_code == 3
    assert "of which 1 could not be read" in Path("broken/README.md").read_text()
    assert run("--evaluation", "result.json", "--output", "other", "--license", "mit").exit_code == 0
    assert 'license: "mit"\n' in Path("other/README.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tiny", "--precision", "int8"), "--precision is for an evaluation"),
        (("tiny", "--tencrop"), "--tencrop is for an evaluation"),
        (("tiny", "--images", "labelled", "--evaluation", "x.json"), "--images and --evaluation are both given"),
        (("tiny", "--output", "models/tiny/card"), "is in the model folder models/tiny"),
        (("tiny", "--output", "", "--overwrite"), "--output is empty"),
        (("tiny", "--output", "labelled", "--images", "labelled"), "labelled is a folder that is not empty"),
        (("tiny", "--license", "no licence"), "--license 'no licence' is no identifier"),
    ],
)
def test_wrong_use_is_a_usage_error_before_anything_is_written(run: Run, words: tuple[str, ...], told: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert not Path("hub").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_is_full_leaves_nothing_or_what_was_there(run: Run) -> None:
    import resource

    assert run("tiny", "--output", "there").exit_code == 0
    before = {path: path.read_bytes() for path in Path("there").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ; the graph has more bytes than that.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        results = [run("tiny", "--output", "new"), run("tiny", "--output", "there", "--overwrite")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for result, name in zip(results, ("new", "there"), strict=True):
        assert (result.exit_code, f"{name} could not be written: File too large" in result.stderr) == (6, True)
    assert {path: path.read_bytes() for path in Path("there").iterdir()} == before
    assert not [path for path in Path().iterdir() if path.name.startswith((".", "new"))]


def test_ctrl_c_in_the_evaluation_writes_no_card(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexdeploy.evaluation import evaluate

    real = evaluate._Counts.add

    def stop(counts: evaluate._Counts, image: evaluate.ImageResult) -> None:
        real(counts, image)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(evaluate._Counts, "add", stop)
    assert run("tiny", "--images", "labelled", "--views", "1").exit_code == 130
    assert not Path("hub").exists()


def test_the_backends_of_the_errors_can_be_named(run: Run) -> None:
    assert run("tiny", "--images", "labelled", "--precision", "fp32", "--backend", "onnxruntime").exit_code == 0
    text = Path("hub/tiny/README.md").read_text()
    assert "| `onnxruntime` | `fp32` | 1 |" in text
    assert "| `openvino` | `fp32`" not in text
