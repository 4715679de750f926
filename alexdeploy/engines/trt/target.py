"""What an engine is built for: a GPU of this machine, or compute capabilities of cards that need not be here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alexdeploy.core.errors import UsageError
from alexdeploy.engines.trt.files import RTX_CAPABILITIES, BuildOptions, sm
from alexdeploy.engines.trt.library import Library
from alexdeploy.engines.trt.own_thread import in_own_thread

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What an engine is built for. `index` is the GPU in whose context it is built; None if no GPU is needed."""

    name: str
    compute_capabilities: tuple[tuple[int, int], ...]
    cuda: str
    index: int | None

    def run(self, work: Callable[[], _Result], cancel: Callable[[], None] = lambda: None) -> _Result:
        """Call `work` in a thread of its own; an interrupt calls `cancel` and waits for its end."""
        if self.index is None:
            return in_own_thread(work, cancel=cancel)
        from alexdeploy.engines.trt.context import on_gpu

        return on_gpu(self.index, work, cancel)


def find_target(library: Library, options: BuildOptions) -> Target:
    """Raises UsageError for a compute capability that the library does not build for, DeviceError without a GPU."""
    if library.needs_gpu:
        # Only GPUs need pycuda.
        from alexdeploy.engines.trt.context import find_gpu

        gpu = find_gpu(options.device)
        return Target(name=gpu.name, compute_capabilities=(gpu.compute_capability,), cuda=gpu.cuda, index=gpu.index)
    known = library.known_capabilities()
    asked = _capabilities(("rtx",) if options.targets is None else options.targets)
    unknown = [sm(each) for each in asked if each not in known]
    if unknown or not asked:
        raise UsageError(
            f"{library} does not build for {', '.join(unknown) or 'no card'}",
            hint=f"It builds for: {', '.join(sm(each) for each in sorted(known))}",
        )
    return Target(name="NVIDIA RTX", compute_capabilities=asked, cuda="", index=None)


def _capabilities(words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Compute capabilities in ascending order, of words like "sm86" and "rtx". Raises UsageError for any other word."""
    found: set[tuple[int, int]] = set()
    for word in words:
        digits = re.fullmatch(r"sm_?(\d+)(\d)", word.strip().lower())
        if digits is not None:
            found.add((int(digits[1]), int(digits[2])))
        elif word.strip().lower() == "rtx":
            found.update(RTX_CAPABILITIES)
        else:
            raise UsageError(f"--for: found {word!r}, expected rtx, or compute capabilities such as sm86 and sm120")
    return tuple(sorted(found))
