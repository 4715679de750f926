"""`--set section.key=value` on a nested table, and unknown keys in one, both checked against its dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from alexdeploy.core.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def apply_override(data: dict[str, Any], override: str, cls: type, hidden: frozenset[str]) -> None:
    """Set the value of `key=value` at its dotted key; `hidden` are top-level keys that cannot be set.

    Raises RecipeError, with the nearest key, for a key that `cls` and its nested dataclasses do not have.
    """
    key, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(
            f"--set {override!r} has no '='",
            hint="Write it as --set section.key=value, e.g. --set training.epochs=10",
        )
    parts = key.strip().split(".")
    # Check the types first: the error for a wrong key must name the key, not its first missing parent.
    _check_path(parts, cls, hidden)
    target = data
    for part in parts[:-1]:
        child = target.setdefault(part, {})
        if not isinstance(child, dict):
            child = target[part] = {}
        target = child
    target[parts[-1]] = _parse_value(text.strip())


def check_keys(data: Mapping[str, Any], cls: type, hidden: frozenset[str], where: str = "") -> None:
    """Raise RecipeError for the first key that `cls` and its nested dataclasses do not have."""
    fields = _fields(cls)
    for key, value in data.items():
        path = f"{where}{key}"
        if key not in fields:
            raise _unknown_key(path, key, fields, where.rstrip("."), hidden)
        child = fields[key]
        if child is not None and child is not dict:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    check_keys(item, child, hidden, f"{path}.")


def allowed_values(cls: type, path: str) -> tuple[object, ...]:
    """The values of the Literal at a dotted path such as `$.training.data[...].kind`, none if there is no Literal."""
    hint: Any = cls
    for part in path.removeprefix("$.").split("."):
        inner = _inner_class(hint)
        hints = typing.get_type_hints(inner) if dataclasses.is_dataclass(inner) else {}
        hint = hints.get(part.split("[")[0])
    return _literals(hint)


def suggest(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message: the nearest known word, if any."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_path(parts: list[str], cls: type, hidden: frozenset[str]) -> None:
    inner: type | None = cls
    for depth, part in enumerate(parts):
        if inner is None:
            break
        fields = _fields(inner)
        if part not in fields or part in hidden:
            raise _unknown_key(".".join(parts), part, fields, ".".join(parts[:depth]), hidden)
        inner = fields[part]
        if inner is dict:
            return
    else:
        return
    raise RecipeError(f"{'.'.join(parts[:depth])} is a value and has no key {part!r}")


def _unknown_key(
    path: str, key: str, fields: Mapping[str, object], section: str, hidden: frozenset[str]
) -> RecipeError:
    known = sorted(set(fields) - hidden)
    return RecipeError(
        f"unknown recipe key {path!r}{suggest(key, known)}",
        hint=f"Keys of {section or 'a recipe'}: {', '.join(known)}.",
    )


def _fields(cls: type) -> dict[str, type | None]:
    """Field names of a dataclass, each with the dataclass (or dict) in its type, None for a plain value."""
    hints = typing.get_type_hints(cls)
    return {f.name: _inner_class(hints[f.name]) for f in dataclasses.fields(cls)}


def _inner_class(hint: Any) -> type | None:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    origin = typing.get_origin(hint)
    if origin is dict:
        return dict
    if origin in (typing.Union, types.UnionType, tuple):
        for argument in typing.get_args(hint):
            found = _inner_class(argument)
            if found is not None:
                return found
    return None


def _literals(hint: Any) -> tuple[object, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(value for argument in typing.get_args(hint) for value in _literals(argument))
