"""The first inferences of several threads."""

from __future__ import annotations

import subprocess
import sys

from patience import PATIENCE

_THREADS = """
import sys, threading
sys.setswitchinterval(1e-6)
from alexdeploy.engines.openvino_library import ov
together = threading.Barrier(4)
def ask():
    together.wait()
    ov.Type.u8.to_dtype()
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_begin_together_do_not_wait_for_each_other() -> None:
    subprocess.run([sys.executable, "-c", _THREADS], check=True, timeout=PATIENCE)
