"""Throughput of one view or ten from JPEG files to rows, and of the engine alone, against other software.

Every peer is first tuned: each form of it that its documentation offers runs on some of the files, and the fastest
takes part in the rounds. All of them classify the same files in the same rounds.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews, is_installed
from benchmarks import benchmark_app, raw_tensorrt
from benchmarks.network import export_decomposed, write_deployed
from benchmarks.nncf_graph import PRESETS, is_nncf_here, nncf_version, quantize, write_calibration
from benchmarks.photographs import write_batch, write_squares
from benchmarks.process import Process, take_turns
from benchmarks.subjects import Answer, Ask, Reply, Setup

Say = Callable[[str], None]

BATCH_SIZE = 8
"""Images a batch: ours has it by default. Peers are tried with it and with one image at a time."""

_OPENVINO_FORMS = ("latency hint", *benchmark_app.FORMS)
_OPENVINO_BATCHES = (1, 2, 4, BATCH_SIZE)

_NUM_CHECKED = 8
_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerOptions:
    """`files` are the photographs, `precisions` those of ours; `calibrate` names images for NNCF, as for `calibrate`.

    `software` limits the peers to names that begin with one of these; empty: all. A turn takes about `seconds`, and all
    of the files once at least. `device` is "cpu", or "cuda" where a GPU is.
    """

    files: tuple[str, ...]
    precisions: tuple[Precision, ...]
    calibrate: str
    num_views: NumViews = 10
    software: tuple[str, ...] = ()
    num_rounds: int = 7
    seconds: float = 4.0
    num_tuning_files: int = 16
    num_tuning_rounds: int = 3
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """Software that is tuned: the ways to open it by what they are called, and the batches it is tried with."""

    forms: Mapping[str, Setup]
    batches: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A process that takes part, and what it is asked in each of its turns."""

    process: Process
    ask: Ask


