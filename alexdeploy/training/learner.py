"""The network under training, its optimizer and its precision on one device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from alexdeploy.core.errors import DeviceError, UsageError, first_line
from alexdeploy.core.recipe import Recipe, TrainingPrecision
from alexdeploy.network.alexnet import AlexNet, initialize
from alexdeploy.training.optimizer import MomentumSGD, parameter_groups
from alexdeploy.training.parallel import ALONE, ProcessGroup, SharedNetwork

_AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepSums(NamedTuple):
    """Of one step: the cross-entropy, float64 [], and the number of right answers, int64 [], on the device.

    Answers are those before the step, to augmented views and with dropout.
    """

    loss: Tensor
    num_right: Tensor


def choose_device(name: str | None, precision: TrainingPrecision) -> torch.device:
    """The device called `name`; for None the first CUDA device, or the CPU if there is none.

    Raises DeviceError for a missing device, UsageError for an unknown name or a precision the device does not support.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as exc:
        raise UsageError(f"unknown device {name!r}", hint="Devices: cpu, cuda, cuda:1, ...") from exc
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"training runs on cpu and cuda, not on {device.type}", hint="Devices: cpu, cuda, cuda:1, ...")
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise DeviceError(
                f"{name} was asked for; PyTorch finds {found} CUDA devices",
                hint="Try the CPU: alexdeploy train ... --devices cpu",
            )
    elif precision in ("fp16", "tf32"):
        raise UsageError(
            f"{precision} training needs a GPU", hint="On the CPU, use bf16 or fp32: --set training.precision=bf16"
        )
    return device


def new_network(recipe: Recipe, num_classes: int) -> AlexNet:
    """The recipe's network, initialized from the recipe's seed."""
    network = AlexNet(recipe.architecture, num_classes)
    initialize(network, recipe.training.init, recipe.training.seed)
    return network


