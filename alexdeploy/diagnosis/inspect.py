"""Facts about a recipe, a model folder, an ONNX or safetensors file, or an engine, without running it."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import safetensors

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.backend_checks import read_backend_checks
from alexdeploy.core.errors import DeviceError, ModelError, RecipeError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import MODELS_FOLDER, ModelFolder, find_model, is_model
from alexdeploy.core.reading import check_exists, check_regular
from alexdeploy.core.recipe import list_recipes, load_recipe
from alexdeploy.core.spec import LRN, Architecture, ModelSpec, Precision
from alexdeploy.core.stores.urls import is_url
from alexdeploy.diagnosis.layers import LayerRow, engine_layers, graph_layers, planned_layers
from alexdeploy.engines.base import NumViews
from alexdeploy.engines.trt.cuda_driver import cuda_ordinal
from alexdeploy.engines.trt.files import NAMES, load_engine, read_record, sm
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.deployment import describe_value
from alexdeploy.graphs.edit import opset_of, weight_bits
from alexdeploy.graphs.ensemble import member_prefix
from alexdeploy.graphs.freshness import check_fresh
from alexdeploy.graphs.metadata import PRECISION_KEY, SOURCE_KEY, SOURCE_NAME_KEY
from alexdeploy.placement.devices import Device, survey_gpus

Fact = str | int | float | None


_SUFFIXES = (".onnx", ".safetensors", ".engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The facts found. `facts`, `preprocessing` and `provenance` are printed as they are.

    `members` of an ensemble have their name, recipe, preprocessing, provenance and the hashes of the graphs that were
    copied, by "member1" and so on, with which the names of their layers begin.
    """

    target: str
    kind: str
    facts: dict[str, Fact]
    layers: tuple[LayerRow, ...]
    lrn: dict[str, Fact] | None = None
    preprocessing: dict[str, Any] | None = None
    provenance: dict[str, Fact] = dataclasses.field(default_factory=dict)
    files: tuple[dict[str, Fact], ...] = ()
    backends: dict[str, Fact] = dataclasses.field(default_factory=dict)
    members: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def neurons(self) -> int:
        return sum(layer.neurons for layer in self.layers)


def inspect(
    target: ModelFolder | str | os.PathLike[str], *, overrides: tuple[str, ...] = (), num_classes: int | None = None
) -> Inspection:
    """Inspect a recipe (name or file), a model (folder, name or URL), an .onnx, a .safetensors or a TensorRT .engine.

    `overrides` and `num_classes` (1000 if None) are for recipes, which do not define their classes. With them, a name
    shared by a model and a recipe means the recipe. Raises ModelError, RecipeError, and UsageError if they are given
    for another kind of target or the target does not exist.
    """
    if isinstance(target, ModelFolder):
        return _inspect_folder(target)
    name: str = check_argument("target", target, str)
    is_recipe = name.endswith(".toml") or name in list_recipes() or os.path.isfile(MODELS_FOLDER / f"{name}.toml")
    changes_recipe = bool(overrides) or num_classes is not None
    if is_url(name) and not changes_recipe:
        return _inspect_folder(find_model(name))
    if is_recipe and (changes_recipe or not is_model(name)):
        return _inspect_recipe(name, overrides, 1000 if num_classes is None else num_classes)
    if os.sep in name or name.endswith(_SUFFIXES):
        check_exists(name)
    if name.endswith(_SUFFIXES) or is_model(name):
        if changes_recipe:
            raise UsageError(
                f"{name} is not a recipe: --set and --num-classes change recipes",
                hint=f"Recipes: {', '.join(list_recipes())}",
            )
        if is_model(name):
            return _inspect_folder(find_model(name))
        if name.endswith(".engine"):
            return _inspect_engine(Path(name))
        return _inspect_onnx(Path(name)) if name.endswith(".onnx") else _inspect_safetensors(Path(name))
    if os.sep in name or os.path.exists(name):
        raise ModelError(
            f"{name} is not something that can be inspected",
            hint="Give a recipe, a model folder, an .onnx, a .safetensors or an .engine.",
        )
    models = sorted(path.parent.name for path in MODELS_FOLDER.glob("*/spec.json"))
    near = difflib.get_close_matches(name, [*list_recipes(), *models], n=1)
    raise RecipeError(
        f"{name!r} is neither a recipe nor a model here" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint="\n".join(
            f"{kind}: {', '.join(names)}" for kind, names in (("Recipes", list_recipes()), ("Models", models)) if names
        ),
    )


