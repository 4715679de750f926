"""TensorRT engine files: what each was built from and for, and whether it is trusted. Does not import TensorRT.

An engine is code that runs on the GPU and, while it is opened, in this process. `X.engine` is a plain plan that trtexec
can also load. Its sidecar `X.json` has the key, the hash of the plan, and a keyed hash over both, made with a secret of
this installation. A file that this installation did not sign, or that has changed since, is refused before TensorRT
reads any of it.
"""

from __future__ import annotations

import dataclasses
import hmac
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from alexdeploy.core.arguments import check_fields
from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.files import atomic_write, output_error, sha256_bytes
from alexdeploy.core.model_folder import VIEW_WORDS, ModelFolder
from alexdeploy.core.reading import MAX_DATA_BYTES, MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import EngineBackend, NumViews
from alexdeploy.engines.trt.rebuild import VERSION_WORDS, rebuild_hint
from alexdeploy.engines.trt.signing import is_own, name_of, own_secret, read_secret, signature_of

FORMAT = 2
"""Format version of the sidecar. Increment it when the meaning of a field changes."""

KEY_DIGITS = 12
"""Digits of an engine's key in its file name."""

DEFAULT_MAX_BATCH = 32
"""Images: with ten views 320 crops, which fill a large GPU and fit on a small one."""

MOST_IMAGES = 2**31 - 1
"""The largest dimension of a tensor in every version of TensorRT: int32."""

MOST_WORKSPACE_BYTES = 2**50
"""More than any GPU has, and within the size_t of the builder."""

