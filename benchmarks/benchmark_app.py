"""OpenVINO's own benchmark_app, which comes with its wheel, on the very graph that our engine runs, in its shapes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.process import WITHOUT_TELEMETRY

FORMS = ("throughput hint", "a stream for each thread")
"""How it is told to use the machine: as its documentation advises for throughput, and as our engine does."""

_TIMES_LONGER = 4
"""Its figure has the time at the end in which not every stream is busy, ours each stream's own: that time is then a
small part."""


def images_per_second(graph: Path, precision: str, batch: Path, num_threads: int, seconds: float, form: str) -> float:
    """One run in a process of its own, four times as long as one of ours; loading and compiling are not in the figure.

    `batch` is a .npy file of uint8 [N, 256, 256, 3], N being the images that our engine computes at once. What is timed
    is inference alone, without filling inputs.
    """
    environment = os.environ | WITHOUT_TELEMETRY
    command = command_line(graph, precision, batch, num_threads, seconds, form)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Throughput:\s+([0-9.]+) FPS", run.stdout)
    if found is None:
        raise SystemExit(
            f"benchmark_app gave no throughput (exit code {run.returncode}):\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )
    return float(found[1])


def command_line(graph: Path, precision: str, batch: Path, num_threads: int, seconds: float, form: str) -> list[str]:
    import numpy as np

    from alexdeploy.engines.openvino import precision_hint
    from alexdeploy.engines.openvino_library import cpu_capabilities, ov

    command = [sys.executable, "-c", "from openvino.tools.benchmark.main import main; main()"]
    command += [
        "-m",
        str(graph),
        "-d",
        "CPU",
        "-inference_only",
        "True",
        "-t",
        f"{max(1, round(_TIMES_LONGER * seconds))}",
    ]
    if form == "throughput hint":
        command += ["-hint", "throughput"]
    else:
        command += ["-hint", "none", "-nstreams", str(num_threads), "-nthreads", str(num_threads)]
    # Left to itself it takes bfloat16 for FP32 where the CPU has it.
    command += ["-infer_precision", precision_hint(cpu_capabilities(ov.Core()), precision)]
    shape = np.load(batch, mmap_mode="r").shape
    return [*command, "-i", str(batch), "-shape", f"[{','.join(map(str, shape))}]", "-layout", "[NHWC]"]
