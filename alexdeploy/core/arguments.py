"""Check Python arguments against their types when they are passed, as the command line checks its options."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from alexdeploy.core.errors import UsageError

Count = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]

_NAMES = {int: "an integer", float: "a finite number", str: "a string", bool: "True or False", type(None): "None"}


def check_fields(options: Any) -> None:
    """Check every field of a frozen dataclass, in its `__post_init__`. Raises UsageError as `check_argument`."""
    for name, kind in _kinds(options.__class__).items():
        object.__setattr__(options, name, check_argument(name, getattr(options, name), kind))


def check_argument(name: str, value: Any, kind: Any) -> Any:
    """Convert `value` to `kind`, a type supported by msgspec; accepts NumPy scalars, paths as strings, lists as tuples.

    A dataclass, or None where it is optional, is returned unchanged. Raises UsageError with the argument, the value
    and the expected type.
    """
    plain = _plain(value)
    try:
        if any(map(dataclasses.is_dataclass, _alternatives(kind))):
            # msgspec would convert a dictionary.
            if not isinstance(value, kind):
                raise msgspec.ValidationError
            return value
        found = msgspec.convert(plain, kind)
        if isinstance(found, float) and not math.isfinite(found):
            raise msgspec.ValidationError
    except msgspec.ValidationError as exc:
        raise UsageError(f"{name} is {plain!r}; expected {_expected(kind)}") from exc
    return found


def check_layer_names(names: Collection[str], layers: Collection[str]) -> None:
    """Raise UsageError for a name that is not in `layers`, the network's layers with weights."""
    for name in names:
        if name not in layers:
            raise UsageError(f"no layer with weights is called {name!r}", hint=f"Layers: {', '.join(layers)}")


@functools.cache
def _kinds(options: type) -> dict[str, Any]:
    return {name: _without_paths(kind) for name, kind in get_type_hints(options, include_extras=True).items()}


def _without_paths(kind: Any) -> Any:
    """A type without os.PathLike, because `_plain` converts paths to strings."""
    return Union[tuple(each for each in _alternatives(kind) if get_origin(each) is not os.PathLike)]  # noqa: UP007


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _expected(kind: Any) -> str:
    """A type in words."""
    words = [word for each in _alternatives(kind) for word in _words(each)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(kind: Any) -> list[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return [_expected(arguments[0]) + "".join(map(_bounds, arguments[1:]))]
    if origin is Literal:
        return [str(each) for each in arguments]
    if origin is tuple:
        return [f"a list, each {_expected(arguments[0])}"]
    return [_NAMES.get(kind) or f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"]


def _bounds(meta: msgspec.Meta) -> str:
    lower = f" above {meta.gt:g}" if meta.gt is not None else "" if meta.ge is None else f" from {meta.ge:g}"
    if meta.le is not None:
        return f"{lower} to {meta.le}"
    return f"{lower} on" if meta.ge is not None else lower
