"""Several processes that train one network: who they are, what they tell each other, and how they end together.

torchrun starts them. Rank 0 reads the checkpoint and writes everything; the others need the images and nothing else.
Each takes its rows of every batch, and all random draws are for the whole batch, so that the number of processes
changes what is learned by rounding alone.
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

# They wait for each other where one writes a checkpoint, or decodes its share from a slower disk.
_PATIENCE = timedelta(hours=2)
_SECONDS_TO_COME = 600
_SECONDS_BETWEEN_LOOKS = 0.02


class HeldInterrupts:
    """Whether SIGINT or SIGTERM has come to one of several processes. Alone, they are not held, and it has not."""

    def __init__(self) -> None:
        self.arrived: list[int] = []

    def check(self) -> None:
        """Raise KeyboardInterrupt if one has come. For work of one's own, which nobody waits for step by step."""
        if self.arrived:
            raise KeyboardInterrupt


class ProcessGroup:
    """The processes of a run, of which this is number `rank`. Without a launch it is the only one there is."""

    def __init__(
        self,
        launch: Launch | None = None,
        device: str | None = None,
        store: Store | None = None,
        generation: int = 0,
    ) -> None:
        """`device` is where this process trains, None where nothing has been decided.

        `store` is that of the launch. It outlives the processes; each restart of them is a `generation`.
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
        """This process's rows of a batch of `num`; those that do not divide go to the first processes."""
        size, rest = divmod(num, self.size)
        first = self.rank * size + min(self.rank, rest)
        return slice(first, first + size + (self.rank < rest))

    def sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of everybody's array, int64 or float64; the same bits in every process."""
        if self.size == 1:
            return array
        total = torch.from_numpy(np.array(array))
        dist.all_reduce(total)
        return total.numpy()

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        """Run it in rank 0 alone and give everybody what it returns. If it raises, the others lose their connection."""
        if self.size == 1:
            return function()
        values: list[Any] = [function() if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        value: T = values[0]
        return value

    def once_here(self, function: Callable[[], object]) -> None:
        """Run it in one process of each machine; the others wait for it."""
        if self.local_rank == 0:
            function()
        self.gather(None)

    def begin(self) -> None:
        """Note that this launch has made its start: processes that replace these are to go on from the checkpoint."""
        if self._store is not None and self.is_main:
            self._store.set("begun", "")

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called in this launch, in an earlier generation most likely."""
        return self._store is not None and self._store.check(["begun"])

    def is_first_to_fail(self) -> bool:
        """Whether nobody has asked this yet: the first to fail tells the user why, the others just end."""
        if self._store is None:
            return True
        try:
            return int(self._store.add(f"failed/{self._generation}", 1)) == 1
        except dist.DistError:
            return True


ALONE = ProcessGroup()


def _device_name(name: str | None, launch: Launch) -> str:
    """The device for this process: "cuda", or None where there are GPUs, stands for the one of its own."""
    if name is None and not torch.cuda.is_available():
        return "cpu"
    if name is not None and name.startswith("cuda:") and launch.size > 1:
        raise UsageError(
            f"{launch.size} processes cannot all train on {name}",
            hint="Leave --devices out: each process takes the GPU of its number.",
        )
    if name is not None and name != "cuda":
        return name
    found = torch.cuda.device_count()
    if launch.local_size > found:
        raise DeviceError(
            f"{launch.local_size} processes were started on this machine; PyTorch finds {found} CUDA devices",
            hint=f"Start {found}: torchrun --nproc-per-node {found}" if found else "Try --devices cpu",
        )
    return f"cuda:{launch.local_rank}"


@contextmanager
def process_group(device: str | None = None) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started; without torchrun this one is ALONE.

    `device` is what the user asked for; None is the best there is. Raises UsageError if all are to use one GPU,
    DeviceError if the machine has fewer GPUs than processes, and when another process has ended or not come.
    """
    launch = launched()
    if launch is None:
        yield ALONE
        return
    device = _device_name(device, launch)
    # Not at the top: there are builds of PyTorch without them.
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
                # What is not a gradient is small and on the CPU, and waiting there does not stop the GPU.
                "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
                # A prefix of its own: the addresses of processes that are no more are still in the store.
                store=PrefixStore(f"alexdeploy/{generation}", store),
                rank=launch.rank,
                world_size=launch.size,
                timeout=_PATIENCE,
            )
            yield group
            # Whoever left early would look like a failure to those who still talk.
            dist.barrier()
            dist.destroy_process_group()
        except RuntimeError as exc:
            if not _is_lost_connection(exc):
                raise
            # What gloo says is that a connection was reset, in words meant for others.
            reason = f" or cannot be reached: {_reason(exc)}" if isinstance(exc, dist.DistError) else ""
            raise DeviceError(
                f"another of the processes that train together has ended{reason}",
                hint="Its own message, if there was time for one, says why. Go on from the last checkpoint: --resume\n"
                "torchrun --max-restarts 3 does that by itself.",
            ) from exc


