#!/usr/bin/env python3
"""Install the wheel into fresh environments, Python by Python and extra by extra, and run commands from it.

    .ci/matrix.py                                                     # base, on those of 3.10 to 3.13 that exist
    .ci/matrix.py --pythons python3.10,python3.12 --extras all --logs build/matrix

Each environment is made with venv, gets WHEEL[EXTRA] by pip without constraints, as a user does who has read nothing,
and is deleted after its commands. These run in a folder of their own with a home of its own, and the checkout is not on
their path. What they need besides (a small model, its features, MATLAB's weights) is made once by this interpreter,
which must have [cpu,train,dev]. Prints a table; ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import email
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--recipe alexnet-quarter --epochs 1 --set architecture.width=0.0625 --set architecture.hidden=[256,256]"
PREDICT = "alexdeploy predict images/ --tencrop"
USER = ("alexdeploy train", "alexdeploy export --fp16", PREDICT)
"""The three commands of the README."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run: `empty` in an empty folder, `alone` in one with the material, `more` once `beside` is there too.

    A command has to succeed, or is "CODE PATTERN: command": the exit code, and what its output has to contain.
    """

    empty: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    beside: str = ""
    more: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    """Packages whose versions are in the table."""
    since: tuple[int, ...] = ()
    """The first Python for which the extra brings something."""


CASES = {
    "base": Case(
        empty=("alexdeploy sample other", r"2 \[train\]: alexdeploy train"),
        alone=("alexdeploy inspect tiny", "alexdeploy figures tiny", r"2 \[cpu\]: " + PREDICT),
        shows=("numpy", "onnx", "pillow", "protobuf"),
    ),
    "cpu": Case(
        alone=(
            PREDICT,
            "alexdeploy verify tiny labelled",
            "alexdeploy export --int8 --calibrate labelled --max-drop 100",
        ),
        shows=("openvino", "onnxruntime"),
    ),
    "train": Case(empty=USER, shows=("torch", "onnxscript", "onnxruntime")),
    "rtx": Case(
        alone=("alexdeploy build --backend tensorrt-rtx --for sm86",),
        shows=("tensorrt-rtx-cu13-libs",),
    ),
    "gpu": Case(alone=("alexdeploy devices", PREDICT), shows=("tensorrt", "onnxruntime-gpu", "pycuda")),
    "parquet": Case(
        alone=(rf"2 \[cpu\]: {PREDICT} -o rows.parquet",),
        beside="cpu",
        more=(f"{PREDICT} -o rows.parquet",),
        shows=("pyarrow",),
    ),
    "similar": Case(alone=("alexdeploy similar images/arrow-01.jpg --in features.npy",), shows=("faiss-cpu",)),
    "report": Case(
        alone=(r"2 \[cpu\]: alexdeploy evaluate labelled --html page.html",),
        beside="cpu",
        more=("alexdeploy evaluate labelled --html page.html --plots plots",),
        shows=("matplotlib",),
    ),
    "mlflow": Case(empty=(r"2 \[train\]: alexdeploy train --logger mlflow",), shows=("mlflow-skinny",)),
    "matlab": Case(
        alone=("alexdeploy import theirs-v5.mat", "alexdeploy import theirs-v7.3.mat"),
        shows=("scipy", "h5py"),
    ),
    "s3": Case(beside="cpu", more=("s3",), shows=("s3fs",)),
    # Stores that nobody serves here: the library is loaded and asked, and what it says is the error of a row.
    "gcs": Case(
        beside="cpu",
        more=("3 rror: STORAGE_EMULATOR_HOST=http://127.0.0.1:9 alexdeploy predict gs://photographs/a.jpg",),
        shows=("gcsfs",),
    ),
    "azure": Case(
        beside="cpu",
        more=("3 rror: AZURE_STORAGE_ACCOUNT_NAME=nobody alexdeploy predict az://photographs/a.jpg",),
        shows=("adlfs",),
    ),
    "ray": Case(beside="cpu", more=("alexdeploy predict images/ --ray local -o parts/",), shows=("ray",)),
    "sbom": Case(beside="cpu", more=("sbom",), shows=("cyclonedx-bom",)),
    "docs": Case(empty=("site",), shows=("zensical",), since=(3, 11)),
    "serve": Case(beside="cpu", more=("serve",), shows=("starlette", "uvicorn", "grpcio", "tritonclient")),
    "dev": Case(empty=("lint", "build"), shows=("pytest", "ruff", "mypy", "import-linter")),
    "everything": Case(
        empty=USER,
        alone=(f"{PREDICT} -o rows.parquet", "mlflow", "serve", "s3", "sbom", "pytest"),
        shows=("torch", "openvino", "onnxruntime", "numpy"),
    ),
}
SCRIPTS = {
    # A photograph over HTTP, and one over gRPC by Triton's client.
    "serve": """alexdeploy serve tiny --port $PORT --grpc-port $GRPC_PORT & server=$!
        trap 'kill -KILL $server 2>/dev/null || true' EXIT
        curl --silent --show-error --fail --retry 60 --retry-connrefused --retry-delay 1 \\
            --data-binary @images/arrow-01.jpg http://127.0.0.1:$PORT/predict
        python -c "
