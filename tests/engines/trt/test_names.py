"""Every name of TensorRT's API that the code uses is in each version, or stands where only other versions come.

`tests/data/tensorrt-api.json` lists classes and members as read from the bindings of TensorRT 8.6.0, 10.16.1 and
11.4.0, and of TensorRT-RTX 1.7.1. The code annotates what is an object of theirs (`engine: trt.ICudaEngine`), so that
its methods can be found here, and takes classes from `trt` in annotations and from `api` elsewhere.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import alexdeploy.engines

API: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parents[2] / "data" / "tensorrt-api.json").read_text()
)
ENGINES = Path(alexdeploy.engines.__file__).parent
MODULES = sorted(path for path in (ENGINES / "trt").glob("*.py") if "import tensorrt" in path.read_text())

OLD, RTX = {"8.6.0"}, {"rtx 1.7.1"}
NEW = {"10.16.1", "11.4.0", *RTX}

ELSEWHERE: dict[str, tuple[set[str], str]] = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (OLD, "read_network"),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (NEW, "read_network"),
    "BuilderFlag.FP16": (OLD, "allow_precision"),
    "BuilderFlag.INT8": (OLD, "allow_precision"),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": (OLD, "allow_precision"),
    "ILayer.precision": (OLD, "_pin_float32"),
    "ILayer.set_output_type": (OLD, "_pin_float32"),
    "PreviewFeature.PROFILE_SHARING_0806": (OLD, "_configure"),
    "ComputeCapability": (RTX, "known_capabilities"),
    "IBuilderConfig.num_compute_capabilities": (RTX, "_set_capabilities"),
    "IBuilderConfig.set_compute_capability": (RTX, "_set_capabilities"),
    "IBuilderConfig.progress_monitor": (NEW, "_watch"),
    "ParserError.node_name": (NEW, "_node"),
    "ParserError.node_operator": (NEW, "_node"),
    "IProgressMonitor": (NEW, "_watch"),
    "IProgressMonitor.phase_start": (NEW, "_watch"),
    "IProgressMonitor.step_complete": (NEW, "_watch"),
    "IProgressMonitor.phase_finish": (NEW, "_watch"),
}
"""Name -> the versions of the list in which its code runs, and the function that sees to that."""

OF_RTX = "kernel_cache.py"
"""The module that only TensorRT-RTX comes to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One use of a class, or of a member of one, in a function ("" at the top of a module)."""

    module: str
    line: int
    function: str
    name: str


def _uses() -> list[Use]:
    return [use for path in MODULES for use in _of_module(path)]


def _of_module(path: Path) -> Iterator[Use]:
    tree = ast.parse(path.read_text())
    fields = {
        node.target.attr: kind
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Attribute)
        and (kind := _class_of(node.annotation))
    }
    for function, node, variables in _walk(tree, "", {}):
        for name in _names(node, variables, fields):
            yield Use(module=path.name, line=getattr(node, "lineno", 0), function=function, name=name)


def _walk(node: ast.AST, function: str, variables: dict[str, str]) -> Iterator[tuple[str, ast.AST, dict[str, str]]]:
    """Each node with the outermost function that it is in, and what the variables in sight are annotated as."""
    for child in ast.iter_child_nodes(node):
        inside, seen = function, variables
        if isinstance(child, ast.FunctionDef):
            inside = function or child.name
            seen = {**variables, **_annotated(child)}
        yield inside, child, seen
        yield from _walk(child, inside, seen)


def _annotated(function: ast.FunctionDef) -> dict[str, str]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    found = {each.arg: _class_of(each.annotation) for each in arguments if each.annotation is not None}
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _class_of(node.annotation)
    return {name: kind for name, kind in found.items() if kind}


def _is_library(node: ast.expr) -> bool:
    """Whether it is the module of bindings: `trt`, `api`, `library.api`."""
    return (isinstance(node, ast.Name) and node.id in ("trt", "api")) or (
        isinstance(node, ast.Attribute) and node.attr == "api"
    )


def _class_of(annotation: ast.expr) -> str:
    """The X of `trt.X`, `trt.X | None` or `api.X`."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Attribute) and _is_library(node.value):
            return node.attr
    return ""


def _names(node: ast.AST, variables: dict[str, str], fields: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            kind = _class_of(base)
            methods = (each.name for each in node.body if isinstance(each, ast.FunctionDef))
            # What begins with an underscore, and what is its own, is not called by TensorRT.
            yield from (f"{kind}.{name}" for name in methods if kind and name[0] != "_" and name != "take")
    if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
        return
    owner = node.value
    if _is_library(owner):
        yield node.attr
    elif isinstance(owner, ast.Attribute) and _is_library(owner.value):
        if not owner.attr.startswith("__"):
            yield f"{owner.attr}.{node.attr}"
    elif isinstance(owner, ast.Name) and owner.id in variables:
        yield f"{variables[owner.id]}.{node.attr}"
    elif isinstance(owner, ast.Attribute) and owner.attr in fields:
        yield f"{fields[owner.attr]}.{node.attr}"


def _is_in(name: str, version: str) -> bool:
    kind, _, member = name.partition(".")
    return kind in API[version] and (not member or member in API[version][kind])


def _versions_of(use: Use) -> set[str]:
    return RTX if use.module == OF_RTX else ELSEWHERE.get(use.name, (set(API), ""))[0]


USES = _uses()


def test_the_uses_are_found() -> None:
    names = {use.name for use in USES}
    assert [path.stem for path in MODULES] == ["build", "engine", "kernel_cache", "library", "network", "stream"]
    assert len(names) > 50
    for known in (
        "Builder.build_serialized_network",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.create_execution_context",
        "Runtime.deserialize_cuda_engine",
        "IBuilderConfig.set_timing_cache",
        "IOptimizationProfile.set_shape",
        "OnnxParser.parse",
        "ILogger.log",
        "LayerType.LRN",
        *ELSEWHERE,
    ):
        assert known in names, known


@pytest.mark.parametrize("version", API)
def test_every_name_is_in_the_version_or_its_code_does_not_run_there(version: str) -> None:
    missing = [
        f"{use.module}:{use.line} {use.name}"
        for use in USES
        if version in _versions_of(use) and not _is_in(use.name, version)
    ]
    assert missing == []


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_that_a_version_lacks_is_used_only_where_that_version_does_not_come(name: str) -> None:
    versions, function = ELSEWHERE[name]
    assert {use.function for use in USES if use.name == name} == {function}
    lacking = {version for version in API if not _is_in(name, version)}
    assert lacking, "every version has it: it needs no place here"
    assert not lacking & versions


def test_no_method_of_tensorrt_is_called_on_something_that_is_not_annotated() -> None:
    # Words that other objects have as well.
    common = {"builder", "log", "name", "nbytes", "tactic_sources", "value"}
    members = {member for version in API.values() for kind in version.values() for member in kind} - common
    known = {use.name.partition(".")[2] for use in USES}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in members:
                assert node.attr in known, f"{path.name}:{node.lineno} {node.attr}"


def test_autoinit_is_never_imported() -> None:
    for path in MODULES:
        imported = [
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
        ]
        assert not any("autoinit" in str(name) for name in imported), path.name