def _inspect_recipe(name: str, overrides: tuple[str, ...], num_classes: int) -> Inspection:
    recipe = load_recipe(name, overrides)
    steps = msgspec.to_builtins(recipe.preprocessing)
    return Inspection(
        target=name,
        kind="recipe",
        facts={"description": recipe.description, "classes": num_classes, **_architecture_facts(recipe.architecture)},
        layers=planned_layers(recipe.architecture, num_classes),
        lrn=_lrn_facts(recipe.architecture.lrn),
        preprocessing={**steps, "crop": recipe.architecture.input},
    )


def _inspect_folder(folder: ModelFolder) -> Inspection:
    spec = folder.spec()
    facts: dict[str, Fact] = {"name": spec.name, "recipe": spec.recipe, "classes": spec.num_classes}
    if spec.architecture is not None:
        facts |= _architecture_facts(spec.architecture)
        layers = planned_layers(spec.architecture, spec.num_classes)
        lrn = _lrn_facts(spec.architecture.lrn)
    else:
        graph = graph_files.read_graph(folder.onnx_path())
        layers, lrn = graph_layers(graph.model), None if spec.members else _graph_lrn(graph)
    if spec.members:
        facts["members"] = ", ".join(each.name for each in spec.members)
    return Inspection(
        target=str(folder.path),
        kind="model",
        facts=facts,
        layers=layers,
        lrn=lrn,
        preprocessing={"resize": spec.preprocessing.resize}
        if spec.members
        else msgspec.to_builtins(spec.preprocessing),
        provenance=dict(spec.provenance),
        members=_members(spec),
        backends={
            f"{check.backend} {check.version}, {check.precision}": check.problem or "gives the graph's answers"
            for check in read_backend_checks(folder)
        },
        files=tuple(_file_facts(path) for path in sorted(folder.path.iterdir()) if path.is_file()),
    )


