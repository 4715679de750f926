from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import HANG

from alexdeploy.core.events import Status
from alexdeploy.core.packages import package_version
from alexdeploy.diagnosis import doctor, gpu_checks
from alexdeploy.diagnosis.doctor import examine
from alexdeploy.diagnosis.gpu_checks import Finding, judge_driver, judge_gpu_backends, judge_libcuda
from alexdeploy.diagnosis.gpu_errors import (
    explain_onnxruntime,
    explain_pycuda,
    explain_tensorrt,
    missing_library,
    supported_capabilities,
)
from alexdeploy.diagnosis.package_check import PROBES, PackageCheck, run_probe
from alexdeploy.placement.devices import GpuSurvey, survey_gpus


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    """This machine as it is."""
    return {finding.name: finding for finding in examine()}


def test_every_subject_is_examined(findings: dict[str, Finding]) -> None:
    names = "python,processors,memory,disk models,disk cache,openvino,onnxruntime,torch,driver,libcuda,tensorrt,pycuda"
    assert {*names.split(","), "onnxruntime-gpu", "matplotlib", "pyarrow"} <= set(findings)


def test_whatever_is_wrong_has_a_cure(findings: dict[str, Finding]) -> None:
    for finding in findings.values():
        assert finding.found
        assert finding.status in ("ok", "warning", "problem", "absent")
        assert finding.status != "problem" or finding.hint, finding


def test_an_installed_backend_is_really_imported(findings: dict[str, Finding]) -> None:
    for name in ("openvino", "onnxruntime", "torch"):
        if importlib.util.find_spec(name) is not None:
            # A CPU build of torch beside a GPU is a warning.
            assert findings[name].status in ("ok", "warning")
            assert findings[name].found.startswith(str(package_version(name)).split("-")[0])


@pytest.mark.skipif(bool(survey_gpus().devices) or doctor.has_nvidia_board(), reason="this machine has a GPU")
def test_what_is_of_a_gpu_is_absent_and_no_problem_where_there_is_none(findings: dict[str, Finding]) -> None:
    assert findings["driver"] == Finding(name="driver", status="absent", found="no NVIDIA GPU here")
    statuses = {findings[name].status for name in ("libcuda", "tensorrt", "pycuda", "onnxruntime-gpu")}
    assert not statuses & {"problem"}


@pytest.mark.gpu
@pytest.mark.skipif(not survey_gpus().devices, reason="needs an NVIDIA GPU and nvidia-ml-py")
def test_the_driver_and_each_gpu_are_found(findings: dict[str, Finding]) -> None:
    assert findings["driver"].status == "ok"
    assert findings["libcuda"].status == "ok"
    for device in survey_gpus().devices:
        assert device.uuid in findings[str(device)].found


def test_a_probe_tells_its_facts_whatever_else_is_printed() -> None:
    probe = run_probe("print('noise'); facts['answer'] = 42; facts['gpu'] = has_gpu", has_gpu=True)
    assert probe == PackageCheck(facts={"answer": 42, "gpu": True})


def test_a_probe_that_raises_keeps_what_it_found_before() -> None:
    probe = run_probe("facts['answer'] = 42\nimport nothing_of_this_name")
    assert dict(probe.facts) == {"answer": 42}
    assert probe.error == "ModuleNotFoundError: No module named 'nothing_of_this_name'"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL"])
def test_a_probe_that_crashes_is_survived(name: str) -> None:
    probe = run_probe(f"import os, signal\nfacts['answer'] = 42\nos.kill(os.getpid(), signal.{name})")
    assert (dict(probe.facts), probe.error) == ({}, f"it ended its process ({name})")


def test_a_probe_that_leaves_without_a_word_is_survived() -> None:
    assert run_probe("import os; os._exit(7)").error == "it ended its process (exit code 7)"


def test_a_probe_that_hangs_is_ended() -> None:
    assert run_probe(f"import time; time.sleep({HANG})", timeout=0.5).error == "no answer in 0 s"


def test_a_probe_sees_the_packages_of_this_process_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("working", "listed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"only_{folder}.py").write_text("answer = 42")
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path] + [str(tmp_path / "listed")])
    assert run_probe("import only_listed; facts['answer'] = only_listed.answer").facts["answer"] == 42
    # A file in the working folder that is called like a package is not taken for it.
    assert "No module named 'only_working'" in str(run_probe("import only_working").error)


