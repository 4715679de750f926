"""Translate messages, which are written for the command line, to Python.

`--batch-size 4` becomes `batch_size=4`, and `alexdeploy export models/x --int8` becomes
`alexdeploy.export_model("models/x", ExportOptions(int8=True))`. Text without a counterpart stays: commands such
as `alexdeploy doctor`, files that only the command line writes, and commands of other programs, such as pip.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class _Call(NamedTuple):
    """The function of a command.

    `words`: the least and the greatest number of its words before the options. `parameters`: how many the function
    has before its options. `fields`: the command's options that have a counterpart; `option:field` where the field is
    not the one of `_KEYWORDS`, `*` after one that is a tuple. A field `training.x` is an override of the recipe,
    `Limits.x` a field of the class Limits, in the field `limits`.
    """

    function: str
    words: tuple[int, int]
    parameters: int
    options: str
    fields: str


_COMPARED = "precision:precisions* backend:backends*"
_DEVICES = "devices replicas threads"
_CALLS = {
    "train": _Call(
        "train",
        (0, 1),
        1,
        "TrainOptions",
        "recipe set pretrained freeze name val val-fraction exclude devices:device threads resume overwrite "
        "skip-broken parallel compile logger epochs:training.epochs learning-rate:training.learning_rate "
        "batch-size:training.batch_size precision:training.precision seed:training.seed",
    ),
    "prepare": _Call(
        "prepare",
        (2, 2),
        2,
        "PrepareOptions",
        "val val-fraction exclude seed train-list val-list classes resize jpeg threads check overwrite",
    ),
    "import": _Call(
        "import_model",
        (1, 1),
        1,
        "ImportOptions",
        "recipe labels name channels scale mean mean-image std resize output-name overwrite",
    ),
    "ensemble": _Call("ensemble", (1, 100), 1, "", "name overwrite"),
    "export": _Call(
        "export_model",
        (0, 1),
        1,
        "ExportOptions",
        "model fp16 int8 int8-weights deployment views tencrop overwrite images calibrate "
        "max-drop:Budget.max_drop labelled:Budget.labelled keep:Budget.keep",
    ),
    "calibrate": _Call(
        "calibrate", (2, 2), 2, "CalibrationRecipe", "model method percentile num-images views tencrop seed"
    ),
    "build": _Call(
        "build",
        (0, 1),
        1,
        "BuildOptions",
        "model fp16:precision int8:precision views tencrop max-batch devices:device tactic-sources backend for",
    ),
    "triton": _Call(
        "write_triton_repository",
        (2, 2),
        2,
        "TritonOptions",
        "model backend precision views tencrop version batch-size instances gpus* max-delay-us max-queue no-jpeg",
    ),
    "card": _Call(
        "write_card", (0, 1), 2, "CardOptions", "model evaluation license title author language dataset about overwrite"
    ),
    "predict": _Call(
        "predict",
        (1, 1),
        2,
        "PredictOptions",
        f"model {_DEVICES} precision views tencrop backend batch-size placement top-k",
    ),
    "embed": _Call(
        "embed",
        (1, 1),
        2,
        "EmbedOptions",
        f"model {_DEVICES} layer precision views tencrop backend batch-size",
    ),
    "evaluate": _Call(
        "evaluate",
        (1, 1),
        2,
        "EvaluateOptions",
        f"model {_DEVICES} {_COMPARED} views:num_views* tencrop:num_views* labels exclude batch-size",
    ),
    "verify": _Call(
        "verify",
        (0, 2),
        2,
        "VerifyOptions",
        f"model {_DEVICES} {_COMPARED} views tencrop batch-size num-images max-flips",
    ),
    "bench": _Call(
        "bench",
        (0, 1),
        1,
        "BenchOptions",
        f"model {_DEVICES} {_COMPARED} views:num_views* tencrop:num_views* batch-size:batch_sizes* images:images* "
        "num-images seconds seed budget-ms:Limits.budget_ms min-agreement:Limits.min_agreement",
    ),
    "inspect": _Call("inspect", (1, 1), 1, "", "set num-classes"),
    "figures": _Call("figures", (0, 1), 1, "FigureOptions", "model image precision overwrite"),
}
"""Command -> its function."""

_SAME = """
    about annotate author backend batch-size budget-ms calibrate channels classes dataset device devices
    evaluation exclude freeze image images int8-weights keep labelled labels language layer license logger
    max-batch max-delay-ms max-delay-us max-drop max-flips max-queue mean mean-image method metric min-agreement
    model name num-classes num-images output-name parallel percentile placement precision pretrained recipe
    replicas resize scale seconds seed sheet sheet-images size std stride tactic-sources timeout-ms title top-k
    train-list val val-fraction val-list version
