"""What to run and where: the one object that every command and function hands to `place`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alexdeploy.core.arguments import Count, check_fields
from alexdeploy.core.spec import Placement, Precision
from alexdeploy.engines.base import Backend, NumViews

BATCH_SIZE = 8
"""Images that run together unless something else is asked for; the most that "auto" takes on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """Where engines run. Raises UsageError for a value that is not possible.

    `devices` is a list as for `--devices`: "cpu", "0", "cuda:1", a UUID, "all"; with commas between, and twice for two
    replicas. None: the GPUs that can run the model, else the CPU. `replicas` is for each device. `num_threads` are CPU
    threads, None: all that the process may use.
    """

    devices: str | None = None
    replicas: Count = 1
    num_threads: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def predict_options(
        self, backend: Backend | None, precision: Precision, num_views: NumViews, batch_size: int = BATCH_SIZE
    ) -> PredictOptions:
        """The same devices, for one way to run the model."""
        return PredictOptions(
            precision=precision,
            num_views=num_views,
            backend=backend,
            batch_size=batch_size,
            devices=self.devices,
            replicas=self.replicas,
            num_threads=self.num_threads,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(DeviceOptions):
    """What to run and where. Raises UsageError for a value that is not possible.

    `backend` None: the best that is installed and fits the device. `batch_size` counts images, not views; "auto" takes
    what fits the device. `num_streams` is how many batches an engine on the CPU runs at once, at most; None: as many as
    are fastest where there are many. `placement` splits one network over two devices; None: each replica has all of it.
    A row names the `top_k` best classes.

    One image at a time, as in a service, is answered soonest with `batch_size=1, num_streams=1`.
    """

    precision: Precision = "fp32"
    num_views: NumViews = 1
    backend: Backend | None = None
    batch_size: Count | Literal["auto"] = BATCH_SIZE
    num_streams: Count | None = None
    placement: Placement | None = None
    top_k: Count = 5
