"""Copies of this package's modules for models in Triton's Python backend, which run without the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2]

_INIT = '"""Modules of alexdeploy, copied beside the model that imports them."""\n'


def model_files(name: str) -> dict[str, bytes]:
    """`model.py`, which is this room's module `name`, and the modules that it needs: path -> content.

    They are found in the import statements, except those for type checkers.
    """
    model = Path(__file__).with_name(f"{name}.py")
    found = {"model.py": model.read_bytes(), "alexdeploy/__init__.py": _INIT.encode()}
    waiting = list(_imports(model))
    while waiting:
        path = waiting.pop()
        copy = f"alexdeploy/{path.relative_to(PACKAGE).as_posix()}"
        if copy in found:
            continue
        found[copy] = path.read_bytes()
        waiting += _imports(path)
        waiting += [init for folder in path.parents if (init := folder / "__init__.py").is_file() and folder != PACKAGE]
    return dict(sorted(found.items()))


def _imports(path: Path) -> Iterator[Path]:
    """The files of the modules of this package that a module imports, anywhere in it."""
    statements: list[ast.AST] = [ast.parse(path.read_bytes())]
    while statements:
        node = statements.pop()
        statements += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "alexdeploy":
            words = node.module.split(".")[1:]
            # A name may be a module of that folder, or defined in that module.
            for tail in ([], *([alias.name] for alias in node.names)):
                file = PACKAGE.joinpath(*words, *tail).with_suffix(".py")
                if file.is_file():
                    yield file
