"""TensorRT as far as alexdeploy calls it: a plan is a deployment graph, which ONNX Runtime computes on the CPU."""

from __future__ import annotations

import ctypes
import json
from enum import Enum, auto

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

__version__ = "10.16.1.11"

MOST_IMAGES = 32


class ILogger:
    ERROR, INTERNAL_ERROR, VERBOSE = range(3)


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class BuilderFlag:
    TF32 = 0


class ProfilingVerbosity:
    DETAILED = 0


class LayerInformationFormat:
    JSON = 0


class IProgressMonitor:
    """Nobody calls it."""


class INetworkDefinition:
    content = b""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, log: ILogger) -> None:
        self._network = network

    def parse(self, content: bytes) -> bool:
        onnx.checker.check_model(onnx.load_from_string(content))
        self._network.content = content
        return True


class IOptimizationProfile:
    def set_shape(self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> None:
        self.most_images = most[0]


class ITimingCache:
    def serialize(self) -> bytes:
        return b""


class IBuilderConfig:
    most_images = 0

    def clear_flag(self, flag: int) -> None:
        """None is set."""

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.most_images = profile.most_images
        return 0

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache()

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        return True

    get_timing_cache = ITimingCache


class Builder:
    def __init__(self, log: ILogger) -> None:
        self._log = log

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    create_builder_config = IBuilderConfig
    create_optimization_profile = IOptimizationProfile

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        if config.most_images <= MOST_IMAGES:
            return network.content
        self._log.log(ILogger.ERROR, "Out of memory")
        return None


class EngineInspector:
    """Every layer computes in the type of its output, as in a strongly typed engine."""

    def __init__(self, content: bytes) -> None:
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
        types = {each.name: _WORDS.get(each.type.tensor_type.elem_type, "?") for each in graph.value_info}
        self._layers = [
            {
                "Name": node.name,
                "LayerType": {"Conv": "CaskConvolution"}.get(node.op_type, node.op_type),
                "Outputs": [{"Format/Datatype": types.get(node.output[0], "?")}],
            }
            for node in graph.node
        ]

    def get_engine_information(self, how: int) -> str:
        return json.dumps({"Layers": self._layers})


_WORDS = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half", onnx.TensorProto.INT8: "Int8"}


class TensorIOMode(Enum):
    INPUT = auto()
    OUTPUT = auto()


class DataType(Enum):
    UINT8 = np.uint8
    FLOAT = np.float32
    INT32 = np.int32


class Runtime:
    def __init__(self, log: ILogger) -> None:
        """What is said is nothing."""

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine:
        return ICudaEngine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]), plan)


_TYPES = {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT, "tensor(int32)": DataType.INT32}


class ICudaEngine:
    def __init__(self, session: onnxruntime.InferenceSession, plan: bytes) -> None:
        self.session = session
        self._plan = plan
        self._inputs = [each.name for each in session.get_inputs()]
        self.tensors = {each.name: each for each in (*session.get_inputs(), *session.get_outputs())}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self.tensors[name].type]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, *self.tensors[name].shape[1:]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return [[images, *self.get_tensor_shape(name)[1:]] for images in (1, MOST_IMAGES, MOST_IMAGES)]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._num_images = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._num_images = shape[0]
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> list[int]:
        return [self._num_images, *self._engine.get_tensor_shape(name)[1:]]

    def execute_async_v3(self, stream: int) -> bool:
        names = ["probabilities", "view_classes"]
        found = self._engine.session.run(names, {"images": self._at("images")})
        for name, values in zip(names, found, strict=True):
            self._at(name)[:] = values
        return True

    def _at(self, name: str) -> NDArray[np.generic]:
        """The memory that the address of a tensor is of."""
        shape = self.get_tensor_shape(name)
        dtype = np.dtype(self._engine.get_tensor_dtype(name).value)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype).reshape(shape)