def measure_peers(folder: ModelFolder, workspace: Path, options: PeerOptions, say: Say) -> dict[str, Any]:
    """Figures by the names of the sides, as plain data: rates in images/s, one for each round."""
    workspace = workspace / f"peers-{options.num_views}"
    workspace.mkdir()
    squares = tuple(write_squares(options.files[:_NUM_CHECKED], workspace / "squares"))
    tuning: dict[str, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    with ExitStack() as stack:
        entries = {name: _open(setup, options, stack, say) for name, setup in _our_setups(folder, options).items()}
        for name, peer in _peers(folder, workspace, options, say).items():
            entries[name], chosen[name], tuning[name] = tune(name, peer, options, stack, say)
        # What all of them give for the same pixels, then for the photographs.
        checked = {name: _answer(entry, squares).answers for name, entry in entries.items() if _classifies(name)}
        check_same_network(checked)
        answers: dict[str, list[Answer]] = {}
        turns: dict[str, Callable[[], float]] = {}
        for name, entry in entries.items():
            say(f"warming up {name}")
            reply = _answer(entry, options.files)
            answers[name] = reply.answers
            repeats = max(1, round(options.seconds * reply.images_per_second / len(options.files)))
            ask = msgspec.structs.replace(entry.ask, repeats=repeats, seconds=options.seconds)
            turns[name] = partial(entry.process.rate, ask)
        turns |= _raw_engines(folder, workspace, options, chosen, tuning, say)
        rates = take_turns(turns, options.num_rounds, options.seed, say)
        ours = {name: entry.process.opened for name, entry in entries.items() if entry.process.opened.backend}
        reference = answers["alexdeploy fp32"]
        return {
            "num_files": len(options.files),
            "num_rounds": options.num_rounds,
            "num_views": options.num_views,
            "batch_size": BATCH_SIZE,
            "device": options.device,
            "nncf": nncf_version(),
            "tuning": tuning,
            "chosen": chosen,
            # Where a peer is slower in the rounds than it was as it was tuned, its ratio tells less.
            "rounds_over_tuning": {
                name: statistics.median(rates[name]) / tuning[name][form] for name, form in chosen.items()
            },
            "engines": {
                name: {"backend": each.backend, "device": each.device, "num_streams": each.num_streams}
                for name, each in ours.items()
            },
            "rates": rates,
            "peak_bytes": {name: entry.process.peak_bytes for name, entry in entries.items()},
            "open_seconds": {name: entry.process.opened.open_seconds for name, entry in entries.items()},
            "same_answers": {name: _num_same(reference, answers[name]) for name in checked},
            "same_answers_on_squares": {name: _num_same(checked["alexdeploy fp32"], checked[name]) for name in checked},
        }


def _classifies(name: str) -> bool:
    return not name.startswith(("engine", "decode"))


def _our_setups(folder: ModelFolder, options: PeerOptions) -> dict[str, Setup]:
    model = str(folder.path)
    device = "cpu" if options.device == "cpu" else "cuda:0"
    setups = {"decode": Setup(side="decode", model=model)}
    for precision in options.precisions:
        for name, side in (("alexdeploy", "ours"), ("engine", "engine")):
            setups[f"{name} {precision}"] = Setup(
                side=side,
                model=model,
                precision=precision,
                num_views=options.num_views,
                batch_size=BATCH_SIZE,
                device=device,
            )
    return setups


def _peers(folder: ModelFolder, workspace: Path, options: PeerOptions, say: Say) -> dict[str, Peer]:
    """Those whose packages are here."""

    def setup(side: str, **form: Any) -> Setup:
        return Setup(side=side, model=str(folder.path), num_views=options.num_views, device=options.device, **form)

    peers: dict[str, Peer] = {}
    has_torch = is_installed("torch")
    if options.device == "cpu" and is_installed("openvino"):
        peers |= _openvino_peers(folder, workspace, options, setup, say)
    if is_installed("onnxruntime"):
        graphs = {"native LRN": folder.onnx_path()}
        # The exporter writes its graph with onnxscript.
        if has_torch and importlib.util.find_spec("onnxscript") is not None:
            graphs["decomposed LRN"] = export_decomposed(folder, workspace / "decomposed.onnx")
        for name, ours in (
            ("onnxruntime", graphs),
            ("onnxruntime int8", {"native LRN only": folder.onnx_path("int8")}),
        ):
            forms = {form: setup("onnxruntime", graph=str(path)) for form, path in ours.items()}
            peers[name] = Peer(forms=forms, batches=(1, BATCH_SIZE))
    if has_torch:
        layouts = ("contiguous", "channels_last")
        bfloat16 = [f"{layout}, {way}" for way in ("autocast", "network.bfloat16()") for layout in layouts]
        for name, precision, names in (("pytorch", "fp32", layouts), ("pytorch bf16", "bf16", bfloat16)):
            forms = {form: setup("pytorch", precision=precision, form=form) for form in names}
            peers[name] = Peer(forms=forms, batches=(1, BATCH_SIZE))
        workers = dict.fromkeys((1, available_processors()))
        forms = {
            f"{number} workers": setup("dataloader", form=str(number), batch_size=BATCH_SIZE) for number in workers
        }
        peers["dataloader"] = Peer(forms=forms, batches=(BATCH_SIZE,))
    return {name: peer for name, peer in peers.items() if not options.software or name.startswith(options.software)}


def _openvino_peers(
    folder: ModelFolder, workspace: Path, options: PeerOptions, setup: Callable[..., Setup], say: Say
) -> dict[str, Peer]:
    """OpenVINO in each precision of ours, INT8 by NNCF; each in every form and batch."""
    graphs: dict[str, Path] = {each: folder.onnx_path() for each in options.precisions if each != "int8"}
    if not is_nncf_here():
        say("OpenVINO in INT8 is left out: nncf is not installed")
    elif "int8" in options.precisions:
        say("quantizing with NNCF")
        calibration = write_calibration(folder, options.calibrate, workspace / "calibration.npy")
        graphs["int8"] = quantize(folder, calibration, PRESETS[0], workspace / "nncf.xml")
        calibration.unlink()
    peers = {}
    for precision, graph in graphs.items():
        forms = {form: setup("openvino", precision=precision, form=form, graph=str(graph)) for form in _OPENVINO_FORMS}
        peers[f"openvino {precision}"] = Peer(forms=forms, batches=_OPENVINO_BATCHES)
    return peers


def _open(setup: Setup, options: PeerOptions, stack: ExitStack, say: Say) -> Entry:
    say(f"opening {setup.side} {setup.precision} {setup.form}".rstrip())
    return Entry(process=stack.enter_context(Process(setup)), ask=Ask(files=options.files))


def tune(
    name: str, peer: Peer, options: PeerOptions, stack: ExitStack, say: Say
) -> tuple[Entry, str, dict[str, float]]:
    """The fastest form and batch of a peer, what it is called, and how fast all of them were."""
    files = options.files[: options.num_tuning_files]
    entries: dict[str, Entry] = {}
    with ExitStack() as tried:
        for form, setup in peer.forms.items():
            process = _open(setup, options, tried, say).process
            for batch_size in peer.batches:
                ask = Ask(files=files, batch_size=batch_size)
                process.ask(ask)
                entries[f"{form}, batches of {batch_size}"] = Entry(process=process, ask=ask)
        turns = {form: partial(entry.process.rate, entry.ask) for form, entry in entries.items()}
        rates = take_turns(turns, options.num_tuning_rounds, options.seed, _tuning(name, say))
    medians = {form: statistics.median(found) for form, found in rates.items()}
    best = _best(medians)
    # A process of its own, whose memory is that of this form alone.
    entry = _open(entries[best].process.setup, options, stack, say)
    ask = msgspec.structs.replace(entry.ask, batch_size=entries[best].ask.batch_size)
    return Entry(process=entry.process, ask=ask), best, medians


def _best(rates: Mapping[str, float]) -> str:
    return max(rates, key=lambda form: rates[form])


def _tuning(name: str, say: Say) -> Say:
    return lambda text: say(f"tuning {name}, {text}")


def _answer(entry: Entry, files: tuple[str, ...]) -> Reply:
    return entry.process.ask(msgspec.structs.replace(entry.ask, files=files, with_answers=True))


def check_same_network(checked: Mapping[str, list[Answer]]) -> None:
    """Raise SystemExit unless everything in FP32 computes the same function, on pixels that are the same for all."""
    expected = checked["alexdeploy fp32"]
    for name in ("openvino fp32", "onnxruntime", "pytorch", "dataloader"):
        for (label, probability), (other, its) in zip(expected, checked.get(name, expected), strict=True):
            if label != other or abs(its - probability) > _TOLERANCE * probability:
                raise SystemExit(f"{name} gives class {other} with {its:.5f} where ours is {label}, {probability:.5f}")


def _num_same(expected: list[Answer], found: list[Answer]) -> int:
    return sum(a[0] == b[0] for a, b in zip(expected, found, strict=True))


def _raw_engines(
    folder: ModelFolder,
    workspace: Path,
    options: PeerOptions,
    chosen: dict[str, str],
    tuning: dict[str, dict[str, float]],
    say: Say,
) -> dict[str, Callable[[], float]]:
    """The engine alone as its vendor's own program runs it: benchmark_app, on a GPU what trtexec does.

    Nothing on a CPU without OpenVINO.
    """
    if options.device != "cpu":
        return {
            f"raw {precision}": partial(raw_tensorrt.in_own_process, folder, precision, BATCH_SIZE, options.seconds)
            for precision in options.precisions
        }
    if not is_installed("openvino"):
        return {}
    from alexdeploy.engines.openvino import images_at_once

    batch = write_batch(options.files, images_at_once(BATCH_SIZE, options.num_views), workspace / "batch.npy")
    turns: dict[str, Callable[[], float]] = {}
    for precision in options.precisions:
        name = f"raw {precision}"
        graph = write_deployed(folder, precision, options.num_views, workspace / f"deployed-{precision}.onnx")
        run = partial(benchmark_app.images_per_second, graph, precision, batch, available_processors(), options.seconds)
        forms = {form: partial(run, form) for form in benchmark_app.FORMS}
        num_rounds = min(2, options.num_tuning_rounds)
        rates = take_turns(forms, num_rounds, options.seed, _tuning(name, say))
        tuning[name] = {form: statistics.median(found) for form, found in rates.items()}
        chosen[name] = _best(tuning[name])
        turns[name] = forms[chosen[name]]
    return turns