import os, pathlib, numpy, tritonclient.grpc as triton
photographs = triton.InferInput('images', [1], 'BYTES')
photographs.set_data_from_numpy(numpy.array([pathlib.Path('images/arrow-01.jpg').read_bytes()], dtype=object))
client = triton.InferenceServerClient('127.0.0.1:' + os.environ['GRPC_PORT'])
print(client.infer('tiny', [photographs]).as_numpy('label'))"
        kill -TERM $server && wait $server""",
    # Its packages are those that pip lists.
    "sbom": """alexdeploy doctor --sbom bill.cdx.json
        pip list --format json > listed.json
        python -c "
import json
bill, listed = (json.load(open(name)) for name in ('bill.cdx.json', 'listed.json'))
named = {(part['name'].lower(), part['version']) for part in [bill['metadata']['component'], *bill['components']]}
missing = {(part['name'].lower(), part['version']) for part in listed} - named
print('missing:', missing)
raise SystemExit(bool(missing))" """,
    "mlflow": f"""alexdeploy train {SMALL} --name logged --logger mlflow
        python -c "
import mlflow
runs = mlflow.MlflowClient().search_runs([mlflow.MlflowClient().get_experiment_by_name('alexdeploy').experiment_id])
print([(run.info.status, run.data.metrics) for run in runs])
raise SystemExit([run.info.status for run in runs] != ['FINISHED'] or not runs[0].data.metrics)" """,
    # What make site does, from the sdist.
    "site": """tar -xf $SDIST --strip-components 1
        make pages BIN=$(dirname $(command -v zensical))
        test -s build/site/index.html""",
    # A store on loopback, in a process of our own interpreter.
    "s3": """PYTHONPATH=$ROOT $OURS -m benchmarks.store_server images 0 > port & store=$!
        trap 'kill $store' EXIT
        until [ -s port ]; do sleep 0.1; done
        export AWS_ENDPOINT_URL=http://127.0.0.1:$(cat port) AWS_ACCESS_KEY_ID=none AWS_SECRET_ACCESS_KEY=none
        alexdeploy predict s3://photographs/""",
    # The package and its tests are those of the sdist. They need torch.
    "pytest": """tar -xf $SDIST --strip-components 1
        python -m pytest -q -p no:cacheprovider tests/core tests/images""",
    "lint": """tar -xf $SDIST --strip-components 1
        ruff check .
        lint-imports""",
    "build": """python -m build --no-isolation
        python -m twine check --strict dist/*""",
}


@dataclasses.dataclass(frozen=True)
class Result:
    row: tuple[str, ...]
    right: bool


