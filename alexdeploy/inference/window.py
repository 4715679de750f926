"""How many images are in memory at a time, and whether they fit."""

from __future__ import annotations

from alexdeploy.core.errors import DeviceMemoryError
from alexdeploy.core.memory import host_memory
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import EngineInfo


def window_size(batch_size: int, num_streams: int, num_decoders: int) -> int:
    """The largest number of images taken from the sources and not yet yielded.

    For each stream of the engine one running and one ready batch, plus the batch being filled and the images being
    decoded.
    """
    return batch_size * (2 * num_streams + 1) + num_decoders


def check_memory(info: EngineInfo, num_decoders: int, picture_bytes: int = 0) -> None:
    """Raise DeviceMemoryError if the images held at a time do not fit into the free memory.

    Each may have a picture of up to `picture_bytes` besides.
    """
    window = window_size(info.batch_size, info.num_streams, num_decoders)
    # The images of each stream's batch are copied into one array.
    needed = (window + info.batch_size * info.num_streams) * IMAGE_SIZE * IMAGE_SIZE * 3 + window * picture_bytes
    free, _ = host_memory()
    if free is not None and needed > free:
        most = max(1, info.batch_size * free // needed)
        raise DeviceMemoryError(
            f"batches of {info.batch_size:,} take {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB of memory are free",
            hint=f"Use a smaller --batch-size, at most {most:,}.",
        )
