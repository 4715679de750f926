"""Weights by name from .safetensors and PyTorch files, with our names (conv1, fc6) or torchvision's (features.0)."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load

from alexdeploy.core.errors import ModelError, first_line
from alexdeploy.core.packages import missing_package
from alexdeploy.network.layers import Layer
from alexdeploy.network.weights import Weights, check_weights, expected_shapes

StateDict = Mapping[str, NDArray[np.generic]]
_Tensor = TypeVar("_Tensor")

_MAX_DEPTH = 8
_MAX_DICTS = 10_000
"""Most dictionaries of a checkpoint that are searched: an optimizer's state has one per parameter."""

TORCHSCRIPT_HINT = (
    "Export it to ONNX: "
    "torch.onnx.export(torch.jit.load(FILE), torch.zeros(1, 3, 224, 224), 'model.onnx', dynamo=False)\n"
    "or save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
)

_TORCHVISION = (
    *(f"features.{index}" for index in (0, 3, 6, 8, 10)),
    *(f"classifier.{index}" for index in (1, 4, 6)),
)
_WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:module\.|_orig_mod\.)+")
_LAYER = re.compile(r"features|classifier|(?:conv|fc)\d+")
"""Beginning of layer names, in torchvision's network and in ours."""

_SEQUENTIAL = re.compile(r"(features|classifier)\.(\d+)\.weight")


def read_safetensors(content: bytes, source: str) -> StateDict:
    """Every tensor of a .safetensors file. Raises ModelError."""
    try:
        return load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as exc:
        raise ModelError(
            f"{source} cannot be read as safetensors: {first_line(exc)}",
            hint="It may be truncated, or have a type that NumPy lacks (bfloat16): save it again as float32.",
        ) from exc


