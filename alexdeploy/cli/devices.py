"""`alexdeploy devices`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alexdeploy.placement.devices import Device


def devices(json: JsonOption = False) -> None:
    """List the CPU and the GPUs, as --devices names them, with the engine files that fit each.

    GPUs are counted after CUDA_VISIBLE_DEVICES.
    """
    from alexdeploy.inference.doctor import tensorrt_version
    from alexdeploy.placement.devices import cpu_device, fitting_engines, survey_gpus

    survey = survey_gpus()
    tensorrt = tensorrt_version()
    engines = {
        device: fitting_engines(device, tensorrt) if device.kind == "cuda" else ()
        for device in (cpu_device(), *survey.devices)
    }
    if json:
        rows = [
            {"device": str(device), **dataclasses.asdict(device), "engines": [str(path) for path in paths]}
            for device, paths in engines.items()
        ]
        output.print_json(
            {
                "devices": rows,
                "tensorrt": tensorrt,
                "driver": survey.driver,
                "cuda_version": survey.cuda_version,
                "gpu_problem": survey.problem,
                "notes": survey.notes,
            }
        )
    else:
        _print(engines, tensorrt)
    for note in survey.notes:
        output.warn(note)
    if survey.problem:
        output.note(f"No GPU: {survey.problem}. More: alexdeploy doctor")


def _print(engines: Mapping[Device, tuple[Path, ...]], tensorrt: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    has_gpu = any(device.kind == "cuda" for device in engines)
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
        table.add_column("UUID", overflow="fold")
        table.add_column("engines", overflow="fold")
    for device, paths in engines.items():
        row = [str(device), device.name, _gb(device.free_bytes), _gb(device.total_bytes)]
        if not has_gpu:
            row.append(str(device.num_processors))
        elif device.kind == "cuda":
            capability = "" if device.compute_capability is None else ".".join(map(str, device.compute_capability))
            names = "\n".join(f"{path.parent.parent.name}/{path.stem}" for path in paths)
            row.extend([capability, device.driver or "", tensorrt or "-", device.uuid, names])
        table.add_row(*(Text(output.printable(cell)) for cell in row))
    with output.page() as console:
        console.print(table)


def _gb(number: int | None) -> str:
    return "" if number is None else f"{number / 1e9:.1f} GB"
