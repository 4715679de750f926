"""`alexdeploy triton`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import (
    BatchSizeOption,
    JsonOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    TencropOption,
    VerboseOption,
    ViewsOption,
    find_model_and_images,
    view_count,
)
from alexdeploy.core.errors import UsageError

EXAMPLES = (
    "alexdeploy triton flowers repository/ --tencrop",
    "alexdeploy triton flowers repository/ --tencrop --precision int8 --version 2",
    "alexdeploy triton alexnet repository/ --backend tensorrt --precision fp16 --gpus 0,1 --instances 2",
)


def triton(
    model: ModelArgument = None,
    directory: Annotated[
        str | None, typer.Argument(metavar="DIR", help="The model repository; made if it is not there. Always needed.")
    ] = None,
    model_option: ModelOption = None,
    backend: Annotated[
        Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "openvino", "python"],
        typer.Option(
            "--backend",
            metavar="BACKEND",
            help="What runs the graph in Triton: onnxruntime, tensorrt, openvino, or python: ONNX Runtime in Triton's "
            "Python backend.",
        ),
    ] = "onnxruntime",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--precision", metavar="PRECISION", help="Precision of the graph: fp32, fp16, int8."),
    ] = "fp32",
    views: ViewsOption = None,
    tencrop: TencropOption = False,
    version: Annotated[
        int, typer.Option("--version", min=1, metavar="N", help="Version of the model; others stay beside it.")
    ] = 1,
    batch_size: BatchSizeOption = 8,
    instances: Annotated[
        int, typer.Option(min=1, metavar="N", help="Instances of the graph on each device, and of the decoder.")
    ] = 1,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="GPUs that run the graph, such as 0,1. Default: the CPU; for tensorrt, every GPU."
        ),
    ] = None,
    max_delay_us: Annotated[
        int, typer.Option(min=0, metavar="US", help="How long an image waits for others to fill a batch.")
    ] = 2000,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that wait, of each model; more are refused with 503.")
    ] = 64,
    jpeg: Annotated[
        bool,
        typer.Option(
            "--jpeg/--no-jpeg", help="Also write the decoder and the model that takes image files; else pixels only."
        ),
    ] = True,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server, or another version of one.

    MODEL takes image files and answers as `predict` does; MODEL_graph takes pixels. Everything is verified before it
    appears in DIR.
    """
    if backend == "tensorrt-rtx":
        raise UsageError(
            "Triton has no backend for engines of TensorRT-RTX",
            hint="Use --backend onnxruntime with --gpus 0, or --backend tensorrt with an engine of `alexdeploy build`.",
        )
    from alexdeploy.serving.triton.repository import TritonOptions, write_triton_repository

    folder, directories = find_model_and_images([model, directory], model_option)
    if len(directories) != 1:
        raise UsageError(
            f"expected one DIR for the repository, found {len(directories)}",
            hint="alexdeploy triton MODEL DIR",
        )
    options = TritonOptions(
        backend=backend,
        precision=precision,
        num_views=view_count(views, tencrop=tencrop),
        version=version,
        batch_size=batch_size,
        num_instances=instances,
        gpu_ids=_numbers(gpus),
        max_delay_us=max_delay_us,
        max_queue=max_queue,
        jpeg=jpeg,
    )
    output.note(f"model {folder.path.as_posix()}")
    written = write_triton_repository(folder, directories[0], options)
    if not written.is_verified:
        output.warn(
            "the configurations were not parsed as Triton does: tritonclient is not installed "
            "(pip install 'alexdeploy[serve]')"
        )
    for note in written.notes:
        output.note(f"  {note}")
    output.note(f"wrote {written.path.as_posix()}: {', '.join(written.models)}, version {written.version}")
    if json:
        output.print_json({**dataclasses.asdict(written), "path": str(written.path)})


def _numbers(text: str | None) -> tuple[int, ...]:
    """GPUs separated by commas, each once. Raises UsageError."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError(f"--gpus {text}: expected numbers with commas between, such as 0,1")
    return tuple(dict.fromkeys(map(int, words)))
