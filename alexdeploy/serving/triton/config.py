"""The `config.pbtxt` of the models in a repository, in protobuf's text format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import NumViews

TritonBackend = Literal["onnxruntime", "tensorrt", "openvino", "python"]

PIXELS = [IMAGE_SIZE, IMAGE_SIZE, 3]

_Fields = dict[str, Any]


class _Word(str):
    """A value of an enumeration, which has no quotes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that the configurations depend on. They are for all versions of a model.

    `plans` are the files of engines by compute capability ("9.0"), for TensorRT only. `gpu_ids` empty: every GPU that
    Triton sees for TensorRT, else the CPU.
    """

    name: str
    backend: TritonBackend
    num_classes: int
    num_views: NumViews
    batch_size: int
    num_instances: int
    gpu_ids: tuple[int, ...]
    max_delay_us: int
    max_queue: int
    jpeg: bool
    plans: tuple[tuple[str, str], ...] = ()

    @property
    def graph(self) -> str:
        return f"{self.name}_graph"

    @property
    def decode(self) -> str:
        return f"{self.name}_decode"


def graph_config(settings: Settings) -> str:
    """Of the deployment graph: pixels in, probabilities out."""
    fields: _Fields = {
        "name": settings.graph,
        **_runtime(settings),
        "max_batch_size": settings.batch_size,
        # Those that are there: a new version comes beside the one that answers.
        "version_policy": {"all": {}},
        "input": [{"name": "images", "data_type": _Word("TYPE_UINT8"), "dims": PIXELS}],
        "output": _outputs(settings),
        "instance_group": [_instances(settings)],
        "dynamic_batching": {
            "max_queue_delay_microseconds": settings.max_delay_us,
            "default_queue_policy": _queue(settings),
        },
        "model_warmup": [_warmup("one image", 1), _warmup("full batch", settings.batch_size)],
    }
    return _text(fields)


def decode_config(settings: Settings) -> str:
    """Of the decoder: image files in, pixels out."""
    fields: _Fields = {
        "name": settings.decode,
        "backend": "python",
        "max_batch_size": settings.batch_size,
        "version_policy": {"all": {}},
        "input": [_files("files")],
        "output": [{"name": "images", "data_type": _Word("TYPE_UINT8"), "dims": PIXELS}],
        "instance_group": [{"kind": _Word("KIND_CPU"), "count": settings.num_instances}],
        # No delay: what waits is decoded together, by as many threads as there are processors.
        "dynamic_batching": {"default_queue_policy": _queue(settings)},
    }
    return _text(fields)


def ensemble_config(settings: Settings, version: int) -> str:
    """Of the model that takes image files: the decoder and then the graph, both of `version`."""
    outputs = _outputs(settings)
    fields: _Fields = {
        "name": settings.name,
        "platform": "ensemble",
        "max_batch_size": settings.batch_size,
        "version_policy": {"specific": {"versions": [version]}},
        "input": [_files("images")],
        "output": outputs,
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": settings.decode,
                    "model_version": version,
                    "input_map": {"key": "files", "value": "images"},
                    "output_map": {"key": "images", "value": "pixels"},
                },
                {
                    "model_name": settings.graph,
                    "model_version": version,
                    "input_map": {"key": "images", "value": "pixels"},
                    "output_map": [{"key": each["name"], "value": each["name"]} for each in outputs],
                },
            ]
        },
    }
    return _text(fields)


def _files(name: str) -> _Fields:
    # Triton has no input of shape [N]: each file is a row of one element.
    return {"name": name, "data_type": _Word("TYPE_STRING"), "dims": [1]}


def _outputs(settings: Settings) -> list[_Fields]:
    return [
        {
            "name": "probabilities",
            "data_type": _Word("TYPE_FP32"),
            "dims": [settings.num_classes],
            "label_filename": "labels.txt",
        },
        {"name": "view_classes", "data_type": _Word("TYPE_INT32"), "dims": [settings.num_views]},
    ]


def _runtime(settings: Settings) -> _Fields:
    if settings.backend == "tensorrt":
        names = [{"key": capability, "value": file} for capability, file in settings.plans]
        return {"platform": "tensorrt_plan", "cc_model_filenames": names}
    if settings.backend == "python":
        return {"backend": "python"}
    fields: _Fields = {"backend": settings.backend, "default_model_filename": "model.onnx"}
    if settings.backend == "openvino":
        # Triton opens the graph for max_batch_size images, and refuses fewer unless it may fill up.
        fields["parameters"] = [{"key": "ENABLE_BATCH_PADDING", "value": {"string_value": "YES"}}]
    elif settings.gpu_ids:
        # Full FP32: the default is TF32, which has 10 bits of mantissa.
        cuda = {"name": "cuda", "parameters": {"key": "use_tf32", "value": "0"}}
        fields["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [cuda]}}
    return fields


def _instances(settings: Settings) -> _Fields:
    is_gpu = bool(settings.gpu_ids) or settings.backend == "tensorrt"
    gpus = {"gpus": list(settings.gpu_ids)} if settings.gpu_ids else {}
    return {"kind": _Word("KIND_GPU" if is_gpu else "KIND_CPU"), "count": settings.num_instances, **gpus}


def _queue(settings: Settings) -> _Fields:
    return {
        "timeout_action": _Word("REJECT"),
        # A request may have a timeout of its own.
        "allow_timeout_override": True,
        "max_queue_size": settings.max_queue,
    }


def _warmup(name: str, batch_size: int) -> _Fields:
    value = {"data_type": _Word("TYPE_UINT8"), "dims": PIXELS, "zero_data": True}
    return {"name": name, "batch_size": batch_size, "inputs": {"key": "images", "value": value}}


def _text(fields: Mapping[str, Any], indent: str = "") -> str:
    return "".join(f"{indent}{line}\n" for name, value in fields.items() for line in _lines(name, value))


def _lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for each in value:
            yield from _lines(name, each)
    elif isinstance(value, dict):
        inner = _text(value, "  ").splitlines()
        yield from (f"{name} {{", *inner, "}") if inner else (f"{name} {{ }}",)
    elif isinstance(value, list):
        yield f"{name}: [{', '.join(map(str, value))}]"
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's escapes of ASCII are those of the text format, but for code points, which are written as they are.
    return str(value) if isinstance(value, (int, _Word)) else json.dumps(value, ensure_ascii=False)