def read_torch(content: bytes, source: str) -> StateDict:
    """The tensors of a state dict written by torch.save, alone or anywhere in a checkpoint, without running its code.

    Raises UsageError without PyTorch, ModelError for a file without weights, or with those of several networks.
    """
    try:
        import torch
    except ImportError as exc:
        raise missing_package("torch", f"reading {source}", "train") from exc
    _refuse_inflated(content, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # torch.load raises the exceptions of its readers: UnpicklingError, RuntimeError, EOFError, KeyError ...
    except Exception as exc:
        raise _refused(source, exc) from exc
    found = _choose(_state_dicts(found, torch.Tensor), found, source)
    # NumPy has no bfloat16; float32 represents its values, and those of float16, exactly.
    small = (torch.bfloat16, torch.float16)
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, value in found.items():
        if value.numel() * value.element_size() > len(content):
            raise ModelError(f"{source}: {name} is a tensor of {list(value.shape)}, more than the file can hold")
        try:
            arrays[name] = (value.float() if value.dtype in small else value).detach().numpy()
        # Sparse, quantized, without data ("meta"), or a type that NumPy lacks: torch raises either, by version.
        except (TypeError, RuntimeError) as exc:
            raise ModelError(
                f"{source}: {name} is a tensor of {value.dtype}, {value.layout}, on {value.device}; "
                "expected dense numbers of a NumPy type",
                hint="Save the weights as float32: torch.save(model.float().state_dict(), FILE)",
            ) from exc
    return arrays


def _state_dicts(checkpoint: object, tensor: type) -> dict[str, Mapping[str, Any]]:
    """The dictionaries in `checkpoint` that contain only tensors by name, by their paths: ['ema']['model'].

    An optimizer's state is not among them: it also contains other values, or numbers its parameters.
    """
    found: dict[str, Mapping[str, Any]] = {}
    seen: set[int] = set()
    waiting = deque([("", checkpoint, 0)])
    while waiting and len(seen) < _MAX_DICTS:
        place, value, depth = waiting.popleft()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        if all(isinstance(name, str) and isinstance(each, tensor) for name, each in value.items()):
            found[place] = value
        elif depth < _MAX_DEPTH:
            waiting.extend(
                (f"{place}[{key!r}]", each, depth + 1) for key, each in value.items() if isinstance(each, Mapping)
            )
    return found


def _choose(candidates: Mapping[str, Mapping[str, Any]], checkpoint: object, source: str) -> Mapping[str, Any]:
    """The state dict with the layer names of an AlexNet; if there is none, one whose names an error can show."""
    fitting = {place: state for place, state in candidates.items() if _layer_names(plain_names(state))}
    if len(fitting) > 1:
        raise ModelError(
            f"{source} contains the weights of {len(fitting)} networks: {', '.join(fitting)}",
            hint="Save the one you want: torch.save(torch.load(FILE, map_location='cpu', weights_only=True)"
            f"{list(fitting)[-1]}, 'weights.pth')",
        )
    if not candidates:
        raise ModelError(
            f"{source} holds {type(checkpoint).__name__}, expected a state dict: tensors by name",
            hint="Save one: torch.save(model.state_dict(), FILE)",
        )
    return max((fitting or candidates).values(), key=len)


def _refuse_inflated(content: bytes, source: str) -> None:
    """Raise ModelError for an archive that unpacks to more than its size: torch.save stores tensors uncompressed."""
    # torch.load recognizes an archive by the same four bytes.
    if not content.startswith(b"PK\x03\x04"):
        return
    try:
        members = zipfile.ZipFile(io.BytesIO(content)).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
        raise _refused(source, exc) from exc
    names = [member.filename for member in members]
    if any("/code/" in name for name in names) and any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(
            f"{source} is a TorchScript archive, which is not supported; convert it to ONNX, or save its weights",
            hint=TORCHSCRIPT_HINT,
        )
    packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > len(content):
        raise ModelError(
            f"{source} is a compressed archive, expected one as torch.save writes it",
            hint="Save the weights again: torch.save(model.state_dict(), FILE)",
        )


def _refused(source: str, exc: Exception) -> ModelError:
    # torch's message is a page about its own options; one line of it names the object found in the file.
    if name := re.search(r"GLOBAL ([\w.]+)", str(exc)):
        return ModelError(
            f"{source} is refused: loading it would call {name[1]}, which weights do not need",
            hint="If you trust it, save only the weights: torch.save(model.state_dict(), FILE)",
        )
    return ModelError(
        f"{source} cannot be read as PyTorch weights: it is damaged or truncated, or not a PyTorch file",
        hint="Get the file again, or save one: torch.save(model.state_dict(), FILE)",
    )


def has_torchvision_names(tensors: StateDict) -> bool:
    """Whether these are the layers of torchvision's alexnet: its names identify the settings missing from the file."""
    return {f"{name}.{kind}" for name in _TORCHVISION for kind in ("weight", "bias")} == set(plain_names(tensors))


def plain_names(tensors: Mapping[str, _Tensor]) -> Mapping[str, _Tensor]:
    """Remove the prefixes that wrappers add to layer names.

    These are "module." of nn.DataParallel and DDP and "_orig_mod." of torch.compile, wherever a part was wrapped
    (PyTorch's ImageNet example wraps only an AlexNet's `features`: features.module.0.weight), and any other prefix that
    all names share: "model." of a LightningModule, "net.", "backbone.".
    """
    plain = {_WRAPPED.sub("", name): value for name, value in tensors.items()}
    inner = plain
    while len(beginnings := {name.partition(".")[0] for name in inner}) == 1:
        beginning = beginnings.pop()
        if _LAYER.fullmatch(beginning) or not all("." in name for name in inner):
            return plain
        inner = {name[len(beginning) + 1 :]: value for name, value in inner.items()}
    return inner if _layer_names(inner) else plain


def count_classes(tensors: StateDict, source: str) -> int:
    """The number of rows of the last layer. Raises ModelError for weights without the names of an AlexNet."""
    names = _layer_names(tensors)
    shapes = [tensors[f"{name}.weight"].shape for name in names]
    if not names or len(shapes[-1]) != 2:
        found = ", ".join(list(tensors)[:4]) or "nothing"
        raise ModelError(
            f"{source} holds {found}{' ...' if len(tensors) > 4 else ''}; "
            "expected conv1.weight ... as alexdeploy names them, or features.0.weight ... as torchvision does"
        )
    return int(shapes[-1][0])


def take_weights(tensors: StateDict, plan: tuple[Layer, ...], source: str) -> Weights:
    """The tensors under our names, float32. Raises ModelError naming the first mismatch by its name in the file."""
    found = _layer_names(tensors)
    expected = [layer.name for layer in plan if layer.weight_shape is not None]
    is_ours = not found[0].startswith("features")
    if len(found) != len(expected) or (is_ours and found != expected):
        raise ModelError(
            f"{source} has the weights of {', '.join(found)}; the architecture expects those of {', '.join(expected)}"
        )
    names = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in zip(expected, found, strict=True)
        for kind in ("weight", "bias")
    }
    weights: dict[str, NDArray[np.float32]] = {}
    for ours, shape in expected_shapes(plan).items():
        theirs = names[ours]
        value = tensors.get(theirs)
        if value is None:
            raise ModelError(f"{source} has no {theirs}; the architecture expects it with shape {list(shape)}")
        if value.shape != shape:
            as_ours = "" if theirs == ours else f" ({ours})"
            raise ModelError(
                f"{source}: {theirs}{as_ours} has shape {list(value.shape)}, the architecture expects {list(shape)}"
            )
        if value.dtype.kind != "f":
            raise ModelError(f"{source}: {theirs} is {value.dtype}, expected float32")
        weights[ours] = np.ascontiguousarray(value, np.float32)
    extra = sorted(set(tensors) - set(names.values()))
    if extra:
        raise ModelError(f"{source} contains {extra[0]}, which the architecture does not have")
    check_weights(weights, plan, source)
    return weights


def _layer_names(tensors: Iterable[str]) -> list[str]:
    """The file's names of the layers with weights, in network order."""
    sequential = [match for name in tensors if (match := _SEQUENTIAL.fullmatch(name))]
    if sequential:
        by_place = sorted(sequential, key=lambda match: (match[1] == "classifier", int(match[2])))
        return [f"{match[1]}.{match[2]}" for match in by_place]
    ours = [match for name in tensors if (match := re.fullmatch(r"(conv|fc)(\d+)\.weight", name))]
    return [f"{match[1]}{match[2]}" for match in sorted(ours, key=lambda match: (match[1], int(match[2])))]
