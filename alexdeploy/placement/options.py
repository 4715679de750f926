"""What to run and where: the options that every command and function passes to `place`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alexdeploy.core.arguments import Count, check_fields
from alexdeploy.core.spec import Placement, Precision
from alexdeploy.engines.base import Backend, NumViews

BATCH_SIZE = 8
"""The default batch size, and the largest that "auto" chooses on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """Where engines run. Raises UsageError for an invalid value.

    `devices` is a comma-separated list as for `--devices`: "cpu", "0", "cuda:1", a UUID, "all"; a device listed twice
    gets two replicas. None: the GPUs that can run the model, else the CPU. `replicas` is per device. `num_threads` is
    the number of CPU threads, None: all that the process may use.
    """

    devices: str | None = None
    replicas: Count = 1
    num_threads: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def predict_options(
        self, backend: Backend | None, precision: Precision, num_views: NumViews, batch_size: int = BATCH_SIZE
    ) -> PredictOptions:
        """These device options, for one configuration of the model."""
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
    """What to run and where. Raises UsageError for an invalid value.

    `backend` None: the best installed one for the device. `batch_size` counts images, not views; "auto" chooses a size
    that fits the device. `num_streams` is the maximum number of batches that an engine on the CPU runs at once; None:
    the number with the best throughput. `placement` splits one network over two devices; None: each replica runs the
    whole network. A row has the `top_k` best classes.

    For the lowest latency with one image at a time, as in a service, use `batch_size=1, num_streams=1`.
    """

    precision: Precision = "fp32"
    num_views: NumViews = 1
    backend: Backend | None = None
    batch_size: Count | Literal["auto"] = BATCH_SIZE
    num_streams: Count | None = None
    placement: Placement | None = None
    top_k: Count = 5