def _members(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    return {
        member_prefix(number).rstrip("/"): {
            "name": each.name,
            "recipe": each.recipe,
            **msgspec.to_builtins(each.preprocessing),
            "graphs": each.graphs,
            "provenance": each.provenance,
        }
        for number, each in enumerate(spec.members, 1)
    }


def _inspect_onnx(path: Path) -> Inspection:
    graph = graph_files.read_graph(path)
    model = graph.model
    facts: dict[str, Fact] = {"sha256": graph.sha256, "opset": opset_of(model), "ir_version": model.ir_version}
    weights = {tensor.name for tensor in model.graph.initializer}
    facts |= {f"input {value.name}": describe_value(value) for value in model.graph.input if value.name not in weights}
    facts |= {f"output {value.name}": describe_value(value) for value in model.graph.output}
    operators = sorted({node.op_type for node in model.graph.node})
    facts |= _deployment_facts(path, graph)
    facts["operators"] = ", ".join(f"{sum(n.op_type == op for n in model.graph.node)} {op}" for op in operators)
    if (bits := weight_bits(model)) is not None:
        facts["INT8 weights"] = f"{bits} bits"
    spec = graph.spec()
    return Inspection(
        target=str(path),
        kind="onnx",
        facts=facts,
        layers=graph_layers(graph.model),
        lrn=_graph_lrn(graph),
        preprocessing=None if spec is None or spec.members else msgspec.to_builtins(spec.preprocessing),
        provenance={} if spec is None else dict(spec.provenance),
        members={} if spec is None else _members(spec),
    )


def _deployment_facts(path: Path, graph: graph_files.Graph) -> dict[str, Fact]:
    """Of a deployment graph: what it is, what it was made from, and in its model folder whether that has changed."""
    if graph.num_views is None:
        return {}
    precision, source = graph.metadata.get(PRECISION_KEY, "fp32"), graph.metadata.get(SOURCE_NAME_KEY)
    facts: dict[str, Fact] = {
        "deployment graph": f"{precision}, {_views(graph.num_views)}",
        "made from": f"{source} {graph.metadata.get(SOURCE_KEY, '')[:12]}",
    }
    folder = ModelFolder(path.parent)
    places = {folder.onnx_path(*each): each for each in itertools.product(get_args(Precision), get_args(NumViews))}
    named = places.get(path) if folder.spec_path.is_file() else None
    if named is not None and named != (precision, graph.num_views):
        facts["up to date"] = f"no: {path.name} is the name of the {named[0]} graph with {_views(named[1])}"
    elif named is not None:
        try:
            check_fresh(graph, folder, precision, folder.spec())
            facts["up to date"] = "yes"
        except ModelError as exc:
            facts["up to date"] = f"no: {exc.message}"
    return facts


def _views(num_views: int) -> str:
    return f"{num_views} view{'' if num_views == 1 else 's'}"


def _inspect_safetensors(path: Path) -> Inspection:
    try:
        check_regular(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            facts = {name: (tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices.items()}
    except (OSError, safetensors.SafetensorError) as exc:
        raise ModelError(f"{path} cannot be read as safetensors: {exc}") from exc
    layers = [
        LayerRow(name=name, kind="tensor", output_shape=shape, parameters=math.prod(shape), detail=dtype)
        for name, (shape, dtype) in sorted(facts.items())
    ]
    return Inspection(
        target=str(path),
        kind="safetensors",
        facts={"sha256": sha256_file(path), "tensors": len(layers)},
        layers=tuple(layers),
        provenance=dict(metadata),
    )


def _inspect_engine(path: Path) -> Inspection:
    """The sidecar, and the layers if TensorRT can open the engine and this installation trusts it."""
    record = read_record(path)
    least, best, most = record.profile
    facts: dict[str, Fact] = {
        "key": record.key,
        "precision": record.precision,
        "views": record.num_views,
        "images in a batch": f"{least} to {most}, best {best}",
        "built for": ", ".join((record.gpu, *map(sm, record.compute_capabilities))),
        NAMES[record.backend]: record.version,
        **({"CUDA": record.cuda} if record.cuda else {}),
        "bytes": record.engine_bytes,
        "sha256": record.engine_sha256,
    }
    layers: tuple[LayerRow, ...] = ()
    try:
        load_engine(path)
        facts["trusted"] = "yes"
    except ModelError as exc:
        facts["trusted"] = f"no: {exc.message}"
    else:
        try:
            from alexdeploy.engines.trt.engine import inspect_engine

            device = _device_for(record.compute_capabilities, survey_gpus().devices)
            layers = engine_layers(inspect_engine(path, device))
        # UsageError: TensorRT is not installed.
        except (DeviceError, ModelError, UsageError) as exc:
            facts["layers"] = f"not seen: {exc.message}"
    return Inspection(
        target=str(path),
        kind="engine",
        facts=facts,
        layers=layers,
        provenance={
            "graph_sha256": record.graph_sha256,
            "weights_sha256": record.weights_sha256,
            "contract_sha256": record.contract_sha256,
            "built_at": record.built_at,
            "build_seconds": record.build_seconds,
            "alexdeploy": record.alexdeploy,
            **record.builder,
        },
    )


def _device_for(capabilities: Sequence[tuple[int, int]], gpus: Sequence[Device]) -> str:
    """The first GPU of these compute capabilities, in CUDA's order. Raises DeviceError if there are only others."""
    fitting = [gpu for gpu in gpus if gpu.compute_capability in capabilities]
    if gpus and not fitting:
        known = " or ".join(f"{major}.{minor}" for major, minor in capabilities)
        raise DeviceError(f"no GPU here has compute capability {known}")
    return f"cuda:{cuda_ordinal(fitting[0].uuid)}" if fitting else "cuda:0"


def _graph_lrn(graph: graph_files.Graph) -> dict[str, Fact] | None:
    for node in graph.model.graph.node:
        if node.op_type == "LRN":
            values = {attribute.name: attribute.i or round(attribute.f, 9) for attribute in node.attribute}
            return {
                "size": values.get("size"),
                "alpha": values.get("alpha", 1e-4),
                "beta": values.get("beta", 0.75),
                "k": values.get("bias", 1.0),
            }
    return None


def _architecture_facts(architecture: Architecture) -> dict[str, Fact]:
    pooling = architecture.pooling
    return {
        "input": f"3x{architecture.input}x{architecture.input}",
        "towers": architecture.towers,
        "order": architecture.order,
        "activation": architecture.activation,
        "width": architecture.width,
        "dropout": architecture.dropout,
        "pooling": "average " * (pooling.kind == "average")
        + f"{pooling.kernel}x{pooling.kernel} stride {pooling.stride}",
    }


def _lrn_facts(lrn: LRN | None) -> dict[str, Fact] | None:
    return None if lrn is None else dataclasses.asdict(lrn)


def _file_facts(path: Path) -> dict[str, Fact]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
