"""`alexdeploy explain`: pictures, numbers, a table and a page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import smooth_images
from markup import Page
from PIL import Image
from program import Run

from alexdeploy.core.model_folder import ModelFolder

HOSTILE = "a\"><script>alert(1)<\n'.png"
WORDS = ("explain", "in", "--backend", "onnxruntime", "--size", "128", "--stride", "64")


@pytest.fixture
def run(tiny_model: ModelFolder, tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The program beside models/tiny and in/, a picture with a hostile name and a broken one."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.fromarray(smooth_images(1)[0]).save(Path("in", HOSTILE))
    Path("in/z.jpg").write_bytes(b"nothing")
    return program


@pytest.mark.skipif(os.name != "posix", reason="a file name of POSIX")
def test_the_command_writes_pictures_numbers_and_a_page(run: Run) -> None:
    result = run(*WORDS, "--method", "both", "--html", "page.html", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found == json.loads(Path("explained/explanations.json").read_text())
    assert (found["model"], found["backend"], found["size"], found["stride"]) == ("tiny", "onnxruntime", 128, 64)
    good, broken = found["explanations"]
    assert (good["source"], good["label"]) == (f"in/{HOSTILE}", good["answer"])
    assert broken["heatmaps"] == []
    assert "unsupported file type" in broken["error"]
    methods = [f"{method}.{kind}" for method in ("grad-cam", "occlusion") for kind in ("npy", "png")]
    names = [f"000000-a_script_alert_1.{each}" for each in methods]
    assert sorted(os.listdir("explained")) == [*names, "explanations.json"]
    for each in good["heatmaps"]:
        values = np.load(Path("explained", each["values"]))
        assert (values.dtype, values.shape) == (np.float32, (256, 256))
        x, y = each["peak"]
        assert values[y, x] == values.max()
        with Image.open(Path("explained", each["picture"])) as image:
            assert image.size == (776, 464)
    page = Page(Path("page.html").read_text())
    assert "script" not in page.tags
    assert sum(tag == "img" for tag in page.tags) == 3


def test_a_table_has_a_line_for_each_image_and_existing_files_stay(run: Run) -> None:
    table = run(*WORDS, "--class", "class-3", "-o", "out")
    assert table.exit_code == 3
    header, good, broken = table.stdout.splitlines()
    assert header.split()[:4] == ["image", "class", "prob", "method"]
    assert good.split()[1:4:2] == ["class-3", "occlusion"]
    assert "error: unsupported" in broken
    again = run(*WORDS, "-o", "out")
    assert (again.exit_code, "out is not empty" in again.stderr) == (2, True)
    assert run(*WORDS, "-o", "out", "--overwrite").exit_code == 3
    # A run that fails does not leave the numbers of the earlier one beside its own pictures.
    picture = next(Path("out").glob("*.png"))
    picture.unlink()
    picture.mkdir()
    assert run(*WORDS, "-o", "out", "--overwrite").exit_code == 6
    assert not Path("out/explanations.json").exists()


def test_a_folder_of_inputs_gets_no_pictures(run: Run) -> None:
    refused = run(*WORDS, "-o", "in/explained", "--overwrite")
    assert refused.exit_code == 2
    assert "--output in/explained is inside of in, whose images are the input" in refused.stderr
    assert not Path("in/explained").exists()


def test_an_unknown_class_is_a_usage_error(run: Run) -> None:
    refused = run(*WORDS, "--class", "klass-3")
    assert refused.exit_code == 2
    assert "--class klass-3: the model has no such class\nDid you mean class-" in refused.stderr
    assert not Path("explained").exists()


def test_newer_weights_are_told(run: Run, tiny_model: ModelFolder) -> None:
    tiny_model.candidate.path.mkdir(parents=True)
    tiny_model.candidate.write_spec(tiny_model.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    Path("in/z.jpg").unlink()
    result = run(*WORDS, "--stride", "128")
    assert result.exit_code == 0
    assert "models/tiny has newer weights (000000000000, epoch 7) that are not exported" in result.stderr
