"""The part of Triton's module of this name that the models use, for where there is no Triton."""

from __future__ import annotations

import numpy as np


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.output_tensors, self.error = output_tensors or [], error


class Logger:
    @staticmethod
    def log_warn(message: str) -> None:
        print(f"warning: {message}")


def get_input_tensor_by_name(request: list[Tensor], name: str) -> Tensor:
    (found,) = (tensor for tensor in request if tensor.name == name)
    return found
