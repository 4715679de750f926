"""Errors are written for the command line; from Python they speak Python."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any

import pytest

import alexdeploy
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
            "make a graph: alexdeploy export --model models/x --fp16",
            'make a graph: alexdeploy.export_model("models/x", ExportOptions(fp16=True))',
        ),
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
        (
            "Try the CPU: alexdeploy train ... --devices cpu",
            'Try the CPU: alexdeploy.train(..., TrainOptions(device="cpu"))',
        ),
        (
            "alexdeploy train d --epochs 3 --set training.seed=1 --devices 1",
            'alexdeploy.train("d", TrainOptions(overrides=("training.epochs=3", "training.seed=1"), device="cuda:1"))',
        ),
        (
            "alexdeploy prepare d out --exclude a --exclude b --check",
            'alexdeploy.prepare("d", "out", PrepareOptions(exclude=("a", "b"), check=True))',
        ),
        (
            "alexdeploy bench m --precision fp32,int8 --tencrop --batch-size 1,8 --budget-ms 50 --min-agreement 0.99",
            'alexdeploy.bench("m", BenchOptions(precisions=("fp32", "int8"), num_views=(10,), batch_sizes=(1, 8), '
            "limits=Limits(budget_ms=50, min_agreement=0.99)))",
        ),
        (
            "alexdeploy evaluate data --precision int8 --views 1,10",
            'alexdeploy.evaluate(MODEL, "data", EvaluateOptions(precisions=("int8",), num_views=(1, 10)))',
        ),
        ("alexdeploy verify m photos/", 'alexdeploy.verify("m", ("photos/",))'),
        (
            "alexdeploy export models/x --int8 --calibrate IMAGES. Then go on",
            'alexdeploy.export_model("models/x", ExportOptions(int8=True, calibrate=IMAGES)). Then go on',
        ),
        ("alexdeploy train . --resume?", 'alexdeploy.train(".", TrainOptions(resume=True))?'),
        ("or a mean: --mean 104.0,117.0,0.5 (BGR)", "or a mean: mean=(104.0, 117.0, 0.5) (BGR)"),
        ("or exclude this one: --exclude raw", 'or exclude this one: exclude=("raw",)'),
        ("exclude this one: --exclude 'my raw'", 'exclude this one: exclude=("my raw",)'),
        ("exclude them: --exclude NAME, or give", "exclude them: exclude=(NAME,), or give"),
        ("--exclude is for class folders", "exclude is for class folders"),
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
        "alexdeploy evaluate data --resume",
        "the same alexdeploy train command with --resume",
        "alexdeploy export models/x --int8 first",
        "alexdeploy prepare DATA",
        "alexdeploy export models/x --fp16 --fp16",
        "alexdeploy import FILE.onnx --recipe --overwrite",
        "alexdeploy train --checkpoint-minutes 5",
        "alexdeploy build --workspace 2",
        "leave out --epochs or --checkpoint-minutes 5",
        "a-b--c -- d, conv1--resume",
    ],
)
def test_what_python_has_no_word_for_stays(said: str) -> None:
    assert in_python(said) == said


def test_an_error_has_both_languages() -> None:
    error = ModelError("--devices 3: no such GPU", hint="Use --devices cpu")
    assert str(error) == 'devices=3: no such GPU\nUse devices="cpu"'
    assert error.text == "--devices 3: no such GPU\nUse --devices cpu"


HINTS = """
If its training was interrupted, resume it: alexdeploy train --name x --resume, with the options of the original run
Try the CPU: alexdeploy train ... --devices cpu
Restore it and resume: alexdeploy train --resume
Train one: alexdeploy train
alexdeploy train photographs/ --recipe alexnet --epochs 30 --batch-size 4 --precision fp32 --learning-rate 0.1 --seed 2
alexdeploy train photographs/ --pretrained alexnet --freeze conv1,conv2
Pack the images again: alexdeploy prepare photos OUT --resize warp
Pack the set again: alexdeploy prepare ... --overwrite
Repair it: alexdeploy prepare d o --val-fraction 0.2 --seed 3 --exclude a --exclude b --jpeg 95 --check
Import it: alexdeploy import FILE.onnx
Restore x, or import the weights: alexdeploy import FILE --recipe NAME
alexdeploy import m.onnx --labels cat,dog --mean 104.0,117.0,123.0 --std 1,2,3 --scale 0.5 --channels bgr
Ask for another --precision or --backend, or make a graph: alexdeploy export models/x --fp16
or in one command: alexdeploy export models/x --int8 --calibrate IMAGES
Make int8 again: alexdeploy export models/x --int8 --max-drop 0.5 --labelled DATA --keep conv1,conv2 --int8-weights 7
Measure again: alexdeploy calibrate models/x IMAGES
alexdeploy calibrate m photos --method percentile --percentile 99.9 --views 10 --seed 3 --num-images 64
Build it again: alexdeploy build
alexdeploy build models/x --fp16 --views 10 --max-batch 8 --devices cuda:0 --tactic-sources CUBLAS,CUDNN
alexdeploy predict IMAGES --model m --backend torch --precision fp32 --views 1 --batch-size 8 --threads 2 --devices cpu
To measure the error on the training images: alexdeploy evaluate data/train
alexdeploy evaluate d --model m --backend torch,openvino --precision fp32,int8 --tencrop --labels val.txt --exclude b
alexdeploy verify alexnet --precision int8 --backend torch --max-flips 0.5 --replicas 2
alexdeploy bench alexnet --images photographs/ --budget-ms 50 --min-agreement 0.99 --seconds 60 --num-images 8 --seed 1
Show a valid recipe: alexdeploy inspect alexnet
alexdeploy inspect alexnet --set architecture.towers=1 --num-classes 10
""".strip().split("\n")


class _Placeholders(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return getattr(alexdeploy, name, name)


@pytest.mark.parametrize("hint", HINTS)
def test_every_call_takes_what_the_hint_gives_it(hint: str) -> None:
    """Placeholders are strings; an options class refuses a field that it has not, and bind() a parameter."""
    said = in_python(hint)
    assert "alexdeploy " not in said
    start = said.index("alexdeploy.")
    ends = [
        at.end() for at in re.finditer(r"\)", said) if said[start : at.end()].count("(") == said[: at.end()].count(")")
    ]
    call = ast.parse(said[start : ends[0]], mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Attribute)

    def evaluated(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "hint", "eval"), {}, _Placeholders())

    arguments = [evaluated(each) for each in call.args]
    keywords = {str(each.arg): evaluated(each.value) for each in call.keywords}
    signature = inspect.signature(getattr(alexdeploy, call.func.attr))
    bound = (signature.bind_partial if ... in arguments else signature.bind)(*arguments, **keywords)
    for name, value in bound.arguments.items():
        assert dataclasses.is_dataclass(value) == (name in ("options", "recipe")), (name, value)
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                found = getattr(value, field.name)
                assert (
                    isinstance(found, tuple)
                    or "tuple" not in str(field.type)
                    or found is None
                    or field.name == "labels"
                )


@pytest.mark.parametrize("option", ["batch_size=4", "precision=fp32", "learning_rate=0.1"])
def test_the_hints_of_training_name_settings_of_the_recipe(option: str) -> None:
    from alexdeploy.core.recipe import Training

    assert option.partition("=")[0] in {field.name for field in dataclasses.fields(Training)}
    assert in_python(f"Try: --set training.{option}") == f'Try: overrides=("training.{option}",)'
