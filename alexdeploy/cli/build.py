"""`alexdeploy build`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import (
    JsonOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    TencropOption,
    VerboseOption,
    ViewsOption,
    device_option,
    find_own_model,
    one_device,
    view_count,
)
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.engines.trt.build import BuiltEngine
    from alexdeploy.engines.trt.files import BuildOptions
    from alexdeploy.placement.devices import GpuSurvey

EXAMPLES = (
    "alexdeploy build alexnet --fp16 --tencrop",
    "alexdeploy build alexnet --fp16 --backend tensorrt-rtx --for sm86,sm120",
    "alexdeploy build --trust-engine models/alexnet/engines/other.engine",
)


def build(
    model: ModelArgument = None,
    model_option: ModelOption = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Precision of the graph to build: fp32, fp16, int8. Default: fp32.",
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Same as --precision fp16: FP16, each LRN in FP32.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Same as --precision int8: INT8 where the graph has Q/DQ.")
    ] = False,
    views: ViewsOption = None,
    tencrop: TencropOption = False,
    backend: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(
            metavar="BACKEND",
            help="What runs the engine: tensorrt builds for a GPU of this machine; tensorrt-rtx on any x86-64 machine, "
            "without a GPU, for RTX cards.",
        ),
    ] = "tensorrt",
    targets: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="LIST",
            help="With tensorrt-rtx: compute capabilities of the cards that one engine is for, e.g. sm86,sm120, or "
            "rtx, which is sm86,sm89,sm120: RTX 30, 40 and 50. Default: rtx. RTX 20 is sm75.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            metavar="N",
            help="Maximum batch size, for which the engine is optimized. Default: 32.",
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, max=2**30, metavar="MIB", help="Scratch memory on the GPU per layer. Default: all of it."),
    ] = None,
    devices: Annotated[str | None, device_option("0, cuda:0 or the UUID of a GPU", "the first GPU")] = None,
    tactic_sources: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="TensorRT tactic sources, e.g. JIT_CONVOLUTIONS without cuBLAS. Default: TensorRT's own choice.",
        ),
    ] = None,
    trust_engine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Build nothing: let this installation run FILE, which another one built. An engine is code.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build a TensorRT engine for a GPU of this machine, or a TensorRT-RTX engine for others, or reuse an existing one.

    It is a plain plan in MODEL/engines/, with a .json that records what it was built from and for.
    Only engines that this installation built or trusts are run.
    """
    if trust_engine is not None:
        _trust(trust_engine, json=json)
        return
    chosen = _one_precision(precision, fp16=fp16, int8=int8)
    num_views = view_count(views, tencrop=tencrop)
    device = one_device(devices, "Build for one after the other.")
    if device is not None and backend == "tensorrt-rtx":
        raise UsageError(
            "--backend tensorrt-rtx builds for cards that need not be here, not for --devices",
            hint="Name their compute capabilities: --for sm86,sm120",
        )

    from alexdeploy.engines.trt.files import DEFAULT_MAX_BATCH, BuildOptions

    folder = find_own_model(model, model_option)
    options = BuildOptions(
        backend=backend,
        targets=None if targets is None else tuple(targets.split(",")),
        precision=chosen,
        num_views=num_views,
        max_batch=max_batch or DEFAULT_MAX_BATCH,
        workspace_bytes=None if workspace is None else workspace << 20,
        device="cuda:0" if backend == "tensorrt-rtx" else _visible(device or "cuda:0"),
        tactic_sources=_names(tactic_sources),
    )
    built = _build_with_progress(folder, options)
    if json:
        record = dataclasses.asdict(built.record)
        output.print_json({"path": str(built.path), "reused": built.reused, "notes": built.notes, **record})


def _one_precision(
    named: Literal["fp32", "fp16", "int8"] | None, *, fp16: bool, int8: bool
) -> Literal["fp32", "fp16", "int8"]:
    """Of --precision, --fp16 and --int8. Raises UsageError if they name two."""
    flags: tuple[tuple[bool, Literal["fp16", "int8"]], ...] = ((fp16, "fp16"), (int8, "int8"))
    asked = {*([named] if named else []), *(name for is_given, name in flags if is_given)}
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(sorted(asked))} are two engines", hint="Build one after the other.")
    return asked.pop() if asked else "fp32"


def _visible(name: str) -> str:
    from alexdeploy.placement.devices import survey_gpus

    return see_only(name, survey_gpus())


def see_only(name: str, survey: GpuSurvey) -> str:
    """Hide all GPUs but the chosen one from CUDA, which counts them in another order; return its new name.

    For a process that has not used CUDA yet. Raises UsageError if there is no such GPU.
    """
    from alexdeploy.placement.devices import environment_for, find_devices

    # Without the list, CUDA itself reports the error.
    if not survey.devices:
        return name
    try:
        found = find_devices(name, survey.devices)
    except UsageError:
        found = ()
    if len(found) != 1:
        known = ", ".join(f"{each} ({each.name}, {each.uuid})" for each in survey.devices)
        raise UsageError(f"--devices {name} is no GPU here, expected one of: {known}", hint="See: alexdeploy devices")
    os.environ.update(environment_for(found[0]))
    return "cuda:0"


def _build_with_progress(folder: ModelFolder, options: BuildOptions) -> BuiltEngine:
    """Build an engine, or find it already built, and report the result on stderr."""
    # Raises the error that names what is missing if TensorRT cannot be imported.
    from alexdeploy.engines.trt.build import build_engine

    output.note(f"model {folder.path}: {options.precision}, {output.count(options.num_views, 'view')}")
    with output.progress("steps") as bar:
        task = bar.add_task("build", total=None)

        def show(phase: str, done: int, total: int) -> None:
            bar.update(task, description=output.printable(phase), completed=done, total=total or None)

        built = build_engine(folder, options, show)
    for each in built.notes:
        output.note(f"  {each}")
    verb = "already built:" if built.reused else f"built in {built.record.build_seconds:,.0f} s:"
    output.note(f"{verb} {built.path.as_posix()} ({built.record.engine_bytes / 1e6:.1f} MB)")
    return built


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(word.strip().upper() for word in text.split(",") if word.strip())
    if not names:
        raise UsageError("--tactic-sources names none", hint="Leave it out for all that there are.")
    return names


def _trust(path: Path, *, json: bool) -> None:
    from alexdeploy.engines.trt.files import trust_engine

    record = trust_engine(path)
    output.note(f"{path} is trusted from now on: {record.precision} for {record.gpu}, built {record.built_at}")
    if json:
        output.print_json({"path": str(path), **dataclasses.asdict(record)})