@contextmanager
def held_interrupts(interrupts: HeldInterrupts) -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the processes have agreed where to stop. The first is raised again at the end.

    One that stopped by itself would leave the others waiting for its gradients. After an error SIGTERM stays ignored:
    torchrun sends it to all when one has failed, at any moment, and what fails ends anyway and has a reason to give.
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
        # Before the handlers are put back: one of SIGTERM would raise KeyboardInterrupt in place of the error.
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
    """Agree on a number for this generation of processes. Raises DeviceError if somebody does not come.

    TORCHELASTIC_RESTART_COUNT does not do: it counts the failures of one machine, so machines may differ in it. Rank 0
    counts, and gives the number to everybody who asks with a word that has not been in the store before.
    """
    until = time.monotonic() + _SECONDS_TO_COME
    if launch.rank:
        word = uuid.uuid4().hex
        store.set(f"asks/{launch.rank}", word)
        # Not by the store's own waiting, from which Ctrl-C would not call it back.
        while not store.check([f"answer/{word}"]):
            _wait(until, "rank 0 has")
        number = int(store.get(f"answer/{word}"))
        store.set(f"came/{number}/{launch.rank}", "")
        return number
    number = int(store.add("generations", 1))
    waiting = set(range(1, launch.size))
    while waiting:
        for rank in waiting:
            # What is there may be the word of a process that has died; it will be written over.
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
    """What NCCL calls its last error, which comes after the place in PyTorch's sources and a list of causes."""
    last = str(exc).partition("Last error:")[2].strip()
    return last.splitlines()[0] if last else first_line(exc)


def _is_lost_connection(exc: BaseException) -> bool:
    # Gloo has no exception type of its own.
    return isinstance(exc, dist.DistError) or "gloo" in str(exc).lower()


class SlicedDropout(nn.Module):
    """Dropout of some rows of a batch, [rows, features], by the mask that one process would draw for all of them.

    `num_rows` of the batch and the `rows` that are here are to be set before each use.
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
    """A network of which each process has a copy; all copies get the mean gradient over a whole batch."""

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
        """To be called when parameters may have been frozen or thawed: gradients of frozen ones are not waited for."""
        trained = [parameter.requires_grad for parameter in self._network.parameters()]
        if trained == self._trained:
            return
        self._trained = trained
        self.module = DistributedDataParallel(
            self._network,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        """To be called in training, in place of the network."""

    def take(self, batch_size: int) -> float:
        """Get ready for this process's rows of a batch; returns what to multiply their mean loss by.

        Gradients are averaged over processes, of which one may have a row more than another.
        """
        rows = self._group.rows(batch_size)
        for dropout in self._dropouts:
            dropout.num_rows, dropout.rows = batch_size, rows
        return float((rows.stop - rows.start) * self._group.size / batch_size)