def test_a_package_that_crashes_when_it_is_imported_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "pycuda"):
        (tmp_path / f"{name}.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {finding.name: finding for finding in examine()}
    for name in ("tensorrt", "pycuda"):
        assert found[name].status in ("warning", "problem")
        assert "it ended its process (SIGABRT)" in found[name].found


# Messages as users report them: NVIDIA/TensorRT issues 308, 2913, 3936; mmdeploy 2594; onnxruntime 21769.
@pytest.mark.parametrize(
    ("error", "log", "meaning", "hint"),
    [
        (
            "ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory",
            "",
            "bindings are there, its libraries are not: libnvinfer.so.10",
            "'tensorrt==10.*'",
        ),
        (
            "ImportError: libcudnn.so.8: cannot open shared object file: No such file or directory",
            "",
            "it needs libcudnn.so.8",
            "nvidia-cudnn-cu12==8.*",
        ),
        (
            "ImportError: libcublas.so.12: cannot open shared object file: No such file or directory",
            "",
            "it needs libcublas.so.12",
            "pip install nvidia-cublas-cu12",
        ),
        ("ModuleNotFoundError: No module named 'tensorrt_bindings'", "", "its parts for Python 3.", "another"),
        ("ModuleNotFoundError: No module named 'tensorrt.tensorrt'", "", "its parts for Python 3.", "another"),
        ("AttributeError: module 'numpy' has no attribute 'bool'.", "", "does not work with numpy", "numpy<1.24"),
        (
            "TypeError: pybind11::init(): factory function returned nullptr",
            "[TRT] [W] CUDA initialization failure with error: 35. Please check your CUDA installation",
            "error 35: the driver is older",
            "Update the driver",
        ),
        ("TypeError: pybind11::init(): factory function returned nullptr", "", "cannot start CUDA", "driver"),
        ("ImportError: /usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.29' not found", "", "GLIBCXX_3.4.29", "too old"),
        ("it ended its process (SIGSEGV)", "", "SIGSEGV", "--force-reinstall"),
    ],
)
def test_errors_of_tensorrt_are_translated(error: str, log: str, meaning: str, hint: str) -> None:
    found = explain_tensorrt(error, log)
    assert meaning in found[0]
    assert hint in found[1]


@pytest.mark.parametrize(
    ("error", "log", "meaning", "hint"),
    [
        (
            None,
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared "
            "object file: No such file or directory",
            "its libraries are missing: libcublasLt.so.12",
            "nvidia-cublas-cu12",
        ),
        (
            None,
            "error: libcudnn.so.9: cannot open shared object file: No such file or directory",
            "libraries are missing: libcudnn.so.9",
            "nvidia-cudnn-cu12==9.*",
        ),
        (
            None,
            "error: libnppc.so.12: cannot open shared object file: No such file or directory",
            "libraries are missing: libnppc.so.12",
            "Install the CUDA libraries that it was built for, or put its folder on LD_LIBRARY_PATH: libnppc.so.12",
        ),
        (None, "Require cuDNN 9.* and CUDA 12.*, and the latest", "wants cuDNN 9.* and CUDA 12", "Install those"),
        ("RuntimeError: CUDA failure 100: no CUDA-capable device is detected", "", "error 100: no GPU", "VISIBLE"),
        (None, "", "it fell back to the CPU", "--force-reinstall"),
    ],
)
def test_errors_of_onnxruntime_are_translated(error: str | None, log: str, meaning: str, hint: str) -> None:
    found = explain_onnxruntime(error, log)
    assert meaning in found[0]
    assert hint in found[1]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "the driver is not"),
        ("ImportError: libcurand.so.10: cannot open shared object file: No such file", "built for another CUDA"),
        ("ModuleNotFoundError: No module named 'pycuda._driver'", "it was not built"),
        ("RuntimeError: cuInit failed: no CUDA-capable device is detected", "it imports, but no CUDA-capable device"),
        ("something else", "something else"),
    ],
)
def test_errors_of_pycuda_are_translated(error: str, meaning: str) -> None:
    assert meaning in explain_pycuda(error)[0]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("8.6.1", ((5, 0), (9, 0))),
        ("10.0.1", ((7, 0), (9, 0))),
        ("10.16.1.11", ((7, 5), None)),
        ("11.4.0.106", ((7, 5), None)),
    ],
)
def test_the_gpus_of_a_tensorrt_version_are_known(version: str, expected: object) -> None:
    assert supported_capabilities(version) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: libcuda.so.1: cannot open shared object file: No such file", "libcuda.so.1"),
        ("a\nwith error: libcublasLt.so.12: cannot open shared object file", "libcublasLt.so.12"),
        ("all is well", None),
    ],
)
def test_the_missing_library_is_found_in_a_message(text: str, expected: str | None) -> None:
    assert missing_library(text) == expected