NAMES: dict[EngineBackend, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""The libraries of engine files, in words."""

RTX_CAPABILITIES = ((8, 6), (8, 9), (12, 0))
"""RTX 30, 40 and 50. NVIDIA advises an engine of its own for RTX 20, 7.5 (TensorRT-RTX's support matrix)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKey:
    """Everything that an engine depends on. `graph_sha256` is of the ONNX file, `contract_sha256` of the preprocessing.

    `weights_sha256` identifies the network: the hash of the safetensors, or of `model.onnx` for an imported model.
    `version` is that of the backend's library; `profile` the minimum, optimal and maximum number of images in a batch;
    `builder` all other options of the builder. TensorRT builds for one compute capability and the CUDA version of the
    driver; TensorRT-RTX for one or more, and for any driver (`cuda` is empty).
    """

    graph_sha256: str
    weights_sha256: str
    contract_sha256: str
    precision: Precision
    num_views: NumViews
    profile: tuple[int, int, int]
    backend: EngineBackend = "tensorrt"
    version: str
    compute_capabilities: tuple[tuple[int, int], ...]
    cuda: str
    builder: dict[str, str | int]

    @property
    def sha256(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(EngineKey)}
        return sha256_bytes(msgspec.json.encode(fields, order="sorted"))


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRecord(EngineKey):
    """The sidecar: the key and the result. `signed_by` identifies the secret of `signature`."""

    format: int = FORMAT
    key: str
    gpu: str
    engine_sha256: str
    engine_bytes: int
    built_at: str
    build_seconds: float
    alexdeploy: str
    signed_by: str = ""
    signature: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """The part of a sidecar that is read first: another format version may have other fields."""

    format: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What to build, and for which GPU. `max_batch` counts images; the engine is optimized for it.

    TensorRT builds for the GPU `device`, TensorRT-RTX for the cards in `targets`: compute capabilities such as "sm86",
    or "rtx", the default, which is RTX 30, 40 and 50.
    `workspace_bytes` None lets the builder use all of the GPU's memory; `tactic_sources` None, all tactic sources.
    """

    precision: Precision = "fp32"
    num_views: NumViews = 1
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=MOST_IMAGES)] = DEFAULT_MAX_BATCH
    workspace_bytes: Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKSPACE_BYTES)] | None = None
    device: str = "cuda:0"
    tactic_sources: tuple[str, ...] | None = None
    backend: EngineBackend = "tensorrt"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.targets is not None and self.backend == "tensorrt":
            raise UsageError(
                "--for needs --backend tensorrt-rtx: TensorRT builds for the GPU that it runs on",
                hint="Name that GPU with --devices.",
            )

    @property
    def profile(self) -> tuple[int, int, int]:
        """Minimum, optimal and maximum batch."""
        return 1, self.max_batch, self.max_batch


def engine_path(folder: ModelFolder, key: EngineKey, gpu: str) -> Path:
    """The path of the engine of a key: engines/<gpu>-sm90-trt10.16-fp16-tencrop-<key>.engine."""
    capabilities = (f"sm{major}{minor}" for major, minor in key.compute_capabilities)
    version = VERSION_WORDS[key.backend] + ".".join(key.version.split(".")[:2])
    words = (slug(gpu), *capabilities, version, key.precision, VIEW_WORDS[key.num_views])
    return folder.engines / f"{'-'.join(words)}-{key.sha256[:KEY_DIGITS]}.engine"


def slug(gpu: str) -> str:
    """A GPU's name as part of a file name: "NVIDIA H100 80GB HBM3" -> "h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-") or "gpu"


def sm(capability: tuple[int, int]) -> str:
    """A compute capability in NVIDIA's words: sm_90."""
    return f"sm_{capability[0]}{capability[1]}"


def sidecar_path(path: Path) -> Path:
    return path.with_suffix(".json")


def kernel_cache_path(gpu: str, engine_sha256: str) -> Path | None:
    """The kernels that TensorRT-RTX compiled of an engine for a kind of GPU; None if other users could write there."""
    return _own_path("tensorrt-rtx", f"{slug(gpu)}-{engine_sha256[:16]}.kernels")


def timing_cache_path(gpu: str, compute_capability: tuple[int, int], version: str, cuda: str) -> Path | None:
    """The timing cache, which speeds up later builds; None if other users could write to its folder.

    TensorRT reads it in this process, and it is not signed.
    """
    major, minor = compute_capability
    return _own_path("tensorrt", f"{slug(gpu)}-sm{major}{minor}-trt{version}-cuda{cuda}.timing")


def _own_path(kind: str, name: str) -> Path | None:
    folder = cache_folder(kind)
    if folder is None:
        return None
    path = folder / name
    return path if is_own(folder) and (is_own(path) or not path.exists()) else None


def check_can_write(path: Path) -> None:
    """Raise the OutputError or ModelError of `write_engine` before a build that takes minutes."""
    own_secret()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise output_error(path, exc) from exc


def write_engine(path: Path, plan: bytes, record: EngineRecord) -> EngineRecord:
    """Write plan and sidecar, signed by this installation. Raises OutputError.

    A process killed in between leaves a plan with no sidecar or one of another plan, which is refused.
    """
    filled = dataclasses.replace(record, engine_sha256=sha256_bytes(plan), engine_bytes=len(plan))
    signed = _signed(filled)
    with atomic_write(path) as file:
        file.write(plan)
    _write_record(path, signed)
    return signed


def read_record(path: Path) -> EngineRecord:
    """The sidecar of an engine, not yet trusted. Raises ModelError if it is missing or damaged."""
    sidecar = sidecar_path(path)
    try:
        content = read_regular(sidecar, MAX_TEXT_BYTES)
    except OSError as exc:
        raise ModelError(
            f"{path} has no readable {sidecar.name}, which describes what it was built from: {exc.strerror}",
            hint=f"Copy the .json that belongs to it.\nElse {rebuild_hint(path)}",
        ) from exc
    try:
        number = decode_json(content, _Format).format
        if number not in (None, FORMAT):
            raise ModelError(f"{sidecar} has format {number}, this version reads {FORMAT}", hint=rebuild_hint(path))
        return decode_json(content, EngineRecord)
    except msgspec.DecodeError as exc:
        raise ModelError(f"{sidecar} is damaged: {exc}", hint=rebuild_hint(path)) from exc


def load_engine(path: Path) -> tuple[EngineRecord, bytes]:
    """The sidecar and the plan of an engine that this installation signed and that is unchanged since.

    Returns the bytes that were checked; the file is not read twice. Writes nothing. Raises ModelError otherwise.
    """
    record = read_record(path)
    plan = _read_plan(path, record)
    secret = read_secret()
    if secret is None or record.signed_by != name_of(secret):
        raise ModelError(
            f"{path} was built by another installation; an engine is code that runs here",
            hint=f"If you trust where it comes from: alexdeploy build --trust-engine {shlex.quote(str(path))}\n"
            f"Else {rebuild_hint(path, record)}",
        )
    if not hmac.compare_digest(_signature(record, secret), record.signature):
        raise ModelError(f"{sidecar_path(path)} was changed since the engine was built", hint=rebuild_hint(path))
    return record, plan


def trust_engine(path: Path) -> EngineRecord:
    """Sign another installation's engine with the secret of this one. Raises ModelError if it is not intact."""
    record = read_record(path)
    _read_plan(path, record)
    if record.key != record.sha256:
        raise ModelError(f"{sidecar_path(path)} was changed: its key is not of its fields", hint=rebuild_hint(path))
    secret = own_secret()
    if record.signed_by == name_of(secret) and not hmac.compare_digest(_signature(record, secret), record.signature):
        raise ModelError(f"{sidecar_path(path)} was changed since the engine was built here", hint=rebuild_hint(path))
    signed = _signed(record)
    _write_record(path, signed)
    return signed


def find_engines(folder: ModelFolder) -> Iterator[tuple[Path, EngineRecord]]:
    """The engines of a model with a readable sidecar, sorted by name; none is trusted yet."""
    for path in sorted(folder.engines.glob("*.engine")):
        try:
            yield path, read_record(path)
        except ModelError:
            continue


def key_differences(record: EngineRecord, key: EngineKey) -> tuple[str, ...]:
    """The fields of the key in which an existing engine differs from the one to build, in words."""
    told = []
    for name in (field.name for field in dataclasses.fields(EngineKey)):
        found, wanted = getattr(record, name), getattr(key, name)
        if isinstance(found, dict):
            told += [
                f"{part} {found.get(part, 'unknown')} instead of {wanted.get(part, 'unknown')}"
                for part in {**wanted, **found}
                if found.get(part) != wanted.get(part)
            ]
        elif found != wanted:
            told.append(f"{_in_words(name)} {_value(name, found)} instead of {_value(name, wanted)}")
    return tuple(told)


def _read_plan(path: Path, record: EngineRecord) -> bytes:
    try:
        plan = read_regular(path, MAX_DATA_BYTES)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}", hint=rebuild_hint(path, record)) from exc
    if len(plan) != record.engine_bytes:
        raise ModelError(
            f"{path} has {len(plan):,} bytes, its sidecar records {record.engine_bytes:,}: truncated or replaced",
            hint=rebuild_hint(path, record),
        )
    found = sha256_bytes(plan)
    if found != record.engine_sha256:
        raise ModelError(
            f"SHA-256 mismatch: {path} {found[:12]}, recorded {record.engine_sha256[:12]}: it was changed or replaced",
            hint=rebuild_hint(path, record),
        )
    return plan


def _write_record(path: Path, record: EngineRecord) -> None:
    with atomic_write(sidecar_path(path)) as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def _signed(record: EngineRecord) -> EngineRecord:
    secret = own_secret()
    named = dataclasses.replace(record, signed_by=name_of(secret))
    return dataclasses.replace(named, signature=_signature(named, secret))


def _signature(record: EngineRecord, secret: bytes) -> str:
    """The signature of all other fields of the sidecar, including the hash of the plan."""
    return signature_of(msgspec.json.encode(dataclasses.replace(record, signature=""), order="sorted"), secret)


def _in_words(name: str) -> str:
    names = {"profile": "images", "num_views": "views", "cuda": "CUDA"}
    return names.get(name) or name.removesuffix("_sha256").replace("_", " ")


def _value(name: str, value: Any) -> str:
    if name == "compute_capabilities":
        return ", ".join(map(sm, value))
    if name == "profile":
        least, best, most = value
        return f"{least} to {most}, best {best}"
    return str(value)[:12] if name.endswith("_sha256") else str(value)
