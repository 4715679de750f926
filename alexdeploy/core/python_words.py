"""Translate messages, which are written for the command line, to Python.

`--batch-size 4` becomes `batch_size=4`, and `alexdeploy export models/x --int8` becomes
`alexdeploy.export_model("models/x", ExportOptions(int8=True))`. Text without a counterpart stays: commands such
as `alexdeploy doctor`, files that only the command line writes, and commands of other programs, such as pip.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_CALLS = {
    "train": ("train", 1, "TrainOptions"),
    "prepare": ("prepare", 2, "PrepareOptions"),
    "import": ("import_model", 1, "ImportOptions"),
    "export": ("export_model", 1, "ExportOptions"),
    "calibrate": ("calibrate", 2, "CalibrationRecipe"),
    "build": ("build", 1, "BuildOptions"),
    "predict": ("predict", 2, "PredictOptions"),
    "evaluate": ("evaluate", 2, "EvaluateOptions"),
    "verify": ("verify", 2, "VerifyOptions"),
    "bench": ("bench", 1, "BenchOptions"),
    "inspect": ("inspect", 1, ""),
}
"""Command -> its function, the number of parameters before its options, and the class of its options."""

_SAME = """
    backend batch-size budget-ms calibrate channels classes device devices epochs exclude freeze images int8-weights
    keep labelled labels learning-rate max-batch max-drop max-flips mean mean-image method min-agreement model name
    num-classes num-images num-train num-val output-name parallel percentile placement precision pretrained recipe
    replicas resize scale seconds seed std tactic-sources top-k train-list val val-fraction val-list
"""
_KEYWORDS = {name: name.replace("-", "_") for name in _SAME.split()} | {
    "checkpoint-minutes": "checkpoint_seconds",
    "jpeg": "jpeg_quality",
    "layers": "with_profile",
    "set": "overrides",
    "threads": "num_threads",
    "views": "num_views",
    "workspace": "workspace_bytes",
}
"""Option -> field of an options class, or parameter, that means the same."""

_SWITCHES = {
    "compile": "compile=True",
    "fp16": "fp16=True",
    "int8": "int8=True",
    "overwrite": "overwrite=True",
    "resume": "resume=True",
    "skip-broken": "skip_broken=True",
    "tencrop": "num_views=10",
}
_OTHER_PROGRAMS = re.compile(r"\b(pip install|torchrun|docker|python -m)\b")

_OF_BUDGET = ("max_drop=", "keep=", "labelled=")

# What counts as a value after an option in prose: joined words, a number, a placeholder in capitals, or one of the
# known names.
_NAMES = (
    "fp32|fp16|bf16|int8|cpu|cuda|all|tensorrt|openvino|onnxruntime|torch|towers|pipeline|batches|crop|warp|rgb|bgr|"
    "alexnet|caffenet|torchvision|minmax|percentile|entropy|mse"
)
_VALUE = rf"""(?:'[^']*'|[\w*"\[\]]+(?:[-=./:,][\w*"'\[\]]+)+|\d+|[A-Z][A-Z|]+\b|(?:{_NAMES})\b)"""
_WORD = r"(?:'[^']*'|[^\s()';])*(?:'[^']*'|[^\s()',;:])"
_COMMAND = re.compile(rf"\balexdeploy ({'|'.join(_CALLS)})\b((?: (?!or |and ){_WORD})*)")
_OPTION = re.compile(rf"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])(?:[ =]({_VALUE})(?: or ({_VALUE})(?! --))?)?")


def in_python(text: str) -> str:
    """`text` of an error or a warning, for a caller from Python."""
    return "\n".join(
        line if _OTHER_PROGRAMS.search(line) else _OPTION.sub(_keyword, _COMMAND.sub(_call, line))
        for line in text.split("\n")
    )


def _keyword(match: re.Match[str]) -> str:
    name, value, other = match.groups()
    if name not in _SWITCHES and name not in _KEYWORDS:
        return match[0]
    if value is None:
        found = _SWITCHES.get(name) or _KEYWORDS[name]
    else:
        found = _assigned(name, value) + (f" or {_literal(other)}" if other else "")
    return found + "," * match.string.startswith(" --", match.end())


def _call(match: re.Match[str]) -> str:
    """The Python call for a command; the command itself if it has an option that no function has."""
    function, num_before, options = _CALLS[match[1]]
    try:
        arguments, keywords = _parse(shlex.split(match[2]))
    except (KeyError, ValueError):
        return match[0]
    if function == "inspect" and not arguments:
        return match[0]
    if function == "evaluate" and len(arguments) == 1:
        # The model is an option of this command, but a positional parameter in Python.
        arguments.insert(0, next((each[len("model=") :] for each in keywords if each.startswith("model=")), "MODEL"))
        keywords = [each for each in keywords if not each.startswith("model=")]
    beside = [each for each in keywords if each.startswith("model=")]
    of_budget = [each for each in keywords if each.startswith(_OF_BUDGET)]
    within = [each for each in keywords if each not in beside + of_budget]
    if of_budget:
        within.append(f"budget=Budget({', '.join(of_budget)})")
    if function == "build":
        shorter = {"fp16=True": 'precision="fp16"', "int8=True": 'precision="int8"'}
        within = [shorter.get(each, each).replace("devices=", "device=") for each in within]
    if within and options:
        name = "" if len(arguments) == num_before else "recipe=" if function == "calibrate" else "options="
        within = [f"{name}{options}({', '.join(within)})"]
    return f"alexdeploy.{function}({', '.join((*arguments, *beside, *within))})"


def _parse(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments and keywords. Raises KeyError for an option without a counterpart."""
    arguments, keywords = [], []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            arguments.append(_literal(word))
        elif (name := word[2:]) in _SWITCHES and (not waiting or waiting[0].startswith("--")):
            keywords.append(_SWITCHES[name])
        else:
            keywords.append(_assigned(name, waiting.pop(0)) if waiting else _KEYWORDS[name])
    return arguments, keywords


def _assigned(name: str, value: str) -> str:
    """`name=value` for an option. Raises KeyError for an option without a counterpart."""
    return f"overrides=({_literal(value)},)" if name == "set" else f"{_KEYWORDS[name]}={_literal(value)}"


def _literal(text: str) -> str:
    """A shell word as a Python literal; a placeholder in capitals is kept."""
    text = text[1:-1] if text[:1] == text[-1:] == "'" else text
    stays = re.fullmatch(r"\d+(\.\d+)?|[A-Z][A-Z|]*|\.\.\.", text)
    return text if stays else '"' + text.replace('"', '\\"') + '"'
