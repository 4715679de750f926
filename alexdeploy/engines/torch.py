"""PyTorch, directly from the weights: the slowest engine and the reference for the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexdeploy.core.errors import DeviceError, ModelError, UsageError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, check_images, predictions_of
from alexdeploy.images.crops import view_boxes
from alexdeploy.network.alexnet import AlexNet
from alexdeploy.network.feature_names import feature_layer
from alexdeploy.network.weights import load_model_weights

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def open_engine(folder: ModelFolder, options: EngineOptions) -> TorchEngine:
    """An engine for `weights.safetensors`. Raises UsageError for a precision that is a property of an ONNX graph."""
    spec = folder.spec()
    if options.precision not in _DTYPES:
        raise UsageError(
            f"{options.precision} is an ONNX graph, which PyTorch does not run",
            hint="Use --backend openvino or onnxruntime.",
        )
    network, sha256 = load_network(folder, spec)
    if options.layer is not None:
        network.end_at(feature_layer(spec, options.layer).name)
    info = EngineInfo(
        backend="torch",
        device="cpu",
        precision=options.precision,
        num_views=options.num_views,
        classes=spec.classes,
        artifact=sha256,
        batch_size=options.batch_size,
        num_streams=1,
        layer=options.layer,
        feature_shape=() if options.layer is None else feature_layer(spec, options.layer).output_shape,
    )
    threads = options.num_threads or available_processors()
    return TorchEngine(network, info, spec.preprocessing, folder.mean_image(spec), threads)


def open_layers(folder: ModelFolder) -> Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """The FP32 network as a function: float32 [N, 3, crop, crop] -> output of each layer by name, in order.

    Raises ModelError if the folder has no PyTorch weights.
    """
    network = load_network(folder, folder.spec())[0].eval()

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        torch.set_num_threads(available_processors())
        return {name: output.numpy() for name, output in network.activations(torch.from_numpy(images)).items()}

    return run


def load_network(folder: ModelFolder, spec: ModelSpec) -> tuple[AlexNet, str]:
    """The network, and the hash of its weights."""
    if spec.members:
        raise ModelError(
            f"{folder.path} is an ensemble of graphs, which PyTorch does not run",
            hint="Use --backend openvino or onnxruntime.",
        )
    if spec.architecture is None or not folder.weights_path.is_file():
        raise ModelError(f"{folder.path} has no PyTorch weights", hint="Use --backend openvino or onnxruntime.")
    network = AlexNet(spec.architecture, spec.num_classes)
    weights = load_model_weights(folder, spec)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.tensors.items()})
    return network, weights.sha256


class TorchEngine:
    """The trained module with the deployment graph's steps written out in PyTorch."""

    def __init__(
        self,
        network: AlexNet,
        info: EngineInfo,
        preprocessing: Preprocessing,
        mean_image: NDArray[np.float32] | None,
        num_threads: int,
    ) -> None:
        self.info = info
        self._network = network.eval()
        self._steps = preprocessing
        mean = np.array(preprocessing.mean, np.float32).reshape(3, 1, 1) if mean_image is None else mean_image
        self._mean = torch.from_numpy(mean)
        self._std = torch.tensor(preprocessing.std).reshape(3, 1, 1)
        self._num_threads = num_threads
        self._opened: OpenedHere | None = None
        # Its threads work together on one batch: another caller waits.
        self._running = threading.Lock()

    def __enter__(self) -> TorchEngine:
        torch.set_num_threads(self._num_threads)
        self._network.to(_DTYPES[self.info.precision])
        self._opened = OpenedHere(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened = None

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows."""
        check_images(images, self.info.batch_size)
        if self._opened is None:
            raise DeviceError("the engine is not open", hint="Open it in a with statement.")
        self._opened.check("engine")
        with self._running, torch.inference_mode():
            # PyTorch warns of memory that it may not write, such as the body of a request.
            views = self._views(torch.from_numpy(np.require(images, requirements=("C", "W"))))
            outputs = self._network(views.to(_DTYPES[self.info.precision])).float()
            if self.info.layer is not None:
                return predictions_of([outputs.reshape(len(images), self.info.num_views, -1).mean(dim=1).numpy()])
            by_image = outputs.softmax(dim=1).reshape(len(images), self.info.num_views, -1)
            return Predictions(by_image.mean(dim=1).numpy(), by_image.argmax(dim=2).to(torch.int32).numpy())

    def _views(self, images: Tensor) -> Tensor:
        """uint8 [N, 256, 256, 3] -> float32 [N * V, 3, crop, crop], all views of an image together."""
        pixels = images.permute(0, 3, 1, 2).float()
        if self._steps.channels == "bgr":
            pixels = pixels.flip(1)
        pixels = (pixels * self._steps.scale - self._mean) / self._std
        size = self._steps.crop
        crops = []
        for box in view_boxes(self.info.num_views, size):
            crop = pixels[:, :, box.top : box.top + size, box.left : box.left + size]
            crops.append(crop.flip(3) if box.mirror else crop)
        return torch.stack(crops, dim=1).flatten(0, 1)
