"""A store in memory behind fsspec, under fault://, with faults: each object's reads begin with a list of steps."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

Step = Callable[[bytes], bytes]


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """Objects appear when a file is closed, as in a bucket."""

    protocol = "fault"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    steps: ClassVar[dict[str, list[Step]]] = {}
    calls: ClassVar[list[tuple[str, str]]] = []
    lock = threading.Lock()

    @classmethod
    def clear(cls) -> None:
        cls.objects.clear()
        cls.steps.clear()
        cls.calls.clear()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        data = self._stepped("read", path)
        return data[start:end]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        with self.lock:
            self.calls.append(("info", path))
            return {"name": path, "size": len(self._found(path)), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        prefix = path.rstrip("/") + "/"
        self._stepped("list", path)
        found: dict[str, dict[str, Any]] = {}
        for name, data in self.objects.items():
            if name.startswith(prefix):
                inner, slash, _rest = name[len(prefix) :].partition("/")
                found[prefix + inner] = {
                    "name": prefix + inner,
                    "size": 0 if slash else len(data),
                    "type": "directory" if slash else "file",
                    "ETag": hashlib.sha256(data).hexdigest(),
                }
        return list(found.values())

    def _open(self, path: str, mode: str = "rb", **keywords: Any) -> AbstractBufferedFile:
        return _File(self, path, mode, **keywords)

    def _found(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def _stepped(self, kind: str, path: str) -> bytes:
        with self.lock:
            self.calls.append((kind, path))
            steps = self.steps.get(path)
            step = steps.pop(0) if steps else None
            data = self.objects.get(path, b"")
        if step is not None:
            return step(data)
        return self._found(path) if kind == "read" else data


class _File(AbstractBufferedFile):  # type: ignore[misc]
    parts: list[bytes]

    def _initiate_upload(self) -> None:
        self.parts = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        self.fs._stepped("write", self.path)
        if final:
            self.fs.objects[self.path] = b"".join(self.parts)
        return True

    def discard(self) -> None:
        self.parts = []
        self.closed = True


fsspec.register_implementation("fault", Bucket, clobber=True)


def fails(error: Exception) -> Step:
    """A read that raises `error`."""

    def step(data: bytes) -> bytes:
        raise error

    return step


def cut(data: bytes) -> bytes:
    """A read that gives half of the object."""
    return data[: len(data) // 2]
