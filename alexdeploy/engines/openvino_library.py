"""OpenVINO without its model converter, and so without the converter's telemetry."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

# Importing openvino imports its converter for models of other frameworks, which doubles the import time and sends usage
# data to Google Analytics, from a thread that the program waits for at exit. openvino works without the converter.
_CONVERTER = "openvino.tools.ovc"
_is_first = "openvino" not in sys.modules
if _is_first:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]
try:
    import openvino as ov
finally:
    if _is_first:
        del sys.modules[_CONVERTER]


def _convert_model(*args: Any, **options: Any) -> Any:
    from openvino.tools.ovc import convert_model

    return convert_model(*args, **options)


if not hasattr(ov, "convert_model"):
    # Other code in this process may need it.
    ov.convert_model = _convert_model

# The first call fills a table and may release the GIL meanwhile. Two threads with simultaneous first inferences would
# deadlock.
ov.Type.u8.to_dtype()

_LACKS_BF16 = frozenset({"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"})
_LACKING_ISAS = {"BF16": _LACKS_BF16, "FP16": _LACKS_BF16 | {"avx512_core_bf16"}}
"""Values of ONEDNN_MAX_CPU_ISA that exclude the instructions of a type. `avx2_vnni_2` includes both, but few processors
have it: on a processor with only AVX-512, it means `avx2_vnni`."""


def shared_core() -> ov.Core:
    """The Core of this process, which is never closed.

    The CPU plugin of each Core gives the thread that loads it another stack for signals, and takes it back with the
    Core. If two Cores are closed in the order in which they were opened, the thread is left with the freed stack of the
    first, and the next signal, such as Ctrl-C, is a segmentation fault (OpenVINO 2026.4).
    """
    return _core_of(os.getpid())


@functools.cache
def _core_of(process: int) -> ov.Core:
    # One for each process: threads do not survive a fork.
    return ov.Core()


def max_cpu_isa() -> str:
    """The user's limit on oneDNN's instruction set, in lower case; empty without a limit."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").lower()


def cpu_capabilities(core: ov.Core) -> list[str]:
    """OpenVINO's OPTIMIZATION_CAPABILITIES of the CPU, without what ONEDNN_MAX_CPU_ISA rules out.

    OpenVINO 2026.4 reads the capabilities from the processor, but its kernels are oneDNN's, which obey the variable:
    below AVX-512 there is no bfloat16 LRN, and below AVX512_CORE_BF16 bfloat16 is emulated.
    """
    isa = max_cpu_isa()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [each for each in capabilities if isa not in _LACKING_ISAS.get(each, ())]


@functools.cache
def has_exact_int8() -> bool:
    """Whether the sums of INT8 products in a layer are exact: OpenVINO runs a layer with the largest products.

    x86 processors without VNNI, or with it where ONEDNN_MAX_CPU_ISA rules it out, add two products in 16 bits.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    size, largest = 64, 127
    constants = {
        "scale": np.float32(1),
        "zero": np.int8(0),
        "weights": np.full((size, size), largest, np.int8),
        "scales": np.ones(size, np.float32),
        "zeros": np.zeros(size, np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["dequantized"]),
            helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["factors"], axis=0),
            helper.make_node("Gemm", ["dequantized", "factors"], ["y"], transB=1),
        ],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    core = shared_core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)
    found = compiled({0: np.full((1, size), largest, np.float32)})[0]
    return bool((found == size * largest**2).all())


__all__ = ["cpu_capabilities", "has_exact_int8", "max_cpu_isa", "ov", "shared_core"]