@pytest.mark.parametrize(
    ("survey", "has_board", "status", "words"),
    [
        (GpuSurvey(problem="NVML: Driver Not Loaded", hint="Load it."), True, "problem", "is an NVIDIA GPU, but NVML"),
        (GpuSurvey(problem="NVML Shared Library Not Found"), False, "absent", "no NVIDIA GPU here"),
        (GpuSurvey(driver="580.1", cuda_version=(13, 0)), True, "ok", "580.1, runs CUDA up to 13.0"),
        (GpuSurvey(driver="580.1", problem="all are hidden", num_hidden=2), True, "warning", "580.1; all are hidden"),
        (GpuSurvey(driver="580.1", num_hidden=2), True, "ok", "580.1; CUDA_VISIBLE_DEVICES hides 2"),
    ],
)
def test_the_driver_is_judged_by_what_nvml_says(survey: GpuSurvey, has_board: bool, status: str, words: str) -> None:
    finding = judge_driver(survey, has_board=has_board)
    assert finding.status == status
    assert words in finding.found


@pytest.mark.parametrize(
    ("probe", "has_board", "status", "words"),
    [
        (PackageCheck(error="OSError: libcuda.so.1: cannot open shared object file"), False, "absent", "is not found"),
        (PackageCheck(error="OSError: libcuda.so.1: cannot open shared object file"), True, "problem", "is not found"),
        (PackageCheck(error="it ended its process (SIGSEGV)"), True, "problem", "SIGSEGV"),
        (PackageCheck(facts={"init": 0, "version": 12040, "count": 1}), True, "ok", "CUDA 12.4, 1 GPU"),
        (PackageCheck(facts={"init": 100, "version": 13000}), False, "absent", "error 100: no GPU is visible"),
        (PackageCheck(facts={"init": 802, "version": 13000}), True, "problem", "error 802: the GPUs' switch"),
        (PackageCheck(facts={"init": 12345}), True, "problem", "error 12345"),
    ],
)
def test_the_cuda_library_is_judged_by_what_it_answers(
    probe: PackageCheck, has_board: bool, status: str, words: str
) -> None:
    finding = judge_libcuda(probe, has_board=has_board)
    assert finding.status == status
    assert words in finding.found


GPU_ORT = {"version": "1.31.1", "cuda": "12.8", "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


@pytest.mark.parametrize(
    ("facts", "driver_cuda", "status", "words"),
    [
        ({"used": ["CUDAExecutionProvider"], "cudnn": 91002}, (13, 0), "ok", "1.31.1 for CUDA 12.8, cuDNN 9.10.2"),
        ({"used": ["CUDAExecutionProvider"], "cudnn": 8907}, (12, 2), "ok", "cuDNN 8.9.7"),
        ({"used": ["CPUExecutionProvider"]}, (12, 2), "problem", "not used: it fell back to the CPU"),
        ({}, (11, 8), "problem", "the driver runs CUDA up to 11.8"),
    ],
)
def test_onnxruntimes_cuda_counts_only_when_it_ran(
    facts: dict[str, object], driver_cuda: tuple[int, int], status: str, words: str
) -> None:
    finding = gpu_checks._onnxruntime_cuda(PackageCheck(facts={**GPU_ORT, **facts}), driver_cuda, has_gpu=True)
    assert finding.status == status
    assert words in finding.found
    unused = gpu_checks._onnxruntime_cuda(PackageCheck(facts=GPU_ORT), None, has_gpu=False)
    assert (unused.status, unused.found) == ("ok", "1.31.1 for CUDA 12.8, no GPU to use it on")


def test_a_gpu_needs_one_way_to_use_it_and_not_both() -> None:
    works = PackageCheck(facts={**GPU_ORT, "used": ["CUDAExecutionProvider"], "cudnn": 91002})
    alone = judge_gpu_backends({"onnxruntime": works}, GpuSurvey(), (13, 0), has_gpu=True)
    assert {each.name: each.status for each in alone} == {
        "tensorrt": "warning",
        "pycuda": "warning",
        "onnxruntime-gpu": "ok",
        "tensorrt-rtx": "absent",
    }
    none = judge_gpu_backends({}, GpuSurvey(), (13, 0), has_gpu=True)
    assert [each.status for each in none] == [*["problem"] * 3, "absent"]


def test_no_backend_for_the_cpu_is_a_problem_and_one_is_enough() -> None:
    assert [each.status for each in doctor._cpu_backends({})] == ["problem", "problem"]
    one = {"onnxruntime": PackageCheck(facts={"version": "1.31.1", "providers": ["CPUExecutionProvider"]})}
    openvino, onnxruntime = doctor._cpu_backends(one)
    assert (openvino.status, onnxruntime.status, onnxruntime.found) == ("absent", "ok", "1.31.1; CPU")


def test_two_builds_of_onnxruntime_in_one_environment_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cpu_only = PackageCheck(facts={"version": "1.2.3", "providers": ["CPUExecutionProvider"]})
    (warning,) = gpu_checks._both_onnxruntimes(cpu_only, has_gpu=False)
    assert warning.status == "warning"
    assert "onnxruntime 1.2.3 and onnxruntime-gpu 1.2.3 share one folder" in warning.found
    assert warning.hint == "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu"
    (lost,) = gpu_checks._both_onnxruntimes(cpu_only, has_gpu=True)
    assert lost.status == "problem"


def test_a_cache_that_cannot_be_made_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor._disk()[1]
    assert (finding.name, finding.status) == ("disk cache", "warning")
    assert "ALEXDEPLOY_CACHE" in str(finding.hint)


def test_each_step_is_told_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def probe(code: str, *, has_gpu: bool = False) -> PackageCheck:
        seen.append("asked" if code == PROBES["onnxruntime"] else "another")
        return PackageCheck(error="not tried")

    def show(event: Status) -> None:
        seen.append(event.message)

    monkeypatch.setattr(doctor, "run_probe", probe)
    examine(show)
    assert seen[0] == "looking for GPUs"
    assert seen.index(next(each for each in seen if each.startswith("importing onnxruntime"))) < seen.index("asked")


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [("0x10de", "0x030200", True), ("0x10de", "0x020000", False), ("0x8086", "0x030000", False)],
)
def test_a_display_card_of_nvidia_is_a_board_also_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, kind: str, expected: bool
) -> None:
    (tmp_path / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: [str(tmp_path / "vendor")] if "pci" in pattern else [])
    assert doctor.has_nvidia_board() is expected
    monkeypatch.setattr(
        doctor.glob, "glob", lambda pattern: ["/dev/nvidia0"] if pattern.startswith("/dev/nvidia") else []
    )
    assert doctor.has_nvidia_board()


