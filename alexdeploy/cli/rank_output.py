"""Output of several processes of one command: the user sees that of one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.training.torchrun import launched

if TYPE_CHECKING:
    from alexdeploy.training.parallel import ProcessGroup


def silence_nonzero_ranks() -> None:
    """Let one process per machine print, until `one_voice` takes over."""
    launch = launched()
    if launch is not None and launch.local_rank:
        _be_silent()


@contextlib.contextmanager
def one_voice(device: str | None) -> Iterator[ProcessGroup | None]:
    """Join the processes that torchrun has started to train on `device`; None if it has not started any.

    Rank 0 prints. Of failing processes only the first prints, since the others mostly fail because of it.
    """
    launch = launched()
    if launch is None:
        yield None
        return
    from alexdeploy.training.parallel import process_group

    if launch.rank:
        _be_silent()
    group = None
    try:
        with process_group(device) as group:
            yield group
    except Exception as error:
        # torchrun sends it to all processes when one has failed. This one ends anyway, and has an error to print.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _tell_torchrun(error)
        is_first = launch.local_rank == 0 if group is None else group.is_first_to_fail()
        # This outlasts the block, because errors are printed outside it.
        if is_first:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        else:
            _be_silent()
        raise


def _tell_torchrun(error: Exception) -> None:
    """Write the reason to the file that torchrun prints at its end, instead of a hint on where to find reasons."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is not None and isinstance(error, AlexDeployError):
        message = {"message": error.text, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}))


def _be_silent() -> None:
    # Python's streams only: messages of crashing libraries go to the file descriptors and stay visible.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
