"""A real Triton on a repository of `alexdeploy triton`: answers against `predict`, broken files, two versions.

    python -m venv triton && triton/bin/pip install nvidia-pytriton==0.7.0 onnxruntime==1.31.1 pillow==13.0.0
    python tests/triton_checks.py triton MODEL PHOTOGRAPHS [--views 10]

The package nvidia-pytriton brings Triton with its Python backend, and needs another NumPy than the tests. onnxruntime
and pillow are to be of the versions here. MODEL has model.onnx and model.fp16.onnx. Ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http

from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images.decode import decode
from alexdeploy.serving.triton.repository import TritonOptions, write_triton_repository

SECONDS_TO_START = 120
BATCH = 8
NUM_CLIENTS = 16


class Triton:
    """The server on a repository that it polls every second; a context manager."""

    def __init__(self, environment: Path, repository: Path, folder: Path) -> None:
        site = next((environment / "lib").glob("python3*")) / "site-packages"
        server = site / "pytriton" / "tritonserver"
        backends = folder / "backends"
        shutil.copytree(server / "backends", backends)
        stub = backends / "python" / "triton_python_backend_stub"
        shutil.copy(server / "python_backend_stubs" / site.parent.name.removeprefix("python") / stub.name, stub)
        stub.chmod(0o755)
        self.ports = [_free_port() for _ in range(2)]
        self._words = [
            *(str(server / "bin" / "tritonserver"), f"--model-repository={repository}"),
            *(f"--backend-directory={backends}", "--model-control-mode=poll", "--repository-poll-secs=1"),
            *("--http-address=127.0.0.1", f"--http-port={self.ports[0]}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={self.ports[1]}", "--allow-metrics=false"),
        ]
        os.chmod(self._words[0], 0o755)
        libraries = (sysconfig.get_config_var("LIBDIR"), site / "nvidia_pytriton.libs")
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "VIRTUAL_ENV": str(environment),
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        self._log = folder / "triton.log"

    def __enter__(self) -> Triton:
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(self._words, env=self._environment, stdout=log, stderr=log)
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/v2/health/ready", timeout=5)
                return self
            except OSError:
                time.sleep(0.5)
        self._process.kill()
        raise SystemExit(self._log.read_text(errors="replace"))

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(kind: Any, client: Any, model: str, data: np.ndarray, version: str = "") -> Any:
    """One request with the module and a client of it."""
    images = kind.InferInput("images", list(data.shape), "BYTES" if data.dtype == object else "UINT8")
    images.set_data_from_numpy(data)
    return client.infer(model, [images], model_version=version)


def expected_answers(folder: ModelFolder, precision: Any, views: Any, pixels: np.ndarray, size: int) -> np.ndarray:
    """The probabilities of `predict` in batches of `size`: the last bits depend on that."""
    options = EngineOptions(precision=precision, num_views=views, batch_size=size)
    with open_engine(folder, "onnxruntime", options) as engine:
        parts = [engine.run(pixels[at : at + size]).probabilities for at in range(0, len(pixels), size)]
    return np.concatenate(parts)


class Checks:
    def __init__(self) -> None:
        self.num_failed = 0

    def report(self, passed: bool, text: str) -> None:
        self.num_failed += not passed
        print("ok    " if passed else "FAILED", text, flush=True)


def check_answers(checks: Checks, clients: Any, name: str, sent: dict[str, np.ndarray], want: dict[int, Any]) -> None:
    """Both protocols, files and pixels, one image in a request and several."""
    for (protocol, kind, client), (model, data) in ((c, s) for c in clients for s in sent.items()):
        for size, expected in want.items():
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            found = np.concatenate([ask(kind, client, model, part).as_numpy("probabilities") for part in parts])
            error = np.abs(found - expected).max()
            text = f"{protocol} {model}, {size} in a request: {len(found)} answers, off by {error:g}"
            checks.report(bool(np.array_equal(found, expected)), text)


def check_broken(checks: Checks, address: str, name: str, files: np.ndarray) -> None:
    """Every tenth file is cut, and sent among the others by several clients."""

    def send(index: int) -> str:
        file = files[index, 0][: 2000 if index % 10 == 0 else None]
        try:
            ask(grpc, grpc.InferenceServerClient(address), name, np.array([[file]], object))
        except grpc.InferenceServerException as exc:
            return str(exc.status())
        return "answered"

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        found = list(pool.map(send, range(len(files))))
    right = ["StatusCode.INVALID_ARGUMENT" if index % 10 == 0 else "answered" for index in range(len(files))]
    checks.report(found == right, f"{NUM_CLIENTS} clients, every tenth file is cut: {dict(Counter(found))}")


def check_switch(checks: Checks, address: str, name: str, files: np.ndarray, old: Any, new: Any, write: Any) -> None:
    """A second version is written while one client asks without a pause."""
    client, seen, index = grpc.InferenceServerClient(address), Counter[str](), 0
    end = time.monotonic() + SECONDS_TO_START
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while time.monotonic() < end and seen["new"] < len(files):
            which = index % len(files)
            try:
                found = ask(grpc, client, name, files[which : which + 1]).as_numpy("probabilities")[0]
                known = [word for word, of in (("old", old), ("new", new)) if np.array_equal(found, of[which])]
                seen[known[0] if known else "other"] += 1
            except grpc.InferenceServerException as exc:
                seen[str(exc)] += 1
            index += 1
        writing.result()
    checks.report(seen.keys() == {"old", "new"}, f"answers while a second version appears: {dict(seen)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument, kind in (("environment", Path), ("model", str), ("photographs", Path)):
        parser.add_argument(argument, type=kind)
    parser.add_argument("--views", type=int, default=1, choices=(1, 5, 10))
    parser.add_argument("--num-images", type=int, default=100)
    given = parser.parse_args()
    folder = find_model(given.model)
    paths = sorted(given.photographs.rglob("*.jpg"))
    paths = paths[:: max(1, len(paths) // given.num_images)][: given.num_images]
    files = np.array([[path.read_bytes()] for path in paths], object)
    pixels = np.stack([decode(file, folder.spec().preprocessing.resize) for (file,) in files])
    of_fp32 = {size: expected_answers(folder, "fp32", given.views, pixels, size) for size in (1, BATCH)}
    of_fp16 = expected_answers(folder, "fp16", given.views, pixels, 1)
    name, checks = folder.path.resolve().name, Checks()

    def write(version: int, precision: Any) -> None:
        options = TritonOptions(backend="python", num_views=given.views, version=version, precision=precision)
        write_triton_repository(folder, repository, options)

    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary) / "repository"
        write(1, "fp32")
        with Triton(given.environment.resolve(), repository, Path(temporary)) as triton:
            addresses = [f"127.0.0.1:{port}" for port in triton.ports]
            clients = [
                ("http", http, http.InferenceServerClient(addresses[0])),
                ("grpc", grpc, grpc.InferenceServerClient(addresses[1])),
            ]
            check_answers(checks, clients, name, {name: files, f"{name}_graph": pixels}, of_fp32)
            check_broken(checks, addresses[1], name, files)
            check_switch(checks, addresses[1], name, files, of_fp32[1], of_fp16, lambda: write(2, "fp16"))
            for version, expected in (("1", of_fp32[1]), ("2", of_fp16)):
                asked = (ask(grpc, clients[1][2], f"{name}_graph", image[None], version) for image in pixels)
                found = np.stack([answer.as_numpy("probabilities")[0] for answer in asked])
                checks.report(bool(np.array_equal(found, expected)), f"version {version} of {name}_graph")
    sys.exit(bool(checks.num_failed))


if __name__ == "__main__":
    main()
