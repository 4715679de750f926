"""`alexdeploy serve` in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from patience import PATIENCE, wait_for

from alexdeploy.core.model_folder import ModelFolder

OPTIONS = ("--backend", "onnxruntime", "--threads", "1", "--batch-size", "4", "--port", "0", "--grpc-port", "0")


@dataclass(kw_only=True)
class Program:
    """A running `alexdeploy serve`; `lines` is what it has written to stderr."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _read: threading.Thread | None = None

    def watch(self) -> None:
        stderr = self.process.stderr
        assert stderr is not None
        self._read = threading.Thread(target=lambda: self.lines.extend(iter(stderr.readline, "")), daemon=True)
        self._read.start()

    def found(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, "".join(self.lines), re.MULTILINE)

    @property
    def url(self) -> str:
        match = self.found(r"serving on (\S+?)(,|$)")
        assert match is not None
        return match[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def grpc(self) -> str:
        match = self.found(r"gRPC on (\S+)")
        assert match is not None
        return match[1]

    def wait_until(self, pattern: str) -> None:
        wait_for(lambda: self.found(pattern) or self.process.poll() is not None)
        if self.process.poll() is not None and self._read is not None:
            # Its last lines may not have been read yet.
            self._read.join(PATIENCE)
        assert self.found(pattern), "".join(self.lines)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(
    folder: ModelFolder, *words: str, is_ready: bool = True, program: tuple[str, ...] = ("-m", "alexdeploy")
) -> Iterator[Program]:
    command = [sys.executable, *program, "serve", str(folder.path), *OPTIONS, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = Program(process=process)
    try:
        running.watch()
        if is_ready:
            running.wait_until("^try: curl")
        yield running
    finally:
        process.kill()
        process.communicate()
