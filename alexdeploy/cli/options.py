"""Options that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, get_args

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import model_names
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.core.stores.output import StoredOutput
    from alexdeploy.engines.base import NumViews

_Value = TypeVar("_Value")

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=model_names,
        help="Model folder, or a name under models/; the newest there if left out.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        autocompletion=model_names,
        help="Model folder, or a name under models/; the newest there if left out.",
    ),
]
PrecisionOption = Annotated[
    Literal["fp32", "fp16", "bf16", "int8"],
    typer.Option("--precision", metavar="PRECISION", help="Precision of the graph that runs: fp32, fp16, bf16, int8."),
]
BackendOption = Annotated[
    Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime", "torch"] | None,
    typer.Option(
        "--backend",
        metavar="BACKEND",
        help="What runs the model: tensorrt, tensorrt-rtx, openvino, onnxruntime, torch. Default: the first of these "
        "that is installed and fits the device; on RTX cards tensorrt-rtx before tensorrt.",
    ),
]
ViewsOption = Annotated[
    Literal["1", "5", "10"] | None,
    typer.Option(
        "--views",
        metavar="1|5|10",
        help="Views to average: the centre, centre and corners, and mirrored. Default: 1.",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="Labels, one line per image: its name in DATA, then its class or index; or CSV.",
    ),
]
ViewsListOption = Annotated[
    str | None,
    typer.Option("--views", metavar="LIST", help="One or more of 1,5,10, each as in predict. Default: 1,10."),
]
TencropOption = Annotated[bool, typer.Option("--tencrop", help="Average over ten views; same as --views 10.")]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="DEVICES",
        help="Where: cpu, 0 or cuda:0, a UUID, all; a comma-separated list, a device twice for two replicas. "
        "Default: the GPUs that can run it, else the CPU.",
    ),
]
ReplicasOption = Annotated[int, typer.Option("--replicas", min=1, metavar="N", help="Replicas on each device.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images per batch.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads. Default: all there are.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS|local",
        help="Run on the Ray cluster at this address, or one of this machine: Parquet (or JSONL) parts in the folder "
        "--output, and an actor for each GPU, else for --threads CPUs of a node.",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run; its rows are in FILE.partial.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing file or model; without it, that is an error.")
]
PlotsOption = Annotated[
    Path | None,
    typer.Option("--plots", metavar="DIR", help="Write each plot to DIR as PNG and SVG, and figures as CSV."),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a self-contained report with plots."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key, e.g. --set architecture.towers=1. Repeatable.",
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="NAME", help="A folder in DATA that is no class. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=output.set_quiet,
        help="No progress and no notes on stderr; warnings and errors stay.",
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=output.set_verbose,
        help="Versions, the time of each note on stderr, and long lists to their end.",
    ),
]


def precisions_option(default: str = "", known: str = "fp32,fp16,bf16,int8") -> Any:
    """--precision of a command that takes several."""
    return typer.Option("--precision", metavar="LIST", help=f"One or more of {known}.{_default(default)}")


def backends_option(default: str) -> Any:
    """--backend of a command that compares several."""
    known = "tensorrt, tensorrt-rtx, openvino, onnxruntime, torch"
    return typer.Option(
        "--backend", metavar="LIST", help=f"One or more of {known}, separated by commas.{_default(default)}"
    )


def device_option(values: str, default: str) -> Any:
    """--devices of a command that uses a single device; `values` lists the accepted ones."""
    return typer.Option("--devices", metavar="DEVICE", help=f"Where: {values}; one device.{_default(default)}")


def _default(text: str) -> str:
    return text and f" Default: {text}."


def find_one_model(argument: str | None, option: str | None) -> ModelFolder:
    """The model named by MODEL or --model, else the newest. Raises UsageError if they name two."""
    from alexdeploy.core.model_folder import find_model

    if argument is None or option is None:
        return find_model(argument if option is None else option)
    folder = find_model(option)
    if find_model(argument).path.resolve() != folder.path.resolve():
        raise UsageError(f"MODEL is {argument} and --model is {option}", hint="Give one of them.")
    return folder


def find_own_model(argument: str | None, option: str | None) -> ModelFolder:
    """`find_one_model` for a command that writes into the folder. Raises UsageError also for a URL."""
    from alexdeploy.core.model_folder import own_model

    for given in (argument, option):
        if given is not None:
            own_model(given)
    return find_one_model(argument, option)


def find_model_and_images(arguments: Sequence[str | None], option: str | None) -> tuple[ModelFolder, list[str]]:
    """The model and the images of `MODEL IMAGES...`, where --model may replace MODEL.

    With --model, a first word that names a model is still MODEL, and must name the same one.
    """
    from alexdeploy.core.model_folder import find_model, is_model

    words = [word for word in arguments if word is not None]
    if option is None or (words and is_model(words[0])):
        return find_one_model(words[0] if words else None, option), words[1:]
    return find_model(option), words


def check_not_there(path: Path, option: str, *, overwrite: bool) -> None:
    """Raise UsageError if `path`, the value of `option`, is a non-empty file and `overwrite` is false.

    Call it before any work. Pipes, devices and empty files (as mktemp makes them) have nothing to lose.
    """
    if not overwrite and path.is_file() and path.stat().st_size:
        raise UsageError(f"{option} {path} exists already", hint="Replace it: --overwrite\nOr name another file.")


def check_report(html: Path | None, plots: Path | None, *, overwrite: bool) -> None:
    """Raise UsageError unless --html and --plots, each if it is given, can be written. Call it before any work."""
    from alexdeploy.reports.page import check_page_path, check_plots_folder

    if html is not None:
        check_page_path(html)
        check_not_there(html, "--html", overwrite=overwrite)
    if plots is not None:
        check_plots_folder(plots)
        if not overwrite and plots.is_dir() and any(plots.iterdir()):
            raise UsageError(
                f"--plots {plots} is a folder that is not empty",
                hint="Replace its files of the same names: --overwrite\nOr name another folder.",
            )


def open_output(name: str | None) -> tuple[StoredOutput | None, Path | None]:
    """The value of --output: the object in a store, if it is one, and the local file that is written."""
    from alexdeploy.core.stores.urls import is_url, local_path

    if name is None:
        return None, None
    if not is_url(name):
        return None, Path(local_path(name))
    from alexdeploy.core.stores.output import StoredOutput

    stored = StoredOutput(name)
    return stored, stored.path


def check_output_free(stored: StoredOutput | None, path: Path, *, overwrite: bool) -> None:
    """`check_not_there` for what `open_output` returned."""
    if stored is None:
        check_not_there(path, "--output", overwrite=overwrite)
    elif not overwrite:
        stored.check_free()


def view_count(views: str | None, *, tencrop: bool) -> NumViews:
    """The number of views set by --views and --tencrop; one if neither is given. Raises UsageError if they disagree."""
    return cast("NumViews", int(_views(views, tencrop=tencrop) or 1))


def view_counts(views: str | None, *, tencrop: bool) -> tuple[NumViews, ...]:
    """Like `view_count` where --views is a list; one view and ten views if neither is given."""
    from alexdeploy.engines.base import NumViews

    return pick("--views", _views(views, tencrop=tencrop) or "1,10", get_args(NumViews))


def _views(views: str | None, *, tencrop: bool) -> str | None:
    if tencrop and views not in (None, "10"):
        raise UsageError(f"--tencrop means ten views, --views asks for {views}", hint="Give one of them.")
    return "10" if tencrop else views


def one_device(devices: str | None, advice: str) -> str | None:
    """--devices of a command that runs on one device. Raises UsageError with `advice` for several."""
    if devices is not None and ("," in devices or devices == "all"):
        raise UsageError(f"--devices {devices}: expected one device", hint=advice)
    return f"cuda:{devices}" if devices is not None and devices.isdecimal() else devices


def pick(option: str, text: str, known: Sequence[_Value]) -> tuple[_Value, ...]:
    """The values in a comma-separated list, each once. Raises UsageError for a value that is not in `known`."""
    by_text = {str(value): value for value in known}
    picked = []
    for word in (word.strip() for word in text.split(",")):
        if word not in by_text:
            near = difflib.get_close_matches(word.lower(), by_text, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"{option} {text}: found {word!r}, expected any of {', '.join(by_text)}{hint}",
                hint=f"Several have commas between: {option} {','.join(list(by_text)[:2])}",
            )
        picked.append(by_text[word])
    return tuple(dict.fromkeys(picked))
