"""An ensemble: a model folder whose graphs contain those of other models, and whose answer is the mean of theirs."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper, version_converter

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.backend_checks import BackendCheck, backend_checks_json
from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError, first_line
from alexdeploy.core.events import Notice, Status, warn_of_notices
from alexdeploy.core.files import npy_bytes, sha256_bytes
from alexdeploy.core.model_folder import ModelFolder, find_model, model_named
from alexdeploy.core.spec import Member, ModelSpec, Precision, Preprocessing
from alexdeploy.core.version import __version__
from alexdeploy.export.check_images import check_photographs
from alexdeploy.export.engine_check import check_engines
from alexdeploy.graphs.edit import opset_of
from alexdeploy.graphs.ensemble import join_networks
from alexdeploy.graphs.files import Source, graph_of, serialize, sum_line
from alexdeploy.graphs.freshness import load_graph, load_metadata, newer_weights
from alexdeploy.importing.model_folder import write_model

_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

_MOST_BYTES = (2 << 30) - (64 << 20)
"""ONNX files have at most 2 GiB; a deployment graph also has the mean images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleGraph:
    """One graph of an ensemble. `backends` are the installed backends, and whether each gives the graph's answers."""

    path: Path
    precision: Precision
    sha256: str
    backends: tuple[BackendCheck, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """The model folder that was made, the names of its members in their order, and its graphs."""

    path: Path
    members: tuple[str, ...]
    graphs: tuple[EnsembleGraph, ...]


def ensemble(
    models: Sequence[ModelFolder | str | os.PathLike[str]],
    name: str,
    *,
    overwrite: bool = False,
    on_event: Callable[[Status | Notice], None] = warn_of_notices,
) -> Ensemble:
    """Make the model folder models/NAME of an ensemble: its probabilities are the mean of those of `models`.

    Each of `models` is a folder or what `find_model` takes, and at least two are needed. The ensemble has a graph of
    each precision of which every member has one, FP32 first, and is independent of its members afterwards: their graphs
    and mean images are copied. Members may differ in everything but their classes and how images are resized; classes
    in another order are put in that of the first member. Raises UsageError for models that do not fit together or a
    folder in use, StaleArtifactError and ModelError for a member without a usable graph, and ParityError if no
    installed backend gives the mean of the members' answers. Nothing is written, and no earlier model changed, until
    all checks have passed.
    """
    paths = [each.path if isinstance(each, ModelFolder) else each for each in models]
    names = check_argument("models", models if isinstance(models, str) else paths, tuple[str, ...])
    folder = model_named(check_argument("name", name, str))
    check_argument("overwrite", overwrite, bool)
    members = _members(names)
    if any(each.folder.path.resolve() == folder.path.resolve() for each in members):
        raise UsageError(f"{folder.path} is a member itself", hint="Give the ensemble another name: --name NAME")
    if not overwrite:
        folder.check_unused()
    for each in members:
        if (note := newer_weights(each.folder)) is not None:
            on_event(Notice(message=note))
    means = [each.mean_image for each in members if each.mean_image is not None]
    mean_file = npy_bytes(np.stack(means)) if means else None
    precisions = tuple(_precisions(members, folder.path.name, on_event))
    spec = _spec(folder, members, precisions, None if mean_file is None else sha256_bytes(mean_file))
    origin, photographs = check_photographs(members[0].spec, None)
    on_event(Status(message=f"checking on {len(photographs)} images of {origin}"))
    graphs, contents = list[EnsembleGraph](), dict[Path, bytes]()
    for precision in precisions:
        on_event(Status(message=f"joining {folder.onnx_path(precision).name} of {len(members)} members"))
        hashes = "".join(each.graphs[precision] for each in spec.members)
        source = Source(name="members", sha256=sha256_bytes(hashes.encode()))
        if graphs:
            source = Source(name=graphs[0].path.name, sha256=graphs[0].sha256)
        content = serialize(_joined(members, spec, precision), spec, source, precision)
        path = folder.onnx_path(precision)
        contents |= {path: content, folder.sum_path(precision): sum_line(path, content)}
        on_event(Status(message=f"checking every backend on the {precision} graph, with one view and ten"))
        checks = check_engines(
            graph_of(ModelProto.FromString(content), content),
            spec,
            precision,
            np.stack(means) if means else None,
            photographs,
            lambda message: on_event(Notice(message=message)),
        )
        graphs.append(EnsembleGraph(path=path, precision=precision, sha256=sha256_bytes(content), backends=checks))
    if mean_file is not None:
        contents[folder.mean_path] = mean_file
    contents[folder.backends_path] = backend_checks_json(tuple(check for each in graphs for check in each.backends))
    write_model(folder, contents, spec)
    return Ensemble(path=folder.path, members=tuple(each.name for each in spec.members), graphs=tuple(graphs))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """A model that becomes a member. `order` has its output's index of each class of the ensemble; None if the same."""

    folder: ModelFolder
    spec: ModelSpec
    mean_image: NDArray[np.float32] | None
    order: NDArray[np.int64] | None


def _members(models: Sequence[str]) -> list[_Member]:
    """Raises UsageError for models that do not fit together."""
    if len(models) < 2:
        raise UsageError(f"an ensemble has at least two members; found {len(models)}", hint="Name more models.")
    folders = [find_model(each) for each in models]
    for index, folder in enumerate(folders):
        if folder.path.resolve() in [each.path.resolve() for each in folders[:index]]:
            raise UsageError(f"{folder.path} is given twice", hint="Name each member once: all have the same weight.")
    members = [_Member(folder=each, spec=each.spec(), mean_image=None, order=None) for each in folders]
    first = members[0]
    for each in members:
        if each.spec.members:
            names = " ".join(shlex.quote(member.name) for member in each.spec.members)
            raise UsageError(f"{each.folder.path} is an ensemble itself", hint=f"Name its members instead: {names}")
        found, expected = each.spec.preprocessing.resize, first.spec.preprocessing.resize
        if found != expected:
            raise UsageError(
                f"{each.folder.path} takes images resized by {found}, {first.folder.path} by {expected}: an image is "
                "decoded once for all members",
                hint="Make an ensemble of models with the same resize; `alexdeploy inspect MODEL` shows it.",
            )
        if sorted(each.spec.classes) != sorted(first.spec.classes):
            other = sorted(set(each.spec.classes).symmetric_difference(first.spec.classes))
            raise UsageError(
                f"{each.folder.path} and {first.folder.path} have other classes: {each.spec.num_classes} and "
                f"{first.spec.num_classes}; only one of them has {', '.join(map(repr, other[:3]))}",
                hint="Train or import them with the same classes; their order does not matter.",
            )
    return [
        replace(each, mean_image=each.folder.mean_image(each.spec), order=_order(each.spec, first.spec))
        for each in members
    ]


def _order(spec: ModelSpec, first: ModelSpec) -> NDArray[np.int64] | None:
    if spec.classes == first.classes:
        return None
    places = {name: index for index, name in enumerate(spec.classes)}
    if len(places) < spec.num_classes:
        raise UsageError("two classes have the same name, and the members have them in different orders")
    return np.array([places[name] for name in first.classes], np.int64)


def _precisions(
    members: Sequence[_Member], name: str, on_event: Callable[[Status | Notice], None]
) -> Iterator[Precision]:
    """FP32, and each precision of which every member has a graph. Raises ModelError if the files are too large."""
    for precision in _PRECISIONS:
        paths = [each.folder.onnx_path(precision) for each in members]
        lacking = [each.folder for each, path in zip(members, paths, strict=True) if not path.is_file()]
        # For FP32, loading the graph says how to make it.
        if precision == "fp32" or not lacking:
            num_bytes = sum(path.stat().st_size for path in paths if path.is_file())
            if num_bytes > _MOST_BYTES:
                raise ModelError(
                    f"{name} would have a {paths[0].name} of {num_bytes:,} bytes; ONNX allows {_MOST_BYTES:,}",
                    hint="Name fewer members.",
                )
            yield precision
        elif len(lacking) < len(members):
            on_event(
                Notice(
                    message=f"no {precision} graph: {', '.join(str(each.path) for each in lacking)} "
                    f"has none. Make it: alexdeploy export {lacking[0].quoted} --{precision}"
                )
            )


def _spec(
    folder: ModelFolder, members: Sequence[_Member], precisions: Sequence[Precision], mean_sha256: str | None
) -> ModelSpec:
    first = members[0].spec
    data = {each.spec.provenance.get("data") for each in members}
    return ModelSpec(
        name=folder.path.name,
        classes=first.classes,
        preprocessing=Preprocessing(resize=first.preprocessing.resize, mean_image=mean_sha256),
        provenance={
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "alexdeploy_version": __version__,
            # For the images that checks and `verify` take if none are named.
            "data": data.pop() if len(data) == 1 else None,
        },
        members=tuple(
            Member(
                name=each.folder.path.resolve().name,
                preprocessing=each.spec.preprocessing,
                architecture=each.spec.architecture,
                recipe=each.spec.recipe,
                provenance=each.spec.provenance,
                graphs={of: load_metadata(each.folder, of, each.spec).sha256 for of in precisions},
            )
            for each in members
        ),
    )


def _joined(members: Sequence[_Member], spec: ModelSpec, precision: Precision) -> ModelProto:
    networks = []
    for each, recorded in zip(members, spec.members, strict=True):
        graph = load_graph(each.folder, precision, each.spec)
        if graph.sha256 != recorded.graphs[precision]:
            raise StaleArtifactError(f"{each.folder.onnx_path(precision)} changed meanwhile", hint="Run it again.")
        if each.order is not None:
            _put_in_order(graph.model, each.order)
        networks.append(graph.model)
    opset = max(map(opset_of, networks))
    for index, network in enumerate(networks):
        if opset_of(network) < opset:
            networks[index] = _converted(network, opset, members[index].folder.onnx_path(precision))
    return join_networks(networks)


def _put_in_order(network: ModelProto, order: NDArray[np.int64]) -> None:
    """Make the logits those of the classes in another order: `order` has the index of each."""
    graph = network.graph
    indices = numpy_helper.from_array(order, "ensemble/class_order")
    graph.initializer.append(indices)
    ordered = "ensemble/logits"
    graph.node.append(helper.make_node("Gather", [graph.output[0].name, indices.name], [ordered], ordered, axis=1))
    graph.output[0].name = ordered


def _converted(network: ModelProto, opset: int, path: Path) -> ModelProto:
    try:
        return version_converter.convert_version(network, opset)
    # The converter has no exception classes of its own.
    except (RuntimeError, ValueError, IndexError) as exc:
        raise ModelError(
            f"{path} has opset {opset_of(network)} and cannot be converted to that of the others, {opset}: "
            f"{first_line(exc)}",
            hint="Export or import it again from the original, at a newer opset.",
        ) from exc
