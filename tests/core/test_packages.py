from __future__ import annotations

import importlib.util
import platform
import re
import sys
from pathlib import Path

import pytest

import alexdeploy
from alexdeploy.core.packages import package_version, release, tensorrt_version, versions_for_report


def test_versions_are_read_without_an_import() -> None:
    assert package_version("no-such-package", "pytest") == pytest.__version__
    assert package_version("no-such-package") is None
    if importlib.util.find_spec("tensorrt") is None:
        assert tensorrt_version() is None


def test_the_extra_for_gpus_brings_the_cuda_libraries_that_onnxruntime_loads() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (extras,) = re.findall(r'^gpu = \[\s+"onnxruntime-gpu\[(.*?)\]>=1\.21"', project, re.MULTILINE)
    assert set(extras.split(",")) == {"cuda", "cudnn"}


def test_the_numbers_of_a_version_are_what_a_package_and_its_library_both_tell() -> None:
    assert [release(each) for each in ("8.6.1.post1", "8.6.1", "10.16.1.11", "11.4.0+cu13", "none")] == [
        "8.6.1",
        "8.6.1",
        "10.16.1.11",
        "11.4.0",
        "none",
    ]


def install(folder: Path, name: str, version: str) -> None:
    """What importlib.metadata finds of an installed distribution."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("name", ["tensorrt_cu12_bindings", "tensorrt_cu13_bindings", "tensorrt_bindings"])
def test_tensorrt_is_found_by_its_bindings_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tensorrt_version() is not None:
        pytest.skip("TensorRT is installed")
    install(tmp_path, name, "10.3.0.post1")
    monkeypatch.syspath_prepend(tmp_path)
    assert tensorrt_version() == "10.3.0.post1"


def test_a_report_knows_libraries_whose_distributions_have_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "onnxruntime_gpu", "1.22.0")
    install(tmp_path, "tensorrt_cu12", "10.3.0")
    install(tmp_path, "numpy", "2.1.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert versions_for_report(["tensorrt", "onnxruntime", "openvino", "tensorrt"]) == {
        "alexdeploy": alexdeploy.__version__,
        "python": platform.python_version(),
        "numpy": "2.1.0",
        "pillow": "unknown",
        "tensorrt": "10.3.0",
        "onnxruntime": "1.22.0",
        "openvino": "unknown",
    }
