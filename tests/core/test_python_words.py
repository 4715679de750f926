"""Errors are written for the command line; from Python they speak Python."""

from __future__ import annotations

import pytest

from alexdeploy.core.errors import ModelError
from alexdeploy.core.python_words import in_python


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Use --precision fp32 here.", 'Use precision="fp32" here.'),
        ("Use a smaller --batch-size.", "Use a smaller batch_size."),
        ("use --batch-size 4, or fewer --threads", "use batch_size=4, or fewer num_threads"),
        ("Use --backend openvino or onnxruntime.", 'Use backend="openvino" or "onnxruntime".'),
        ("Name them: --devices 0,1 or --devices cpu,cpu", 'Name them: devices="0,1" or devices="cpu,cpu"'),
        ("Go on with it: --resume\nReplace it: --overwrite", "Go on with it: resume=True\nReplace it: overwrite=True"),
        (
            "Try: --set training.learning_rate=0.003 --overwrite",
            'Try: overrides=("training.learning_rate=0.003",), overwrite=True',
        ),
        ("--placement towers takes two devices", 'placement="towers" takes two devices'),
        ("--tencrop means ten views, --views asks for 1", "num_views=10 means ten views, num_views asks for 1"),
        ("Name the classes: --classes FILE", "Name the classes: classes=FILE"),
        ("Train one: alexdeploy train", "Train one: alexdeploy.train()"),
        ("or bring one: alexdeploy import FILE.onnx", 'or bring one: alexdeploy.import_model("FILE.onnx")'),
        (
            "make a graph: alexdeploy export models/x --fp16",
            'make a graph: alexdeploy.export_model("models/x", ExportOptions(fp16=True))',
        ),
        (
            "alexdeploy export 'my models/x' --int8 --calibrate IMAGES --max-drop 0.5",
            'alexdeploy.export_model("my models/x", '
            "ExportOptions(int8=True, calibrate=IMAGES, budget=Budget(max_drop=0.5)))",
        ),
        ("(alexdeploy export --fp16), or", "(alexdeploy.export_model(options=ExportOptions(fp16=True))), or"),
        (
            "alexdeploy build models/x --int8 --views 10",
            'alexdeploy.build("models/x", BuildOptions(precision="int8", num_views=10))',
        ),
        ("alexdeploy evaluate data --model models/x", 'alexdeploy.evaluate("models/x", "data")'),
        (
            "alexdeploy calibrate models/x photos --method mse --seed 3",
            'alexdeploy.calibrate("models/x", "photos", CalibrationRecipe(method="mse", seed=3))',
        ),
    ],
)
def test_options_are_keywords_and_commands_are_calls(said: str, expected: str) -> None:
    assert in_python(said) == expected


@pytest.mark.parametrize(
    "said",
    [
        "See: alexdeploy doctor",
        "pip install --force-reinstall 'alexdeploy[gpu]'",
        "torchrun --nproc-per-node 2 -m alexdeploy train ... --parallel towers",
        "Install NVIDIA's driver. In a container: docker run --gpus all ...",
        "alexdeploy build --trust-engine models/x.engine",
        "Write it to a file: --output FILE",
        "a-b--c -- d, conv1--resume",
    ],
)
def test_what_python_has_no_word_for_stays(said: str) -> None:
    assert in_python(said) == said


def test_an_error_has_both_languages() -> None:
    error = ModelError("--devices 3: no such GPU", hint="Use --devices cpu")
    assert str(error) == 'devices=3: no such GPU\nUse devices="cpu"'
    assert error.text == "--devices 3: no such GPU\nUse --devices cpu"
