"""A real Triton, with the deployment graph in ONNX Runtime in its Python backend, against `alexdeploy serve`.

The package nvidia-pytriton brings Triton with that backend, and needs another NumPy than alexdeploy may have here:

    python -m venv triton && triton/bin/pip install nvidia-pytriton==0.7.0 onnxruntime pillow
    python -m benchmarks PHOTOGRAPHS --judge MODEL --parts triton --triton triton
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from alexdeploy import ModelFolder
from alexdeploy.serving.triton.repository import TritonOptions, write_triton_repository
from benchmarks.load import Load, send
from benchmarks.process import take_turns
from benchmarks.server import Server, free_port, open_server, write_requests
from benchmarks.serving import ServingOptions

Say = Callable[[str], None]

NUM_CLIENTS = (1, 16)


def measure_triton(
    folder: ModelFolder, environment: Path, workspace: Path, options: ServingOptions, say: Say
) -> dict[str, Any]:
    """CPU milliseconds of each server for a request with the pixels of one image, for each number of clients.

    Both have batches of 8 images and wait 2 ms for them, one session of ONNX Runtime and all processors.
    """
    repository = workspace / "triton" / "repository"
    write_triton_repository(folder, repository, TritonOptions(backend="python", jpeg=False))
    graph = f"{folder.path.name}_graph"
    turns: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        for name, model, server in (
            ("serve", folder.path.name, open_server(folder, 1, "--backend", "onnxruntime")),
            ("triton", graph, open_triton(environment, repository, graph, workspace / "triton")),
        ):
            stack.enter_context(server)
            files = write_requests(folder, options.files, workspace / "triton" / name, model=model)["pixels"]
            for count in NUM_CLIENTS:
                load = Load(port=server.port, files=files, seconds=options.seconds, num_clients=count)
                turns[f"{name} {count}"] = partial(_cost_ms, server, load)
        say("triton: warming up")
        for turn in turns.values():
            turn()
        figures = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"triton, {text}"))
    return {
        "model": folder.spec().name,
        "num_rounds": options.num_rounds,
        "version": _version(environment),
        "server_ms": figures,
    }


def open_triton(environment: Path, repository: Path, model: str, workspace: Path) -> Server:
    """Triton of the virtual environment `environment`, which has nvidia-pytriton, with one model of a repository."""
    environment = environment.absolute()
    site = _site_packages(environment)
    triton = site / "pytriton" / "tritonserver"
    backends = workspace / "backends"
    shutil.copytree(triton / "backends", backends)
    # One for each version of Python; the backend looks for it beside itself.
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy(triton / "python_backend_stubs" / site.parent.name.removeprefix("python") / stub.name, stub)
    stub.chmod(0o755)
    port = free_port()
    command = [
        *(str(triton / "bin" / "tritonserver"), f"--model-repository={repository}"),
        *(f"--backend-directory={backends}", "--model-control-mode=explicit", f"--load-model={model}"),
        *("--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"),
    ]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    libraries = (sysconfig.get_config_var("LIBDIR"), site / "nvidia_pytriton.libs")
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    variables["VIRTUAL_ENV"] = str(environment)
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return Server(command, port, model, variables)


def _site_packages(environment: Path) -> Path:
    """Where its packages are. Raises SystemExit if nvidia-pytriton is not among them."""
    for site in (environment / "lib").glob("python3*/site-packages"):
        if (site / "pytriton" / "tritonserver").is_dir():
            return site
    raise SystemExit(f"--triton {environment}: no virtual environment with nvidia-pytriton")


def _version(environment: Path) -> str:
    [found] = distributions(name="nvidia-pytriton", path=[str(_site_packages(environment))])
    return found.version


def _cost_ms(server: Server, load: Load) -> float:
    began = server.cpu_seconds()
    answers = send(load)
    seconds = server.cpu_seconds() - began
    if set(answers.statuses) != {200}:
        raise SystemExit(f"the server gives {answers.statuses}")
    return 1e3 * seconds / len(answers.latencies_ms)
