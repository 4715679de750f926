"""`alexdeploy devices`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alexdeploy.placement.devices import Device
    from alexdeploy.placement.engine_fit import EngineFile

EXAMPLES = (
    "alexdeploy devices",
    "alexdeploy devices --json",
    "alexdeploy devices --quiet",
)


def devices(json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """List the CPU and the GPUs, as --devices names them, with the engine files that fit each.

    GPUs are counted after CUDA_VISIBLE_DEVICES. If none of them can run an engine, stderr says why.
    """
    from alexdeploy.core.model_folder import MODELS_FOLDER, ModelFolder
    from alexdeploy.core.packages import backend_version, tensorrt_version
    from alexdeploy.engines.base import is_installed
    from alexdeploy.placement.devices import cpu_device, survey_gpus
    from alexdeploy.placement.engine_fit import match_engines

    survey = survey_gpus()
    tensorrt = tensorrt_version()
    rtx = backend_version("tensorrt-rtx") if is_installed("tensorrt-rtx") else None
    here = (cpu_device(), *survey.devices)
    folders = map(ModelFolder, sorted(MODELS_FOLDER.glob("*"))) if survey.devices else ()
    engines = [engine for folder in folders for engine in match_engines(folder, survey)]
    if json:
        rows = [
            {
                "device": str(device),
                **dataclasses.asdict(device),
                "engines": [str(engine.path) for engine in engines if device in engine.devices],
            }
            for device in here
        ]
        output.print_json(
            {
                "devices": rows,
                "engines_for_no_device": {str(engine.path): engine.reasons for engine in engines if not engine.devices},
                "tensorrt": tensorrt,
                "tensorrt_rtx": rtx,
                "driver": survey.driver,
                "cuda_version": survey.cuda_version,
                "gpu_problem": survey.problem,
                "notes": survey.notes,
            }
        )
    else:
        _print(here, engines, tensorrt, rtx)
    for note in survey.notes:
        output.warn(note)
    for engine in engines:
        if not engine.devices:
            output.note(f"No GPU here runs {engine.path}: {'; '.join(engine.reasons)}")
    if survey.problem:
        (output.warn if survey.is_fault else output.note)(f"No GPU: {survey.problem}. More: alexdeploy doctor")


def _print(here: Sequence[Device], engines: Sequence[EngineFile], tensorrt: str | None, rtx: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from alexdeploy.placement.plan import supports

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    has_gpu = any(device.kind == "cuda" for device in here)
    table.add_column("device", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("free", justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    if not has_gpu:
        table.add_column("processors", justify="right")
    else:
        table.add_column("capability", no_wrap=True)
        table.add_column("driver", no_wrap=True)
        table.add_column("TensorRT", no_wrap=True)
        if rtx is not None:
            table.add_column("TensorRT-RTX", no_wrap=True)
        table.add_column("UUID", overflow="fold")
        table.add_column("engines", overflow="fold")
    for device in here:
        row = [str(device), device.name, _gb(device.free_bytes), _gb(device.total_bytes)]
        if not has_gpu:
            row.append(str(device.num_processors))
        elif device.kind == "cuda":
            capability = "" if device.compute_capability is None else ".".join(map(str, device.compute_capability))
            fitting = [engine.path for engine in engines if device in engine.devices]
            names = "\n".join(f"{path.parent.parent.name}/{path.stem}" for path in fitting)
            versions = [tensorrt or "-"]
            if rtx is not None:
                versions.append(rtx if supports("tensorrt-rtx", device) else "-")
            row.extend([capability, device.driver or "", *versions, device.uuid, names])
        table.add_row(*(Text(output.printable(cell)) for cell in row))
    with output.page() as console:
        console.print(table)


def _gb(number: int | None) -> str:
    return "" if number is None else f"{number / 1e9:.1f} GB"
