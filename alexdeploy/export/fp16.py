"""FP16 as a property of the graph: weights and arithmetic in float16, LRN and the graph's own I/O in float32."""

from __future__ import annotations

import warnings

import onnx

from alexdeploy.core.errors import DeviceError

_FP32_OPS = ("LRN", "Softmax")
"""x * x leaves FP16's range at |x| > 255, and on Caffe-scale inputs conv1 gets there."""


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a float32 network. Casts stand round each LRN; every tensor keeps its name. Needs onnxruntime."""
    try:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as exc:
        raise DeviceError("FP16 conversion needs onnxruntime", cure="pip install 'alexdeploy[cpu]'") from exc
    with warnings.catch_warnings():
        # Weights under FP16's smallest number are rounded up to it; the parity check judges what that costs.
        warnings.simplefilter("ignore")
        converted = convert_float_to_float16(
            _copy(model), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPS]
        )
    # The converter appends its casts at the end, where the format wants every node after those it reads.
    sorted_model = OnnxModel(converted)
    sorted_model.topological_sort()
    onnx.checker.check_model(sorted_model.model, full_check=True)
    return sorted_model.model  # type: ignore[no-any-return]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
