"""Kernels that TensorRT-RTX compiled are kept for the next start. What compiles is imagined: it takes an RTX card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from imagined_tensorrt import imagined

from alexdeploy.engines.trt import kernel_cache
from alexdeploy.engines.trt.files import kernel_cache_path
from alexdeploy.engines.trt.kernel_cache import KernelCache

LIBRARY = imagined("rtx 1.7.1", "tensorrt-rtx")


class Kernels:
    """An IRuntimeCache that takes what begins with GPU."""

    def __init__(self) -> None:
        self.content = b"GPU "

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"GPU"):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class Config:
    def create_runtime_cache(self) -> Kernels:
        return Kernels()

    def set_runtime_cache(self, cache: Kernels) -> bool:
        self.cache = cache
        return True


ENGINE = SimpleNamespace(create_runtime_config=Config)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    found = kernel_cache_path("NVIDIA GeForce RTX 4090", "ab" * 32)
    assert found == tmp_path / "cache" / "tensorrt-rtx" / f"geforce-rtx-4090-{'ab' * 8}.kernels"
    return found


def test_compiled_kernels_are_there_the_next_time(path: Path) -> None:
    first = KernelCache(LIBRARY, ENGINE, path)
    assert first.config.dynamic_shapes_kernel_specialization_strategy.endswith("EAGER")
    first.config.cache.content += b"conv1"
    first.save()
    assert path.read_bytes() == b"GPU conv1"
    assert KernelCache(LIBRARY, ENGINE, path).config.cache.content == b"GPU conv1"


def test_nothing_is_written_if_nothing_was_compiled(path: Path) -> None:
    path.write_bytes(b"GPU conv1")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    KernelCache(LIBRARY, ENGINE, path).save()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_damaged_file_is_replaced(path: Path) -> None:
    path.write_bytes(b"of another GPU")
    cache = KernelCache(LIBRARY, ENGINE, path)
    assert cache.config.cache.content == b"GPU "
    cache.save()
    assert path.read_bytes() == b"GPU "


def test_a_file_that_others_may_write_is_neither_read_nor_written(path: Path) -> None:
    path.write_bytes(b"GPU malicious")
    path.chmod(0o666)
    refused = kernel_cache_path("NVIDIA GeForce RTX 4090", "ab" * 32)
    assert refused is None
    cache = KernelCache(LIBRARY, ENGINE, refused)
    assert cache.config.cache.content == b"GPU "
    cache.save()
    assert path.read_bytes() == b"GPU malicious"


def test_a_disk_that_cannot_be_written_costs_only_time(path: Path) -> None:
    path.mkdir()
    KernelCache(LIBRARY, ENGINE, path).save()


def test_the_oldest_are_deleted_where_they_take_too_much(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "_MOST_BYTES", 8)
    path.with_name("old.kernels").write_bytes(b"GPU old")
    KernelCache(LIBRARY, ENGINE, path).save()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
