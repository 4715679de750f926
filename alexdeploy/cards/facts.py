"""What a model folder says of itself, collected for its card and its bill of materials."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

from alexdeploy.cards.measured import Measured
from alexdeploy.core.backend_checks import BackendCheck, read_backend_checks
from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import VIEW_WORDS, ModelFolder
from alexdeploy.core.printable import escape
from alexdeploy.core.protobuf_wire import Message, WireError
from alexdeploy.core.reading import open_regular
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.graphs.freshness import read_metadata
from alexdeploy.graphs.metadata import FLOAT_LAYERS_KEY, INT8_WEIGHTS_KEY, RANGES_KEY, SOURCE_NAME_KEY
from alexdeploy.graphs.ranges import Ranges, read_ranges
from alexdeploy.importing.whole_folder import WholeModel
from alexdeploy.network.layers import plan_layers
from alexdeploy.training.events import EpochRecord
from alexdeploy.training.log import log_path, read_log

_PRODUCER_NAME, _PRODUCER_VERSION = 2, 3
"""Fields of ONNX's ModelProto."""

_MOST_EPOCHS = 12
"""Rows of the training log on a card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandedFile:
    """A file that is handed on."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFacts:
    """A graph that is handed on; `num_views` is None for a network. `producer` is the program that wrote it first.

    `source` is the file that it was made from. Of an INT8 graph: `float_layers` are not quantized, `weight_bits` are
    those in use, and `calibration` is the images that its ranges were measured on, if that is still recorded.
    """

    name: str
    precision: Precision
    num_views: int | None
    producer: str | None
    source: str | None
    float_layers: str | None = None
    weight_bits: str | None = None
    calibration: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Everything that a card is made of. `parameters` is None for a network of unknown architecture.

    `files` has all but `backends.json`, which is what a machine found: `export` rewrites it.
    """

    name: str
    spec: ModelSpec
    files: tuple[HandedFile, ...]
    graphs: tuple[GraphFacts, ...]
    checks: tuple[BackendCheck, ...]
    log: tuple[EpochRecord, ...]
    num_parameters: int | None
    measured: Measured | None

    def graph_of(self, num_views: int) -> GraphFacts | None:
        """The deployment graph of most precision with so many views."""
        return next((each for each in self.graphs if each.num_views == num_views), None)


def collect_facts(folder: ModelFolder, whole: WholeModel, measured: Measured | None) -> Facts:
    """Raises ModelError if a file cannot be read."""
    spec = whole.spec
    networks = [spec.architecture] if spec.architecture is not None else [each.architecture for each in spec.members]
    parameters = [
        None if each is None else sum(layer.num_parameters for layer in plan_layers(each, spec.num_classes))
        for each in networks
    ]
    known = [each for each in parameters if each is not None]
    hashes = set(whole.hashes.values())
    return Facts(
        # A name on disk may be no text.
        name=escape(folder.path.resolve().name),
        spec=spec,
        files=tuple(
            HandedFile(name=name, num_bytes=(folder.path / name).stat().st_size, sha256=sha256)
            for name, sha256 in sorted(whole.hashes.items())
            if name != folder.backends_path.name
        ),
        graphs=_graphs(folder),
        checks=tuple(each for each in read_backend_checks(folder) if each.artifact in hashes),
        log=_log(folder, spec),
        num_parameters=sum(known) if known and len(known) == len(parameters) else None,
        measured=measured,
    )


def _graphs(folder: ModelFolder) -> tuple[GraphFacts, ...]:
    found = []
    for num_views, precision in product((None, *VIEW_WORDS), get_args(Precision)):
        path = folder.onnx_path(precision, num_views)
        if not path.is_file():
            continue
        facts = read_metadata(path)
        measured = facts.metadata.get(RANGES_KEY)
        ranges = _ranges(folder) if measured else None
        is_same = ranges is not None and ranges.sha256 == measured
        found.append(
            GraphFacts(
                name=path.name,
                precision=precision,
                num_views=num_views,
                producer=_producer(path),
                source=facts.metadata.get(SOURCE_NAME_KEY),
                float_layers=facts.metadata.get(FLOAT_LAYERS_KEY),
                weight_bits=facts.metadata.get(INT8_WEIGHTS_KEY),
                calibration=_describe(ranges) if ranges is not None and is_same else None,
            )
        )
    return tuple(found)


def _ranges(folder: ModelFolder) -> Ranges | None:
    with suppress(ModelError):
        return read_ranges(folder.ranges_path) if folder.ranges_path.is_file() else None
    return None


def _describe(ranges: Ranges) -> str:
    return f"{ranges.num_images:,} images, method {ranges.method}"


def _producer(path: Path) -> str | None:
    """The program that the file names as its producer, with its version."""
    try:
        with open_regular(path) as file:
            message = Message(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        words = (message.text(_PRODUCER_NAME), message.text(_PRODUCER_VERSION))
    except (OSError, ValueError, WireError):
        return None
    return " ".join(word for word in words if word) or None


def _log(folder: ModelFolder, spec: ModelSpec) -> tuple[EpochRecord, ...]:
    """Epochs of the log, if it is that of these weights: the first, the best and the last, and some between."""
    try:
        records = read_log(log_path(folder))
    except OSError:
        return ()
    facts: Mapping[str, object] = spec.provenance
    best = [each for each in records if each.epoch == facts.get("best_epoch")]
    if not best or best[-1].val_top1_error != facts.get("val_top1_error"):
        return ()
    step = max(1, -(-len(records) // _MOST_EPOCHS))
    shown = {*range(0, len(records), step), len(records) - 1, records.index(best[-1])}
    return tuple(records[index] for index in sorted(shown))
