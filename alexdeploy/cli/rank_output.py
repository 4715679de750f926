"""Several processes of one command, of which the user hears one."""

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
    """Let one process of each machine be heard, until `one_voice` knows better."""
    launch = launched()
    if launch is not None and launch.local_rank:
        _be_silent()


@contextlib.contextmanager
def one_voice(device: str | None) -> Iterator[ProcessGroup | None]:
    """Join the processes that torchrun has started to train on `device`; None if it has not started any.

    Rank 0 is heard, and of processes that fail the first one: the others mostly fail because of that.
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
        # torchrun sends it to all when one has failed. This one ends anyway, and has something to say.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _tell_torchrun(error)
        is_first = launch.local_rank == 0 if group is None else group.is_first_to_fail()
        # Also for what comes outside: that is where errors are printed.
        if is_first:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        else:
            _be_silent()
        raise


def _tell_torchrun(error: Exception) -> None:
    """Leave the reason for the summary with which torchrun ends, which would say where to read about such reasons."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is not None and isinstance(error, AlexDeployError):
        message = {"message": error.text, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}))


def _be_silent() -> None:
    # Not the file descriptors: what libraries say when they crash is for everybody.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