@dataclasses.dataclass(frozen=True)
class Packages:
    """Wheel and sdist, and the extras that the wheel names."""

    wheel: Path
    sdist: Path
    extras: tuple[str, ...]

    @classmethod
    def found(cls, folder: Path) -> Packages:
        wheel, sdist = next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            extras = email.message_from_bytes(archive.read(name)).get_all("Provides-Extra") or []
        return cls(wheel, sdist, tuple(extras))


def make_material(folder: Path) -> None:
    """Models, photographs and files for the commands, made by the alexdeploy beside this interpreter."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    alexdeploy = f"{sys.executable} -m alexdeploy"
    mat = "import sys, pathlib, caffe_files, matlab_files as m; n = m.network(caffe_files.weights()); "
    mat += "pathlib.Path('theirs-v5.mat').write_bytes(m.version_5(n)); "
    mat += "pathlib.Path('theirs-v7.3.mat').write_bytes(m.version_7_3(n))"
    script = f"""set -e
    {alexdeploy} train {SMALL} --name tiny
    {alexdeploy} export tiny --fp16
    {alexdeploy} embed images/ --model tiny -o features.npy
    for label in data/sample/val/*/; do
        mkdir -p labelled/$(basename $label) && cp $(ls $label* | head -4) labelled/$(basename $label)
    done
    rm -r data models/tiny/checkpoints
    {sys.executable} -c "{mat}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"no material: {done.stderr}\n(run it with the Python of `make setup`, which has [cpu,train,dev])")


def version_of(python: str) -> str | None:
    """As "3.12.1"; None if there is no such interpreter."""
    if shutil.which(python) is None:
        return None
    done = subprocess.run([python, "-c", "import platform; print(platform.python_version())"], capture_output=True)
    return done.stdout.decode().strip() if done.returncode == 0 else None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]


class Environment:
    """A fresh environment of one Python, and a folder to run commands in. All of it is in `scratch`."""

    def __init__(self, python: str, scratch: Path, log: Path, sdist: Path) -> None:
        self._environment, self.folder, self._log = scratch / "environment", scratch / "folder", log
        (scratch / "home").mkdir()
        self.folder.mkdir()
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG_", "AWS_"))}
        self._variables = {
            **keep,
            "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip")),
            "HOME": str(scratch / "home"),
            "PATH": f"{self._environment / 'bin'}:{os.environ['PATH']}",
            **{"ROOT": str(ROOT), "OURS": sys.executable, "SDIST": str(sdist)},
            **dict(zip(("PORT", "GRPC_PORT"), map(str, free_ports(2)), strict=True)),
        }
        log.write_text("")
        self.run(f"{python} -m venv {self._environment}")
        self._bare = self._bytes()

    def run(self, command: str) -> tuple[int, str]:
        """Exit code, and what it printed."""
        words = ["bash", "-c", command]
        done = subprocess.run(
            words, cwd=self.folder, env=self._variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        with self._log.open("a") as log:
            log.write(f"$ {command}\n{done.stdout}[exit {done.returncode}]\n")
        return done.returncode, done.stdout

    def megabytes(self) -> float:
        """What was installed since the environment was made."""
        return (self._bytes() - self._bare) / 1e6

    def versions(self, names: tuple[str, ...]) -> str:
        listed = self.run("pip list --disable-pip-version-check --format freeze")[1]
        found = {line.split("==")[0].lower(): line.split("==")[1] for line in listed.splitlines() if "==" in line}
        return ", ".join(f"{name} {found.get(name) or found.get(name.replace('-', '_'), 'missing')}" for name in names)

    def _bytes(self) -> int:
        return sum(file.lstat().st_size for file in self._environment.rglob("*") if not file.is_dir())


def outcome_of(command: str, environment: Environment) -> tuple[str, bool]:
    """The command's name with what was not success, and whether that was right."""
    expected = re.fullmatch(r"(\d+) (\S+): (.*)", command)
    code, pattern, line = (int(expected[1]), expected[2], expected[3]) if expected else (0, "", command)
    found, text = environment.run(f"set -e\n{SCRIPTS[line]}" if line in SCRIPTS else line)
    name = re.sub(r"^(\S+=\S+ )*alexdeploy (--)?(\S+).*", r"\3", line)
    if found != code or re.search(pattern, text) is None:
        return f"{name} FAILED (exit {found})", False
    return f"{name} (exit {code}, as it should)" if code else name, True


def run_cell(python: str, extra: str, packages: Packages, installer: str, material: Path, log: Path) -> Result:
    """Make one environment, run its commands, delete it."""
    case, start = CASES.get(extra, Case()), time.monotonic()
    wanted = {"base": [], "everything": [name for name in packages.extras if name != "gpu"]}.get(extra, [extra])
    with tempfile.TemporaryDirectory() as scratch:
        environment = Environment(python, Path(scratch), log, packages.sdist)
        outcomes: list[tuple[str, bool]] = []

        def install(extras: list[str]) -> bool:
            target = f"{packages.wheel}[{','.join(extras)}]" if extras else str(packages.wheel)
            code, text = environment.run(f"{installer} '{target}'")
            if code:
                outcomes.append((f"pip install FAILED: {text.strip().splitlines()[-1][:200]}", False))
            return code == 0

        def run(*commands: str) -> None:
            outcomes.extend(outcome_of(command, environment) for command in commands)

        check = megabytes = versions = ""
        if install(wanted):
            megabytes = f"{environment.megabytes():,.0f}"
            versions = environment.versions(case.shows)
            check = "ok" if environment.run("pip check")[0] == 0 else "FAILED"
            run("alexdeploy --version", *case.empty)
            shutil.rmtree(environment.folder)
            shutil.copytree(material, environment.folder)
            run(*case.alone)
            if case.more and install([*wanted, case.beside]):
                outcomes.append((f"with `{case.beside}`:", True))
                run(*case.more)
    right = check == "ok" and all(right for _, right in outcomes)
    names = ", ".join(name for name, _ in outcomes).replace(":,", ":")
    seconds = f"{time.monotonic() - start:.0f}"
    return Result(row=(extra, versions, megabytes, check, names, seconds), right=right)


def main() -> int:
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--pythons", default="python3.10,python3.11,python3.12,python3.13", help="separated by commas")
    about.add_argument(
        "--extras", default="base", help="base, names of extras, everything; all: each of these, but gpu"
    )
    about.add_argument("--dist", type=Path, help="folder with wheel and sdist; default: built from HEAD by .ci/build")
    about.add_argument(
        "--installer",
        default="pip install --quiet --disable-pip-version-check",
        help='what installs; quicker: "uv pip install --quiet --python ../environment"',
    )
    about.add_argument("--material", type=Path, help="folder for it, used as it is if it exists; default: temporary")
    about.add_argument(
        "--logs", type=Path, default=ROOT / "build/matrix", help="what the commands printed, a file a row"
    )
    options = about.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        dist = options.dist or Path(folder, "dist")
        if options.dist is None:
            subprocess.run([ROOT / ".ci/build", dist], check=True, env={**os.environ, "PYTHON": sys.executable})
        packages = Packages.found(dist.resolve())
        names = options.extras.split(",")
        if names == ["all"]:
            names = ["base", *(name for name in packages.extras if name != "gpu"), "everything"]
        material = options.material or Path(folder, "material")
        if not material.exists():
            make_material(material)
        print("| Python | extra | versions | MB | pip check | commands | s |\n|---|---|---|---|---|---|---|")
        for python in options.pythons.split(","):
            version = version_of(python)
            if version is None:
                print(f"| {python} | | | | | skipped: there is no such interpreter | |")
                continue
            for extra in names:
                since = CASES[extra].since if extra in CASES else ()
                if tuple(map(int, version.split(".")[:2])) < since:
                    print(f"| {version} | {extra} | | | | skipped: from Python {'.'.join(map(str, since))} on | |")
                    continue
                result = run_cell(
                    python, extra, packages, options.installer, material, options.logs / f"{version}-{extra}.log"
                )
                results.append(result)
                print("| " + " | ".join((version, *result.row)) + " |", flush=True)
    return 0 if results and all(result.right for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
