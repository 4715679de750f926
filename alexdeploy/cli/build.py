"""`alexdeploy build`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, ModelArgument, view_count
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.engines.trt.build import BuiltEngine
    from alexdeploy.engines.trt.files import BuildOptions
    from alexdeploy.placement.devices import GpuSurvey


def build(
    model: ModelArgument = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="From model.fp16.onnx: FP16, each LRN in FP32.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="From model.int8.onnx: INT8 where it has Q/DQ.")] = False,
    tencrop: Annotated[bool, typer.Option("--tencrop", help="Average over ten views; same as --views 10.")] = False,
    views: Annotated[
        Literal["1", "5", "10"] | None, typer.Option(help="Views that the engine averages. Default: 1.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Most images in a batch; the engine is best at that. Default: 32.")
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, metavar="MIB", help="GPU memory that a layer may use for scratch. Default: all there is."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="The GPU to build on and for, as `devices` lists it: cuda:0, or a UUID.")
    ] = "cuda:0",
    tactic_sources: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Where kernels come from, e.g. EDGE_MASK_CONVOLUTIONS,JIT_CONVOLUTIONS where there is no cuBLAS. "
            "Default: TensorRT's own choice.",
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
) -> None:
    """Build a TensorRT engine for a GPU of this machine, or find it built already.

    It is a plain plan in MODEL/engines/, beside a .json that says what it was built from and for.
    Only engines that this installation built or trusts are run.
    """
    if trust_engine is not None:
        _trust(trust_engine, json=json)
        return
    if fp16 and int8:
        raise UsageError("--fp16 and --int8 are two engines", hint="Build one after the other.")
    num_views = view_count(views, tencrop=tencrop)

    from alexdeploy.core.model_folder import find_model
    from alexdeploy.engines.trt.files import DEFAULT_MAX_BATCH, BuildOptions
    from alexdeploy.placement.devices import survey_gpus

    folder = find_model(model)
    options = BuildOptions(
        precision="int8" if int8 else "fp16" if fp16 else "fp32",
        num_views=num_views,
        max_batch=max_batch or DEFAULT_MAX_BATCH,
        workspace_bytes=None if workspace is None else workspace << 20,
        device=see_only(device, survey_gpus()),
        tactic_sources=_names(tactic_sources),
    )
    built = _build_with_progress(folder, options)
    if json:
        record = dataclasses.asdict(built.record)
        output.print_json({"path": str(built.path), "reused": built.reused, "notes": built.notes, **record})


def see_only(name: str, survey: GpuSurvey) -> str:
    """Hide all GPUs but the one that is meant from CUDA, which counts them in another order; what it is called then.

    For a process that has not used CUDA yet. Raises UsageError for a GPU that is not there.
    """
    from alexdeploy.placement.devices import environment_for, find_devices

    # Without the list, CUDA itself says what is wrong.
    if not survey.devices:
        return name
    try:
        found = find_devices(name, survey.devices)
    except UsageError:
        found = ()
    if len(found) != 1:
        known = ", ".join(f"{each} ({each.name}, {each.uuid})" for each in survey.devices)
        raise UsageError(f"--device {name} is no GPU here, expected one of: {known}", hint="See: alexdeploy devices")
    os.environ.update(environment_for(found[0]))
    return "cuda:0"


def _build_with_progress(folder: ModelFolder, options: BuildOptions) -> BuiltEngine:
    """Build an engine, or find it built, and say on stderr what came of it."""
    # Says what is missing where TensorRT cannot be imported.
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