"""
_KEYWORDS = {name: name.replace("-", "_") for name in _SAME.split()} | {
    "checkpoint-minutes": "checkpoint_seconds",
    "class": "label",
    "gpus": "gpu_ids",
    "instances": "num_instances",
    "jpeg": "jpeg_quality",
    "for": "targets",
    "in": "features",
    "neighbours": "k",
    "set": "overrides",
    "threads": "num_threads",
    "views": "num_views",
    "workspace": "workspace_bytes",
}
"""Option -> field of an options class, or parameter, that means the same."""

_IN_OTHER_UNITS = ("checkpoint-minutes", "workspace")
_SPLIT = ("for", "freeze", "keep", "mean", "std", "tactic-sources")
"""Options of several values with commas between, in Python a tuple."""
_REPEATED = ("exclude", "set")
"""Options of one value that may be repeated, in Python a tuple."""

_SWITCHES = {
    "check": "check=True",
    "compile": "compile=True",
    "decoders": "decoders=True",
    "deployment": "deployment=True",
    "fp16": "fp16=True",
    "index": "index=True",
    "int8": "int8=True",
    "no-jpeg": "jpeg=False",
    "overwrite": "overwrite=True",
    "resume": "resume=True",
    "skip-broken": "skip_broken=True",
    "tencrop": "num_views=10",
}
_OTHER_PROGRAMS = re.compile(r"\b(pip install|torchrun|docker|python -m)\b")

# What counts as a value after an option in prose: joined words, a number, a placeholder in capitals, or one of the
# known names. The name of a folder to exclude may be any word; it ends the line.
_NAMES = (
    "fp32|fp16|bf16|int8|cpu|cuda|all|tensorrt-rtx|tensorrt|openvino|onnxruntime|torch|towers|pipeline|batches|crop|warp|rgb|bgr|"
    "alexnet|caffenet|torchvision|minmax|percentile|entropy|mse"
)
_VALUE = (
    rf"""(?:'[^']*'|[\w*"\[\]]+(?:[-=./:,][\w*"'\[\]]+)+|\d+|[A-Z][A-Z|]+\b|(?:{_NAMES})\b"""
    r"""|(?<=--exclude )[^\s,.;]+$)"""
)
# A word of a command; punctuation of the sentence around it is not part of it, `...` is, and so are `.` and `..`.
_WORD = r"(?:'[^']*'|[^\s()';])*(?:'[^']*'|[^\s()',;:.!?]|\.\.+|(?<=[\s/])\.)"
_COMMAND = re.compile(rf"\balexdeploy ({'|'.join(_CALLS)})\b((?: (?!or |and ){_WORD})*)")
_OPTION = re.compile(rf"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])(?:[ =]({_VALUE})(?: or ({_VALUE})(?! --))?)?")


def in_python(text: str) -> str:
    """`text` of an error or a warning, for a caller from Python."""
    return "\n".join(line if _OTHER_PROGRAMS.search(line) else _translated(line) for line in text.split("\n"))


def _translated(line: str) -> str:
    parts, end = [], 0
    for match in _COMMAND.finditer(line):
        parts += [_OPTION.sub(_keyword, line[end : match.start()]), _call(match)]
        end = match.end()
    return "".join((*parts, _OPTION.sub(_keyword, line[end:])))


def _keyword(match: re.Match[str]) -> str:
    name, value, other = match.groups()
    if (name not in _SWITCHES and name not in _KEYWORDS) or (value is not None and name in _IN_OTHER_UNITS):
        return match[0]
    if value is None or name in _SWITCHES:
        found = (_SWITCHES.get(name) or _KEYWORDS[name]) + ("" if value is None else match[0][len(name) + 2 :])
    else:
        found = f"{_KEYWORDS[name]}={_value(name, value)}" + (f" or {_value(name, other)}" if other else "")
    return found + "," * match.string.startswith(" --", match.end())


def _call(match: re.Match[str]) -> str:
    """The Python call for a command; the command itself where the function has not all of its words and options."""
    call = _CALLS[match[1]]
    try:
        arguments, fields = _parse(shlex.split(match[2]), call)
    except (KeyError, ValueError):
        return match[0]
    model = fields.pop("model", None)
    least, most = call.words
    # The model is an option of these commands, and a positional parameter in Python.
    if call.function == "evaluate":
        arguments.insert(0, model or "MODEL")
        least, most = 2, 2
    elif model is not None and call.function != "predict":
        arguments.insert(0, model)
    if len(arguments) > most or (len(arguments) < least and "..." not in arguments):
        return match[0]
    if call.function == "ensemble":
        arguments = [f"[{', '.join(arguments)}]"]
    if call.function == "verify" and len(arguments) == 2:
        arguments[1] = f"({arguments[1]},)"
    beside = [f"model={model}"] if model is not None and call.function == "predict" else []
    within = [f"{field}={value}" for field, value in fields.items() if "." not in field]
    for group in ("Budget", "Limits"):
        inner = [f"{field[7:]}={value}" for field, value in fields.items() if field.startswith(f"{group}.")]
        within += [f"{group.lower()}={group}({', '.join(inner)})"] * bool(inner)
    if within and call.options:
        is_next = len(arguments) == call.parameters and not beside
        name = "" if is_next else "recipe=" if call.function == "calibrate" else "options="
        within = [f"{name}{call.options}({', '.join(within)})"]
    return f"alexdeploy.{call.function}({', '.join((*arguments, *beside, *within))})"


def _parse(words: Sequence[str], call: _Call) -> tuple[list[str], dict[str, str]]:
    """Positional arguments, and field -> value. Raises KeyError or ValueError for what has no counterpart."""
    of_option = dict(each.partition(":")[::2] for each in call.fields.split())
    arguments: list[str] = []
    fields: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            arguments.append(_literal(word))
            continue
        name, has_value, value = word[2:].partition("=")
        field, is_tuple = of_option[name].rstrip("*"), of_option[name].endswith("*")
        if name in _SWITCHES:
            usual, _, value = _SWITCHES[name].partition("=")
            field = field or usual
            if has_value or field in fields:
                raise ValueError(word)
            fields[field] = f"({value},)" if is_tuple else f'"{name}"' if field == "precision" else value
            continue
        if not has_value:
            if not waiting or waiting[0].startswith("--"):
                raise ValueError(word)
            value = waiting.pop(0)
        if name in _REPEATED or field.startswith("training."):
            field, value = ("overrides", f"{field}={value}") if field else (_KEYWORDS[name], value)
            repeated.setdefault(field, []).append(_literal(value))
            fields[field] = _tuple(repeated[field])
        elif field == "device":
            fields[field] = _literal(f"cuda:{value}" if value.isdecimal() else value)
        else:
            fields[field or _KEYWORDS[name]] = (
                _tuple(map(_literal, value.split(","))) if is_tuple else _value(name, value)
            )
    return arguments, fields


def _value(name: str, text: str) -> str:
    """The value of an option as a Python literal."""
    if name in _REPEATED:
        return f"({_literal(text)},)"
    if name in _SPLIT and ("," in text or name not in ("mean", "std")):
        return _tuple(map(_literal, text.split(",")))
    return _literal(text)


def _tuple(values: Iterable[str]) -> str:
    first, *others = values
    return f"({', '.join((first, *others))})" if others else f"({first},)"


def _literal(text: str) -> str:
    """A shell word as a Python literal; a placeholder in capitals is kept."""
    text = text[1:-1] if text[:1] == text[-1:] == "'" else text
    stays = re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?|[A-Z][A-Z|]*|\.\.\.", text)
    return text if stays else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
