from __future__ import annotations

import importlib.util

import pytest

from alexdeploy.core.packages import package_version, tensorrt_version


def test_versions_are_read_without_an_import() -> None:
    assert package_version("no-such-package", "pytest") == pytest.__version__
    assert package_version("no-such-package") is None
    if importlib.util.find_spec("tensorrt") is None:
        assert tensorrt_version() is None
