"""Answers that differ from FP32's, in each precision, of ours and of others: a trained network, held-back photographs.

Whoever decodes otherwise has other pixels, and so other answers near a tie. Each is therefore compared with FP32 of the
same software on the same pixels, and with our FP32 only beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews, is_installed
from benchmarks.network import calibrate_anew, check_preprocessing
from benchmarks.nncf_graph import PRESETS, is_nncf_here, nncf_version, quantize, write_calibration
from benchmarks.process import Process
from benchmarks.subjects import Answer, Ask, Setup

Say = Callable[[str], None]

VIEWS: tuple[NumViews, ...] = (1, 10)

_BATCH_SIZE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """`files` were in neither training nor calibration; `calibrate` is what both INT8 graphs are calibrated on."""

    files: tuple[str, ...]
    calibrate: str
    precisions: tuple[Precision, ...]


def measure_answers(
    folders: Sequence[ModelFolder], workspace: Path, options: AnswerOptions, say: Say
) -> dict[str, Any]:
    """For each model and number of views: of each side the classes that differ, as plain data."""
    models: dict[str, Any] = {}
    for folder in folders:
        name = folder.spec().name
        check_preprocessing(folder)
        say(f"answers: calibrating {name}")
        calibrate_anew(folder, options.calibrate)
        sides = _sides(folder, workspace / f"answers-{len(models)}", options, say)
        views: dict[str, Any] = {}
        for num_views in VIEWS:
            answers: dict[str, list[Answer]] = {}
            for side, setup in sides.items():
                say(f"answers, {name}, {num_views} views: {side}")
                with Process(msgspec.structs.replace(setup, num_views=num_views)) as process:
                    ask = Ask(files=options.files, batch_size=_BATCH_SIZE, with_answers=True)
                    answers[side] = process.ask(ask).answers
            labels = [label for label, _ in answers["alexdeploy fp32"]]
            views[str(num_views)] = compare(answers, true_classes(folder, options.files), labels)
        models[name] = {"num_classes": len(folder.spec().classes), "views": views}
    return {"num_files": len(options.files), "nncf": nncf_version(), "models": models}


def _sides(folder: ModelFolder, workspace: Path, options: AnswerOptions, say: Say) -> dict[str, Setup]:
    """By their names "software precision"; the first of each software is its FP32."""
    model = str(folder.path)
    sides = {f"alexdeploy {each}": Setup(side="ours", model=model, precision=each) for each in options.precisions}
    form = "throughput hint"
    if is_installed("openvino"):
        graph = str(folder.onnx_path())
        for precision in ("fp32", "bf16"):
            if precision in options.precisions:
                sides[f"openvino {precision}"] = Setup(
                    side="openvino", model=model, precision=precision, form=form, graph=graph
                )
        if is_nncf_here():
            workspace.mkdir()
            say(f"answers: quantizing {folder.spec().name} with NNCF")
            calibration = write_calibration(folder, options.calibrate, workspace / "images.npy")
            for preset in PRESETS:
                graph = str(quantize(folder, calibration, preset, workspace / f"{preset}.xml"))
                sides[f"openvino int8, {preset}"] = Setup(
                    side="openvino", model=model, precision="int8", form=form, graph=graph
                )
            calibration.unlink()
    if is_installed("torch") and folder.weights_path.is_file():
        sides["pytorch fp32"] = Setup(side="pytorch", model=model)
        if "bf16" in options.precisions:
            sides["pytorch bf16"] = Setup(side="pytorch", model=model, precision="bf16", form="network.bfloat16()")
    return sides


def true_classes(folder: ModelFolder, files: Sequence[str]) -> list[int] | None:
    """By the folder that each file is in; None where not all of these are classes of the model."""
    numbers = {name: number for number, name in enumerate(folder.spec().classes)}
    found = [numbers.get(Path(file).parent.name) for file in files]
    return None if None in found else [number for number in found if number is not None]


def compare(answers: Mapping[str, list[Answer]], truth: Sequence[int] | None, ours: Sequence[int]) -> dict[str, Any]:
    """For each side: how many classes are not those of its own FP32 and of `ours`, and how many are wrong.

    `changed` lists the indices of the former, so that two sides can be compared on the same photographs.
    """
    found = {}
    for side, given in answers.items():
        software = side.partition(" ")[0]
        own = [label for label, _ in answers[f"{software} fp32"]]
        labels = [label for label, _ in given]
        found[side] = {
            "changed": _differing(labels, own),
            "num_other_than_ours": len(_differing(labels, ours)),
            "num_wrong": None if truth is None else len(_differing(labels, truth)),
        }
    return found


def _differing(found: Sequence[int], expected: Sequence[int]) -> list[int]:
    return [index for index, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
