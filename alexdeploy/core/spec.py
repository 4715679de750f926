"""The model spec: architecture, preprocessing, classes and provenance. Frozen; stored as `spec.json`."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from alexdeploy.core.image_size import IMAGE_SIZE as IMAGE_SIZE

CONTRACT_KEY = "alexdeploy.contract_sha256"
"""Metadata key of weights and graphs: `ModelSpec.contract_sha256` of the spec that they were made for."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Placement = Literal["towers", "pipeline"]
PoolingKind = Literal["max", "average"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "sigmoid", "silu", "softplus", "tanh"]


def graph_precision(precision: Precision) -> Precision:
    """The precision of the graph on disk; for bfloat16 it is FP32, because only the arithmetic differs."""
    return "fp32" if precision == "bf16" else precision


_Count = Annotated[int, msgspec.Meta(ge=1)]
_Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LRN:
    """Local response normalization: y = x / (k + alpha / size * sum(x^2))^beta over `size` neighbouring channels.

    `alpha` is always stored as defined by ONNX, PyTorch and Caffe: the sum is divided by `size`. `per_tower`
    keeps the window within each tower's channels, as the 2012 network did on its two GPUs.
    """

    size: Annotated[int, msgspec.Meta(ge=1, le=15)] = 5
    alpha: _Positive = 1e-4
    beta: Annotated[float, msgspec.Meta(ge=0.01)] = 0.75
    k: Annotated[float, msgspec.Meta(ge=1e-5)] = 2.0
    per_tower: bool = False

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"lrn size is {self.size}; it must be odd (TensorRT and ONNX Runtime refuse even windows)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """Pooling without padding, sizes rounded down; `kernel` > `stride` overlaps, as in the paper (3 and 2).

    Every window lies within the map, so "average" is the sum over kernel^2, whatever counts as padding elsewhere. It is
    the subsampling of LeNet-5 without its trained factor and bias.
    """

    kernel: _Count = 3
    stride: _Count = 2
    kind: PoolingKind = "max"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conv:
    """One convolution. With two towers it sees only its own tower's maps unless `crossing`."""

    channels: _Count
    kernel: _Count
    stride: _Count = 1
    padding: Annotated[int, msgspec.Meta(ge=0)] = 0
    crossing: bool = False
    lrn: bool = False
    pool: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Every variant of AlexNet that a recipe can describe."""

    input: _Count = 227
    towers: Literal[1, 2] = 1
    order: Literal["lrn-pool", "pool-lrn"] = "lrn-pool"
    activation: Activation = "relu"
    width: _Positive = 1.0
    dropout: _Fraction = 0.5
    pooling: Pooling = Pooling()
    lrn: LRN | None = None
    convs: tuple[Conv, ...] = ()
    hidden: tuple[_Count, ...] = (4096, 4096)
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [f"conv{i}" for i in range(2, len(self.convs) + 1)]
        for name in self.remove:
            if name not in names:
                raise ValueError(f"remove names {name!r}; expected one of {', '.join(names) or 'nothing'}")
        if self.input > IMAGE_SIZE:
            raise ValueError(f"input is {self.input}; views are cut from {IMAGE_SIZE}x{IMAGE_SIZE} images")

    @property
    def trained_layers(self) -> tuple[str, ...]:
        """Names of the layers that have weights, in order: conv1, ..., fc8."""
        convs = (f"conv{index}" for index in range(1, len(self.convs) + 1))
        first = len(self.convs) + 1
        fcs = (f"fc{index}" for index in range(first, first + len(self.hidden) + 1))
        return (*(name for name in convs if name not in self.remove), *fcs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """From a decoded image to the network's input: (pixel * scale - mean) / std, then a crop.

    Pixels are 0 to 255. `mean` and `std` are per channel in the network's channel order, after scaling.
    `mean_image` is the SHA-256 of the model folder's `mean.npy` (float32 [3, 256, 256], same order and
    scale) and replaces `mean` if set.
    """

    resize: Literal["crop", "warp"] = "crop"
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: _Positive = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)
    mean_image: str | None = None
    crop: Annotated[int, msgspec.Meta(ge=1, le=IMAGE_SIZE)] = 227


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One network of an ensemble. `graphs`: the SHA-256 of the model's file that was copied, by precision."""

    name: str
    preprocessing: Preprocessing
    architecture: Architecture | None = None
    recipe: str | None = None
    provenance: dict[str, str | int | float | None] = field(default_factory=dict)
    graphs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One trained or imported model, or an ensemble. `architecture` is None for an imported graph of an unknown one.

    An ensemble has `members`, whose classes and `resize` are its own. Its `architecture` is None. Of its
    `preprocessing` only `resize` and `mean_image` count: the SHA-256 of a `mean.npy` with the mean images of the
    members that have one, float32 [M, 3, 256, 256].
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: Architecture | None = None
    recipe: str | None = None
    provenance: dict[str, str | int | float | None] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    format_version: Literal[1] = 1

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def networks(self) -> tuple[ModelSpec, ...]:
        """The spec of each member, or the spec itself if it is not an ensemble's."""
        return tuple(
            ModelSpec(
                name=each.name,
                classes=self.classes,
                preprocessing=each.preprocessing,
                architecture=each.architecture,
                recipe=each.recipe,
                provenance=each.provenance,
            )
            for each in self.members
        ) or (self,)

    @property
    def recorded_weights(self) -> str | None:
        """The SHA-256 that `weights.safetensors` had when training or an import wrote this spec; None if unknown."""
        found = self.provenance.get("weights_sha256")
        return found if isinstance(found, str) else None

    @property
    def contract_sha256(self) -> str:
        """Hash of everything except the weights that a derived file depends on; excludes name and provenance."""
        # Convert to plain values and back, so that a mean of 110 and one of 110.0 have the same hash.
        steps = msgspec.convert(msgspec.to_builtins(self.preprocessing), Preprocessing)
        parts = msgspec.to_builtins((self.architecture, steps, self.classes))
        # Earlier versions had only max pooling: their files remain valid.
        if self.architecture is not None and self.architecture.pooling.kind == "max":
            del parts[0]["pooling"]["kind"]
        if self.members:
            parts = (*parts, [each.contract_sha256 for each in self.networks])
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def replace_provenance(self, **facts: str | int | float | None) -> ModelSpec:
        return dataclasses.replace(self, provenance={**self.provenance, **facts})
