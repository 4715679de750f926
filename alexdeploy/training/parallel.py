"""Several processes that train one network: their group, their communication, and their joint shutdown.

torchrun starts them. Rank 0 reads the checkpoint and writes all files; the others need only the images. Each process
takes its rows of every batch, and all random draws are for the whole batch, so that the number of processes changes the
result only by rounding.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alexdeploy.core.errors import DeviceError, UsageError, first_line
from alexdeploy.training.torchrun import Launch, launched

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

# Processes wait for each other while one writes a checkpoint, or decodes its share from a slower disk.
_PATIENCE = timedelta(hours=2)
_SECONDS_TO_COME = 600
_SECONDS_BETWEEN_LOOKS = 0.02


class HeldInterrupts:
    """Records SIGINT and SIGTERM in one of several processes. In a single process signals are not held back."""

    def __init__(self) -> None:
        self.arrived: list[int] = []

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived. For work that no other process waits for in each step."""
        if self.arrived:
            raise KeyboardInterrupt


class ProcessGroup:
    """The processes of a run; this one has the number `rank`. Without a launch it is the only process."""

    def __init__(
        self,
        launch: Launch | None = None,
        device: str | None = None,
        store: Store | None = None,
        generation: int = 0,
    ) -> None:
        """`device` is where this process trains, None if not decided yet.

        `store` belongs to the launch and outlives the processes; each restart of them is a `generation`.
        """
        self.device = device
        self.interrupts = HeldInterrupts()
        self.rank = 0 if launch is None else launch.rank
        self.size = 1 if launch is None else launch.size
        self.local_rank = 0 if launch is None else launch.local_rank
        self.local_size = 1 if launch is None else launch.local_size
        self._store = store
        self._generation = generation

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reads the checkpoint, writes, logs and prints."""
        return self.rank == 0

    def rows(self, num: int) -> slice:
        """This process's rows of a batch of `num`; the first processes take the remainder."""
        size, rest = divmod(num, self.size)
        first = self.rank * size + min(self.rank, rest)
        return slice(first, first + size + (self.rank < rest))

    def sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of all processes' arrays, int64 or float64; bit-identical in every process."""
        if self.size == 1:
            return array
        total = torch.from_numpy(np.array(array))
        dist.all_reduce(total)
        return total.numpy()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        """Run it in rank 0 only and return its result everywhere. If it raises, the others lose their connection."""
        if self.size == 1:
            return function()
        values: list[Any] = [function() if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        value: T = values[0]
        return value

    def once_here(self, function: Callable[[], object]) -> None:
        """Run it in one process per machine; the others wait for it."""
        if self.local_rank == 0:
            function()
        self.gather(None)

    def begin(self) -> None:
        """Record that this launch has started training: processes that replace these resume from the checkpoint."""
        if self._store is not None and self.is_main:
            self._store.set("begun", "")

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called in this launch, usually by an earlier generation."""
        return self._store is not None and self._store.check(["begun"])

    def is_first_to_fail(self) -> bool:
        """True for the first process that calls this: the first to fail reports the error, the others only exit."""
        if self._store is None:
            return True
        try:
            return int(self._store.add(f"failed/{self._generation}", 1)) == 1
        except dist.DistError:
            return True


ALONE = ProcessGroup()


def _device_name(name: str | None, launch: Launch) -> str:
    """The device for this process: "cuda", or None if there are GPUs, means the GPU of its local rank."""
    if name is None and not torch.cuda.is_available():
        return "cpu"
    if name is not None and name.startswith("cuda:") and launch.size > 1:
        raise UsageError(
            f"{launch.size} processes cannot all train on {name}",
            hint="Name no device: each process takes the GPU of its number.",
        )
    if name is not None and name != "cuda":
        return name
    found = torch.cuda.device_count()
    if launch.local_size > found:
        raise DeviceError(
            f"{launch.local_size} processes were started on this machine; PyTorch finds {found} CUDA devices",
            hint=f"Start {found}: torchrun --nproc-per-node {found}"
            if found
            else "Try the CPU: alexdeploy train ... --devices cpu",
        )
    return f"cuda:{launch.local_rank}"


@contextmanager
def process_group(device: str | None = None) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started; without torchrun this process is ALONE.

    `device` is the requested device; None selects the best available. Raises UsageError if all processes are to use one
    GPU, DeviceError if the machine has fewer GPUs than processes, or if another process has ended or has not joined.
    """
    launch = launched()
    if launch is None:
        yield ALONE
        return
    device = _device_name(device, launch)
    # Not imported at the top: some builds of PyTorch lack them.
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    patience = timedelta(seconds=_SECONDS_TO_COME)
    store = TCPStore(launch.host, launch.port, is_master=launch.is_host, wait_for_workers=False, timeout=patience)
    own = PrefixStore("alexdeploy", store)
    generation = _meet(own, launch)
    group = ProcessGroup(launch, device, own, generation)
    if launch.size == 1:
        yield group
        return
    with held_interrupts(group.interrupts):
        try:
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            dist.init_process_group(
                # All data but gradients is small and on the CPU, where waiting does not stall the GPU.
                "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
                # A separate prefix: the store still has the addresses of processes that have ended.
                store=PrefixStore(f"alexdeploy/{generation}", store),
                rank=launch.rank,
                world_size=launch.size,
                timeout=_PATIENCE,
            )
            yield group
            # To processes that still communicate, one that exits early would look like a failure.
            dist.barrier()
            dist.destroy_process_group()
        except RuntimeError as exc:
            if not _is_lost_connection(exc):
                raise
            # gloo's message, a connection reset, does not help the user.
            reason = f" or cannot be reached: {_reason(exc)}" if isinstance(exc, dist.DistError) else ""
            raise DeviceError(
                f"another of the processes that train together has ended{reason}",
                hint="See that process's own error message, if any. Resume from the last checkpoint: --resume\n"
                "torchrun --max-restarts 3 resumes automatically.",
            ) from exc


@contextmanager
def held_interrupts(interrupts: HeldInterrupts) -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the processes have agreed where to stop, then raise the first signal again.

    A process that stopped alone would leave the others waiting for its gradients. After an error SIGTERM stays ignored:
    torchrun sends it to all processes when one has failed, and the failing process must still report its error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hold(number: int, _frame: FrameType | None) -> None:
        interrupts.arrived.append(number)

    previous = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:
        # Before the handlers are restored: a SIGTERM handler would raise KeyboardInterrupt in place of the error.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        del previous[signal.SIGTERM]
        interrupts.arrived.clear()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if interrupts.arrived:
            signal.raise_signal(interrupts.arrived[0])


def _meet(store: Store, launch: Launch) -> int:
    """Agree on a number for this generation of processes. Raises DeviceError if a process does not join.

    TORCHELASTIC_RESTART_COUNT cannot be used: it counts the failures of one machine, so machines may differ in it.
    Instead rank 0 counts, and replies to each process that asks with a key new to the store.
    """
    until = time.monotonic() + _SECONDS_TO_COME
    if launch.rank:
        word = uuid.uuid4().hex
        store.set(f"asks/{launch.rank}", word)
        # Not with the store's own wait, which Ctrl-C cannot interrupt.
        while not store.check([f"answer/{word}"]):
            _wait(until, "rank 0 has")
        number = int(store.get(f"answer/{word}"))
        store.set(f"came/{number}/{launch.rank}", "")
        return number
    number = int(store.add("generations", 1))
    waiting = set(range(1, launch.size))
    while waiting:
        for rank in waiting:
            # The key may belong to a process that has died; it will be overwritten.
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", str(number))
        waiting = {rank for rank in waiting if not store.check([f"came/{number}/{rank}"])}
        _wait(until, f"{len(waiting)} of {launch.size} processes have")
    return number


def _wait(until: float, who: str) -> None:
    if time.monotonic() > until:
        raise DeviceError(f"{who} not come within {_SECONDS_TO_COME // 60} minutes")
    time.sleep(_SECONDS_BETWEEN_LOOKS)


def _reason(exc: BaseException) -> str:
    """NCCL's last error, which follows the position in PyTorch's sources and a list of causes in the message."""
    last = str(exc).partition("Last error:")[2].strip()
    return last.splitlines()[0] if last else first_line(exc)


def _is_lost_connection(exc: BaseException) -> bool:
    # Gloo has no exception type of its own.
    return isinstance(exc, dist.DistError) or "gloo" in str(exc).lower()


class SlicedDropout(nn.Module):
    """Dropout of some rows of a batch, [rows, features], with the mask that one process would draw for the whole batch.

    Set `num_rows` of the batch and this process's `rows` before each use.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.num_rows = 0
        self.rows = slice(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        factors = F.dropout(x.new_ones(self.num_rows, x.shape[1]), self.rate)
        return x * factors[self.rows]


class SharedNetwork:
    """A network replicated in each process; all replicas get the mean gradient over the whole batch."""

    def __init__(self, network: nn.Module, group: ProcessGroup, device: torch.device) -> None:
        self._network = network
        self._group = group
        self._device = device
        for name, module in list(network.named_children()):
            if isinstance(module, nn.Dropout):
                setattr(network, name, SlicedDropout(module.p))
        self._dropouts = [module for module in network.children() if isinstance(module, SlicedDropout)]
        self._trained: list[bool] = []
        self.follow_frozen()

    def follow_frozen(self) -> None:
        """Call after freezing or unfreezing parameters: gradients of frozen ones are not waited for."""
        trained = [parameter.requires_grad for parameter in self._network.parameters()]
        if trained == self._trained:
            return
        self._trained = trained
        self.module = DistributedDataParallel(
            self._network,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        """The module to call during training instead of the network."""

    def take(self, batch_size: int) -> float:
        """Prepare for this process's rows of a batch; returns the factor for their mean loss.

        Gradients are averaged over processes, which may differ by one row.
        """
        rows = self._group.rows(batch_size)
        for dropout in self._dropouts:
            dropout.num_rows, dropout.rows = batch_size, rows
        return float((rows.stop - rows.start) * self._group.size / batch_size)
