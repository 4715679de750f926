from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from alexdeploy.core.packages import package_version, release, tensorrt_version


def test_versions_are_read_without_an_import() -> None:
    assert package_version("no-such-package", "pytest") == pytest.__version__
    assert package_version("no-such-package") is None
    if importlib.util.find_spec("tensorrt") is None:
        assert tensorrt_version() is None


def test_the_numbers_of_a_version_are_what_a_package_and_its_library_both_tell() -> None:
    assert [release(each) for each in ("8.6.1.post1", "8.6.1", "10.16.1.11", "11.4.0+cu13", "none")] == [
        "8.6.1",
        "8.6.1",
        "10.16.1.11",
        "11.4.0",
        "none",
    ]


@pytest.mark.parametrize("name", ["tensorrt_cu12_bindings", "tensorrt_cu13_bindings", "tensorrt_bindings"])
def test_tensorrt_is_found_by_its_bindings_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tensorrt_version() is not None:
        pytest.skip("TensorRT is installed")
    metadata = tmp_path / f"{name}-10.3.0.post1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 10.3.0.post1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert tensorrt_version() == "10.3.0.post1"