@pytest.mark.parametrize(
    ("memory", "status", "words"),
    [
        ((None, None), "ok", "unknown on this system"),
        ((200_000_000, 2_000_000_000), "warning", "0.2 GB available of 2.0 GB"),
        ((20_000_000_000, 32_000_000_000), "ok", "20.0 GB available of 32.0 GB"),
    ],
)
def test_little_memory_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, memory: tuple[int | None, int | None], status: str, words: str
) -> None:
    monkeypatch.setattr(doctor, "host_memory", lambda: memory)
    found = doctor._memory()
    assert (found.status, found.found) == (status, words)
    assert (found.hint is None) == (status == "ok")


def test_a_disk_that_is_full_or_cannot_be_written_or_asked_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000_000))
    full = doctor._disk_of("disk models", tmp_path / "models")
    assert (full.status, full.found) == ("warning", f"0.1 GB free for {tmp_path / 'models'}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor._disk_of("disk models", tmp_path / "models").found == f"{tmp_path} cannot be written"

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    assert doctor._disk_of("disk models", tmp_path).found == f"{tmp_path}: Input/output error"


@pytest.mark.parametrize(
    ("facts", "has_gpu", "status", "hint"),
    [
        (None, False, "absent", "pip install 'alexdeploy[train]'"),
        ({"version": "2.13.0", "cuda": None, "is_available": False}, False, "ok", None),
        ({"version": "2.13.0", "cuda": None, "is_available": False}, True, "warning", "install a build for CUDA"),
        (
            {"version": "2.13.0", "cuda": "13.0", "is_available": False},
            True,
            "warning",
            "Training will not use the GPU. ",
        ),
        ({"version": "2.13.0", "cuda": "13.0", "is_available": True}, True, "ok", None),
    ],
)
def test_a_pytorch_that_cannot_use_the_gpu_is_a_warning(
    facts: dict[str, Any] | None, has_gpu: bool, status: str, hint: str | None
) -> None:
    found = doctor._torch(None if facts is None else PackageCheck(facts=facts), has_gpu=has_gpu)
    assert found.status == status
    assert found.hint is None if hint is None else hint in str(found.hint)


def test_a_package_of_an_extra_that_is_not_there_is_absent_with_the_extra() -> None:
    found = doctor._extra("no-such-package-here", "report", "pages")
    assert (found.status, found.found) == ("absent", "not installed: for pages")
    assert found.hint == "pip install 'alexdeploy[report]'"


def test_a_python_that_cannot_be_started_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert run_probe(PROBES["openvino"]).error == "Python cannot be started: No such file or directory"
