from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.reading import NonWaitingReader, check_regular, decode_json, open_regular, read_regular, read_text
from alexdeploy.core.spec import ModelSpec

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fifos and devices as POSIX has them")


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 1])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "file", size) == content
    assert read_regular(tmp_path / "link", size) == content


def test_a_file_larger_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"1,099,511,627,776 bytes; the limit is 1,000"):
        read_regular(tmp_path / "sparse", 1000)
    with pytest.raises(ModelError, match="the limit is 1,000"):
        sha256_file(tmp_path / "sparse", 1000)


def _others(folder: Path) -> dict[Path, str]:
    os.mkfifo(folder / "fifo")
    (folder / "zeros").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    (folder / "itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        # A socket's path has to be short.
        os.chdir(folder)
        try:
            listener.bind("socket")
        finally:
            os.chdir(before)
    return {
        folder / "fifo": "is not a regular file",
        folder / "socket": "is not a regular file",
        folder / "zeros": "is not a regular file",
        Path("/dev/null"): "is not a regular file",
        folder / "folder": "is a directory",
        folder / "itself": "Too many levels of symbolic links",
        folder / "nothing": "No such file or directory",
        folder / ("x" * 300): "File name too long",
        folder / "a\0b": "not a path: embedded null byte",
    }


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    for path, problem in _others(tmp_path).items():
        for read in (
            check_regular,
            open_regular,
            read_text,
            lambda path: read_regular(path, 1000),
            lambda path: open_regular(path, own_pipe=True),
        ):
            with pytest.raises(OSError, match=problem):
                read(path)
        with pytest.raises(ModelError, match=problem):
            sha256_file(path)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="no /proc")
def test_files_of_the_kernel_end_at_a_limit() -> None:
    assert read_regular("/proc/self/status", 1 << 20).startswith(b"Name:")
    # It says 0 bytes, and has 8 for each page of the address space.
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_regular("/proc/self/pagemap", 100)
    with pytest.raises(OSError, match="more than 16,777,216 bytes"):
        read_regular("/proc/self/pagemap", 1 << 40)
    # Read as a stream, there is no limit.
    with pytest.raises(OSError, match="kernel file"):
        open_regular("/proc/self/pagemap")
    with pytest.raises(ModelError, match="kernel file"):
        sha256_file(Path("/proc/self/pagemap"))


def test_a_file_that_is_not_waited_for_and_has_nothing_to_say_is_an_error() -> None:
    # As /proc/kmsg does, of which a test would take messages away.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with NonWaitingReader(io.FileIO(reading)) as file, pytest.raises(OSError, match="has no data"):
        file.read(10)
    os.close(writing)


def test_a_pipe_that_the_shell_made_is_read_where_that_is_asked_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\r\ntwo\n")
    os.close(writing)
    with pytest.raises(OSError, match="is not a regular file"):
        open_regular(f"/dev/fd/{reading}")
    assert read_text(f"/dev/fd/{reading}") == "one\ntwo\n"
    os.close(reading)


def test_reading_takes_no_more_memory_than_there_is_to_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 1000)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 29)
    program = (
        "import resource, sys\n"
        "from alexdeploy.core.reading import read_regular\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "print(len(read_regular(sys.argv[1], 1 << 30)))\n"
        "try:\n"
        "    read_regular(sys.argv[2], 1 << 30)\n"
        "except OSError as exc:\n"
        "    print(exc.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "small"), str(tmp_path / "sparse")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "1000\nnot enough memory to read its 536,870,912 bytes\n"


@pytest.mark.parametrize(
    "content", [b'{"name\xff": 1}', b'{"name": "\xff"}', b"[" * 100_000, b"", b"{}", b'{"name": 1}']
)
def test_json_that_cannot_be_read_is_one_kind_of_error(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_json(content, ModelSpec)


def test_text_that_is_not_utf8_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"caf\xe9")
    with pytest.raises(OSError, match="not UTF-8: byte 0xe9 at offset 3"):
        read_text(tmp_path / "text")
