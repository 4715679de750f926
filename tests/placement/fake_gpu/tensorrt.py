"""TensorRT as far as alexdeploy runs it: a plan is a deployment graph, and what computes is ONNX Runtime on the CPU."""

from __future__ import annotations

import ctypes
from enum import Enum, auto

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__version__ = "10.16.1.11"

MOST_IMAGES = 32


class ILogger:
    ERROR, INTERNAL_ERROR, VERBOSE = range(3)


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
        return ICudaEngine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]))


_TYPES = {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT, "tensor(int32)": DataType.INT32}


class ICudaEngine:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
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