class Learner:
    """A network that takes gradient steps. Weights are float32 whatever the precision of its layers.

    `network` is trained as it is; None initializes the recipe's network. In a `group`, each process has a copy of the
    network and some rows of every batch, and all take the same steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
        network: nn.Module | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        training = recipe.training
        if network is None:
            network = new_network(recipe, num_classes)
        self.device = device
        self.split = group or ALONE
        """The processes that each batch is divided among."""
        self._dtype = _AUTOCAST[training.precision]
        self._has_tf32 = training.precision == "tf32"
        # Views come channels last. On the CPU, convolutions then take 3/4 of the time (64 views, AVX-512), and tensor
        # cores need it for the 16-bit types. It does not suit cuDNN's grouped float32 convolutions on a GPU.
        self._layout = (
            torch.channels_last if device.type == "cpu" or self._dtype is not None else torch.contiguous_format
        )
        self._network = network.to(device=device, memory_format=self._layout)  # type: ignore[call-overload]
        self._training = training
        self._optimizer = MomentumSGD(
            parameter_groups(self._network, training, recipe.architecture.trained_layers[-1]),
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        self._average: AveragedModel | None = None
        if training.average is not None:
            self._average = AveragedModel(self._network, multi_avg_fn=get_ema_multi_avg_fn(training.average))  # type: ignore[no-untyped-call]
        self._shared = SharedNetwork(self._network, self.split, device) if self.split.size > 1 else None

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the layers that the recipe freezes in `epoch`, from 1."""
        frozen = self._training.freeze if epoch >= self._training.freeze_epoch else ()
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[0] not in frozen)
            if not parameter.requires_grad:
                parameter.grad = None
        if self._shared is not None:
            self._shared.follow_frozen()

    def compile(self) -> None:
        """Let torch.compile compile the network on its first run. Raises DeviceError where it cannot."""
        try:
            # Try a small function first: without a compiler, the network would fail in the middle of the first step.
            torch.compile(torch.sin)(torch.zeros(8, device=self.device))
        except Exception as exc:
            raise DeviceError(
                f"torch.compile does not work here: {first_line(exc)}",
                hint="Leave out --compile. On the CPU it needs a C++ compiler (apt install g++), on a GPU Triton.",
            ) from exc
        # So that dropout draws the same values as without compilation.
        torch._inductor.config.fallback_random = True
        self._network.compile()

    def compute_gradients(
        self, views: Tensor, labels: Tensor, dropout_seed: int, batch_size: int | None = None
    ) -> StepSums:
        """Set the gradients of the mean cross-entropy over a batch; returns sums over this process's rows.

        These are views [N, 3, S, S] and labels [N], `split`'s rows of a batch of `batch_size`; None if they are the
        whole batch. The sums stay on the device: reading them would wait for the step.
        """
        self._network.train()
        torch.manual_seed(dropout_seed)
        self._optimizer.zero_grad()
        network, weight = self._network, 1.0
        if self._shared is not None:
            network, weight = self._shared.module, self._shared.take(batch_size or len(labels))
        smoothing = self._training.label_smoothing
        with float32_arithmetic(tf32=self._has_tf32):
            logits = self._logits(network, views)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            self._scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return StepSums(loss.detach().double() * len(labels), (logits.argmax(dim=1) == labels).sum())

    def update(self, learning_rate: float, sum_squares: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take one step along the gradients. With fp16, a step that overflowed is skipped and the loss scale reduced.

        `sum_squares` adds the squared gradient norms of other processes to that of this network.
        """
        if self._training.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            _clip(
                [p.grad for p in self._network.parameters() if p.grad is not None],
                self._training.clip_norm,
                sum_squares,
            )
        self._optimizer.learning_rate = learning_rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._network)

    def evaluate(self, views: Tensor) -> Tensor:
        """Logits, float32 [N, classes], of views [N, 3, S, S], without dropout, with the weights of `weights`."""
        network = self._evaluated.eval()
        with torch.inference_mode(), float32_arithmetic(tf32=self._has_tf32):
            return self._logits(network, views)

    def weights(self) -> dict[str, Tensor]:
        """The weights to publish, which may be averages: contiguous float32 copies on the CPU, by name."""
        return _copies(self._evaluated)

    @property
    def _evaluated(self) -> nn.Module:
        return self._network if self._average is None else self._average.module

    def is_finite(self) -> bool:
        """Whether every weight is finite."""
        with torch.no_grad():
            norms = torch._foreach_norm(list(self._network.parameters()))
            return bool(torch.stack(norms).isfinite().all())

    def state(self) -> dict[str, Any]:
        """Weights, their averages if there are any, velocities and the fp16 gradient scale, as copies on the CPU."""
        averages = {} if self._average is None else {"averages": _copies(self._average.module)}
        return averages | {
            "weights": _copies(self._network),
            "velocities": {
                name: _copy(self._optimizer.velocity(parameter)) for name, parameter in self._network.named_parameters()
            },
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a `state()` of the same recipe."""
        self.load_weights(state["weights"])
        if self._average is not None:
            self._average.module.load_state_dict(state["averages"])
            # Any number above 0: with 0, the next step's weights would take the place of the average.
            self._average.n_averaged.fill_(1)
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                self._optimizer.velocity(parameter).copy_(state["velocities"][name])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights alone, and their averages by them."""
        self._network.load_state_dict(weights)
        if self._average is not None:
            self._average.module.load_state_dict(weights)

    def _logits(self, network: nn.Module, views: Tensor) -> Tensor:
        views = views.contiguous(memory_format=self._layout)
        with self._autocast():
            logits: Tensor = network(views)
        return logits.float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)


@contextlib.contextmanager
def float32_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Compute FP32 convolutions and products on a GPU in TF32, or in FP32: cuDNN's default is TF32.

    The settings are PyTorch's for the whole process, and are as before afterwards.
    """
    cudnn: Any = torch.backends.cudnn
    backends = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = tuple(backend.fp32_precision for backend in backends)
    products = torch.get_float32_matmul_precision()
    wanted = "tf32" if tf32 else "ieee"
    try:
        _set_float32(backends, (wanted, wanted, wanted), "high" if tf32 else "highest")
        yield
    finally:
        _set_float32(backends, before, products)


def _set_float32(backends: tuple[Any, ...], precisions: tuple[str, ...], products: str) -> None:
    # PyTorch's older switches first: it refuses to read one that contradicts the newer settings.
    torch.backends.cudnn.allow_tf32 = precisions[0] == "tf32"
    torch.set_float32_matmul_precision(products)
    for backend, precision in zip(backends, precisions, strict=True):
        backend.fp32_precision = precision


def _clip(gradients: list[Tensor], limit: float, sum_squares: Callable[[Tensor], Tensor] | None) -> None:
    """Scale the gradients so that their total norm is at most `limit`, without waiting for the device."""
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
    if sum_squares is not None:
        squares = sum_squares(squares)
    torch._foreach_mul_(gradients, (limit / squares.sqrt()).clamp(max=1.0))


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: _copy(tensor) for name, tensor in network.state_dict().items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format, copy=True)
