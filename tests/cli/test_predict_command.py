"""`alexdeploy predict` as a user has it: files in, rows and an exit code out."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from patience import slow_but_for, wait_for
from PIL import Image
from program import Run

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import Placed, place

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and file names of POSIX")


@pytest.fixture
def workplace(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models/tiny, and images/ with five photographs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(5):
        save_picture(tmp_path / "images" / f"{index}.jpg", rng)
    return tmp_path


@pytest.fixture
def run(program: Run, workplace: Path) -> Run:
    """The command in this process, on ONNX Runtime."""
    return lambda *args: program("predict", "--backend", "onnxruntime", *map(os.fspath, args))


def save_picture(path: Path, rng: np.random.Generator, kind: str | None = None) -> None:
    blocks = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    blocks.resize((320, 240), Image.Resampling.NEAREST).save(path, kind)


def command(*args: str | Path) -> list[str]:
    words = [sys.executable, "-m", "alexdeploy", "predict", "--backend", "onnxruntime"]
    return [*words, *map(os.fspath, args)]


def test_a_folder_gives_a_row_for_each_photograph_in_order(run: Run) -> None:
    result = run("images", "--top-k", "2")
    assert result.exit_code == 0
    assert [row["source"] for row in result.rows] == [f"images/{index}.jpg" for index in range(5)]
    assert [row["index"] for row in result.rows] == list(range(5))
    assert all(len(row["top"]) == 2 and row["error"] is None for row in result.rows)


def test_the_command_runs_as_a_module_and_keeps_messages_off_stdout(workplace: Path) -> None:
    done = subprocess.run(command("images", "--tencrop"), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["num_views"] for row in rows] == [10] * 5
    assert re.fullmatch(
        r"5 images, 0 errors, [\d.,]+ images/s, onnxruntime fp32, 10 views, artifact [0-9a-f]{12}\n", done.stderr
    )


def test_quiet_leaves_stderr_empty(run: Run) -> None:
    assert run("images", "--quiet").stderr == ""


def test_the_table_can_be_asked_for_in_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = run("images", "--format", "table", "--tencrop")
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["source", "label", "prob", "views", "next"]
    assert len(lines) == 5
    assert all(re.search(r"  \d+/10  ", line) for line in lines)
    assert re.search(r"onnxruntime fp32, 10 views, artifact [0-9a-f]{12}", result.stderr)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_output_file_holds_the_rows_that_stdout_has(run: Run, workplace: Path, kind: str) -> None:
    (workplace / "images" / "2.jpg").write_bytes(b"")
    expected = run("images")
    result = run("images", "--output", f"out.{kind}")
    assert (result.exit_code, result.stdout) == (3, "")
    path = workplace / f"out.{kind}"
    if kind == "jsonl":
        assert path.read_text() == expected.stdout
        return
    if kind == "csv":
        with path.open(newline="") as file:
            found = [record["label_1"] or None for record in csv.DictReader(file)]
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(path).column("label").to_pylist()
    assert found == [row["label"] for row in expected.rows]


def test_tencrop_and_another_number_of_views_is_a_usage_error(run: Run) -> None:
    result = run("images", "--tencrop", "--views", "5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--views asks for 5" in result.stderr


def test_parquet_on_stdout_is_a_usage_error(run: Run) -> None:
    assert run("images", "--format", "parquet").exit_code == 2


def test_no_model_names_the_cures(run: Run, workplace: Path) -> None:
    (workplace / "models").rename(workplace / "elsewhere")
    result = run("images")
    assert result.exit_code == 2
    assert "alexdeploy train" in result.stderr


def make_png(path: Path) -> None:
    save_picture(path, np.random.default_rng(1), "PNG")


def make_truncated(path: Path) -> None:
    make_png(path)
    path.write_bytes(path.read_bytes()[:500])


def make_bomb(path: Path) -> None:
    make_png(path)
    data = bytearray(path.read_bytes())
    # IHDR: length, type, width, height, five more bytes, CRC. The header alone is what it takes.
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_a_photograph_of_a_kind_that_is_not_read_has_a_row_with_the_cure(run: Run, workplace: Path) -> None:
    (workplace / "images" / "9.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    result = run("images")
    assert (result.exit_code, len(result.rows)) == (3, 6)
    assert result.rows[5]["source"] == "images/9.HEIC"
    assert "convert it to JPEG" in result.rows[5]["error"]
    assert "6 images, 1 error" in result.stderr


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (make_truncated, "damaged PNG image"),
        (lambda path: path.write_text("I am text"), "unsupported file type"),
        (make_bomb, "pixels"),
        (lambda path: path.mkdir(), "no images in folder"),
        (lambda path: path.symlink_to("nowhere"), "link"),
        (make_png, None),
    ],
    ids=["empty", "truncated", "text", "bomb", "directory", "broken-link", "png"],
)
def test_every_input_has_its_row_whatever_it_is(
    run: Run, workplace: Path, make: Callable[[Path], object], error: str | None
) -> None:
    make(workplace / "x.jpg")
    result = run("images/0.jpg", "x.jpg", "images/1.jpg")
    assert result.exit_code == (0 if error is None else 3)
    assert [row["source"] for row in result.rows] == ["images/0.jpg", "x.jpg", "images/1.jpg"]
    found = result.rows[1]["error"]
    assert found is None if error is None else error in found.lower() or error in found
    assert "Traceback" not in result.stderr


def make_circle(path: Path) -> None:
    path.mkdir()
    (path / "l1").symlink_to(".")
    (path / "l2").symlink_to(".")
    make_png(path / "a.png")


def make_zip_of_windows(path: Path) -> None:
    make_png(path.with_suffix(".png"))
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = ".\\a.png"
        archive.writestr(info, path.with_suffix(".png").read_bytes())


@posix_only
@pytest.mark.parametrize(
    ("make", "text", "expected"),
    [
        (lambda path: path.write_text("images/1.jpg\r\n", "utf-16"), "@x", {"images/1.jpg": None}),
        (lambda path: path.write_text("images/1.jpg\r\n", "utf-16-le"), "@x", {"@x": "without a byte-order mark"}),
        (lambda path: path.write_bytes(b"\xff\xfe\0"), "@x", {"@x": "not valid UTF-16"}),
        (
            lambda path: path.write_text("images/1.jpg\n/\n.\n..\n"),
            "@x",
            {"images/1.jpg": None, "/": "root folder", ".": "above the list", "..": "above the list"},
        ),
        (lambda path: path.write_bytes(b"images/1.jpg\0\0/\0"), "@x", {"images/1.jpg": None, "/": "root folder"}),
        (make_circle, "x/**/*.png", {"x/a.png": None}),
        (make_circle, "x", {"x/a.png": None}),
        (make_circle, "x/**/l1/**", {"x/l1/a.png": None}),
        (make_zip_of_windows, "x.zip", {"x.zip!./a.png": None}),
        (lambda path: path.write_bytes(b"qoif"), "x.qoi", {"x.qoi": "QOI"}),
    ],
    ids=[
        "utf-16",
        "no-mark",
        "cut-off",
        "folders",
        "nul",
        "circle",
        "circle-folder",
        "circle-link",
        "backslash",
        "qoi",
    ],
)
def test_lists_and_trees_of_every_kind_have_a_row_for_each_input(
    run: Run, workplace: Path, make: Callable[[Path], object], text: str, expected: dict[str, str | None]
) -> None:
    make(workplace / (text if "." in text and "/" not in text else "x"))
    done = run("images/0.jpg", text, "images/2.jpg")
    rows = done.rows
    assert "Traceback" not in done.stderr
    assert [row["source"] for row in rows] == ["images/0.jpg", *expected, "images/2.jpg"]
    for row, error in zip(rows[1:-1], expected.values(), strict=True):
        assert row["error"] is None if error is None else error in row["error"]
    assert done.exit_code == (3 if any(expected.values()) else 0)


def test_files_that_are_no_images_are_counted_in_the_summary(run: Run, workplace: Path) -> None:
    for name in ("notes.txt", "more.txt", "labels.xml", ".DS_Store"):
        (workplace / "images" / name).touch()
    result = run("images")
    assert (result.exit_code, len(result.rows)) == (0, 5)
    last = result.stderr.splitlines()[-1]
    assert last == "skipped 3 files that are not images (.txt 2, .xml 1) and 1 hidden or system name"
    assert run("images", "--quiet").stderr == ""


@posix_only
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_has_its_row(run: Run, workplace: Path) -> None:
    (workplace / "images" / "2.jpg").chmod(0)
    result = run("images")
    assert result.exit_code == 3
    assert "ermission" in result.rows[2]["error"]


@posix_only
@pytest.mark.parametrize("name", [b"two\nlines.jpg", b"\x1b[31mred.jpg", b"latin-\xe9.jpg", b"-dash.jpg"])
def test_names_of_any_bytes_have_their_row(run: Run, workplace: Path, name: bytes) -> None:
    folder = workplace / "odd"
    folder.mkdir()
    os.rename(workplace / "images" / "0.jpg", os.path.join(os.fsencode(folder), name))
    (row,) = run("odd").rows
    assert (row["index"], row["error"]) == (0, None)
    header, line = run("odd", "--format", "table").stdout.splitlines()
    assert header.startswith("source")
    assert line.isprintable()
    assert run("odd", "--output", "out.csv").exit_code == 0
    (record,) = csv.DictReader(io.StringIO((workplace / "out.csv").read_bytes().decode(), newline=""))
    assert record["source"] == row["source"]


def test_a_file_that_vanishes_after_the_listing_has_its_row(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexdeploy.images.sources import Source

    read = Source.read

    def vanish_and_read(source: Source, resize: Literal["crop", "warp"]) -> bytes:
        if source.name.endswith("3.jpg"):
            (workplace / "images" / "3.jpg").unlink()
        return read(source, resize)

    monkeypatch.setattr(Source, "read", vanish_and_read)
    result = run("images")
    assert result.exit_code == 3
    assert [row["error"] is None for row in result.rows] == [True, True, True, False, True]


def test_members_of_an_archive_have_their_rows(run: Run, workplace: Path) -> None:
    with zipfile.ZipFile(workplace / "photos.zip", "w") as archive:
        for index in range(5):
            archive.write(workplace / "images" / f"{index}.jpg", f"cats/{index}.jpg")
        archive.writestr("cats/broken.jpg", b"oh")
    result = run("photos.zip")
    assert result.exit_code == 3
    assert [row["source"] for row in result.rows][:2] == ["photos.zip!cats/0.jpg", "photos.zip!cats/1.jpg"]
    assert [row["label"] for row in result.rows[:5]] == [row["label"] for row in run("images").rows]


@posix_only
def test_a_reader_that_leaves_early_ends_it_quietly(workplace: Path) -> None:
    inputs = ["images"] * 200
    with subprocess.Popen(command(*inputs), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        message = process.stderr.read().decode()
    # 128 + SIGPIPE, as a shell says of other tools.
    assert (process.returncode, message) == (141, "")


@posix_only
@pytest.mark.parametrize("kind", slow_but_for(["csv"], ["table", "jsonl", "csv"]))
def test_rows_for_a_closed_stdout_are_exit_code_6(workplace: Path, kind: str) -> None:
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *command("images", "--format", kind, "--quiet")]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (6, "error: stdout could not be written: Bad file descriptor\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("where", ["stdout", "output"])
def test_a_full_disk_ends_with_code_6(workplace: Path, where: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("images", *(("--output", "/dev/full") if where == "output" else ())),
            stdout=full if where == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 6
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@posix_only
@pytest.mark.parametrize("closed", slow_but_for(["<&- >&- 2>&-"], [">&-", "2>&-", "<&- >&- 2>&-"]))
def test_closed_streams_are_no_reason_to_lose_rows(workplace: Path, closed: str) -> None:
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", *command("images", "--output", "out.csv")]
    assert subprocess.run(words, check=False).returncode == 0
    assert len((workplace / "out.csv").read_text().splitlines()) == 6


@posix_only
def test_progress_on_a_terminal_has_a_total_and_a_rate_that_can_be_true(workplace: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        command("images", "--output", "out.csv"), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ):
        os.close(theirs)
        shown = b""
        # Linux says EIO where others say end of file.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    *_, (rate, left) = re.findall(r" 5/5 ([\d.,]+) images/s (\d+:\d\d:\d\d)", text)
    assert float(rate.replace(",", "")) < 2000
    assert left == "0:00:00"


@posix_only
def test_a_named_pipe_is_written_to_and_not_replaced(workplace: Path) -> None:
    os.mkfifo(workplace / "pipe")
    with subprocess.Popen(command("images", "--output", "pipe"), stderr=subprocess.DEVNULL) as process:
        lines = (workplace / "pipe").read_text().splitlines()
    assert (process.returncode, len(lines)) == (0, 5)
    assert (workplace / "pipe").is_fifo()


@posix_only
def test_a_link_stays_a_link_to_the_new_output(run: Run, workplace: Path) -> None:
    (workplace / "disk").mkdir()
    (workplace / "out.jsonl").symlink_to("disk/rows.jsonl")
    assert run("images", "--output", "out.jsonl").exit_code == 0
    assert (workplace / "out.jsonl").is_symlink()
    assert len((workplace / "disk" / "rows.jsonl").read_text().splitlines()) == 5


def test_a_journal_is_not_overwritten_and_resume_goes_on_from_it(run: Run, workplace: Path) -> None:
    assert run("images", "--output", "out.jsonl").exit_code == 0
    whole = (workplace / "out.jsonl").read_bytes()
    (workplace / "out.jsonl").rename(workplace / "out.jsonl.partial")
    refused = run("images", "--output", "out.jsonl")
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    resumed = run("images", "--output", "out.jsonl", "--resume")
    assert resumed.exit_code == 0
    assert (workplace / "out.jsonl").read_bytes() == whole
    assert "resume" in run("images", "--output", "out.jsonl", "--resume").stderr


def test_resuming_what_is_complete_gives_the_exit_code_of_its_rows(run: Run, workplace: Path) -> None:
    (workplace / "images" / "2.jpg").write_bytes(b"")
    assert run("images", "--output", "out.csv").exit_code == 3
    result = run("images", "--output", "out.csv", "--resume")
    assert result.exit_code == 3
    assert "complete" in result.stderr


@pytest.mark.parametrize(
    ("prepare", "args", "said"),
    [
        (lambda path: path.write_bytes(b""), (), "holds no rows"),
        (None, ("--views", "10"), "number of views 1; this run has 10"),
        (None, ("images/0.jpg",), "the next is 'images/0.jpg'"),
        (None, ("--precision", "fp16"), "precision fp32; this run has fp16"),
    ],
)
def test_resuming_a_file_of_another_run_is_a_usage_error(
    run: Run, workplace: Path, prepare: Callable[[Path], object] | None, args: tuple[str, ...], said: str
) -> None:
    output = workplace / "out.jsonl"
    if prepare is None:
        assert run("images", "--output", "out.jsonl").exit_code == 0
    else:
        prepare(output)
    before = output.read_bytes()
    result = run("images", *args, "--output", "out.jsonl", "--resume")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "--overwrite" in result.stderr
    assert output.read_bytes() == before
    # An empty file, as mktemp makes it, has nothing to lose.
    assert run("images", *args, "--output", "out.jsonl").exit_code == (2 if before else 0)
    assert (output.read_bytes() == before) == bool(before)
    assert run("images", *args, "--output", "out.jsonl", "--overwrite").exit_code == 0


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt", "link.jsonl"])
def test_a_file_is_replaced_with_overwrite_alone(run: Run, workplace: Path, name: str) -> None:
    if name == "link.jsonl":
        Path(name).symlink_to("elsewhere.jsonl")
    Path(name).write_text("precious")
    result = run("images", "--output", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{name} exists already" in result.stderr
    assert "--overwrite" in result.stderr
    assert Path(name).read_text() == "precious"
    result = run("images", "--output", name, "--overwrite")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == f"wrote {name}: 5 rows"
    assert "precious" not in Path(name).read_text()
    assert Path(name).is_symlink() == (name == "link.jsonl")


def test_an_interrupted_run_over_an_old_file_is_resumed_over_it(run: Run, workplace: Path) -> None:
    assert run("images", "--output", "out.jsonl").exit_code == 0
    whole = Path("out.jsonl").read_bytes()
    rows = whole.splitlines(keepends=True)
    header = b'{"journal":2,"command":"predict","settings":{"batch_size":8}}\n'
    lines = [b'{"crc":%d,"record":%s}\n' % (zlib.crc32(row.rstrip()), row.rstrip()) for row in rows[:2]]
    Path("out.jsonl").write_text("of another run, which --overwrite gave up")
    Path("out.jsonl.partial").write_bytes(header + b"".join(lines))
    refused = run("images", "--output", "out.jsonl", "--overwrite")
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert run("images", "--output", "out.jsonl", "--resume").exit_code == 0
    assert Path("out.jsonl").read_bytes() == whole


def test_resuming_a_finished_table_is_a_usage_error(run: Run) -> None:
    Path("bad.jpg").touch()
    assert run("images", "bad.jpg", "--output", "out.txt").exit_code == 3
    assert run("images", "bad.jpg", "--output", "out.txt", "--resume").exit_code == 2


def test_resume_without_an_output_is_a_usage_error(run: Run) -> None:
    assert run("images", "--resume").exit_code == 2


@posix_only
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_keeps_its_rows_and_says_how_to_go_on(
    workplace: Path, number: signal.Signals, exit_code: int
) -> None:
    journal = workplace / "out.csv.partial"
    # More than are classified before the signal arrives, also where this process is left waiting for its turn.
    args = command(*["images"] * 4000, "--output", "out.csv")
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        wait_for(lambda: process.poll() is not None or (journal.exists() and journal.stat().st_size > 1000))
        process.send_signal(number)
        message = process.stderr.read()
    assert process.returncode == exit_code
    assert "--resume" in message
    assert "Traceback" not in message
    assert journal.stat().st_size > 1000
    assert not (workplace / "out.csv").exists()


@posix_only
@pytest.mark.slow
def test_ten_kills_lose_nothing_and_change_nothing(run: Run, workplace: Path) -> None:
    (workplace / "images" / "2.jpg").write_bytes(b"")
    inputs = ["images"] * 300
    assert run(*inputs, "--output", "whole.csv").exit_code == 3
    rng = random.Random(0)
    output, journal = workplace / "out.csv", workplace / "out.csv.partial"
    args = command(*inputs, "--output", output, "--resume", "--quiet")
    num_kills = 0
    while num_kills < 10 and not output.exists():
        process = subprocess.Popen(args)
        size = journal.stat().st_size if journal.exists() else 0
        aim = size + rng.randrange(1, 20_000)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > aim):
            time.sleep(0.001)
        process.kill()
        process.wait()
        num_kills += 1
    assert num_kills > 3
    done = subprocess.run(args, check=False)
    assert done.returncode == 3
    assert output.read_bytes() == (workplace / "whole.csv").read_bytes()
    assert not journal.exists()


def test_help_names_every_option(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run("--help")
    assert result.exit_code == 0
    for option in ("--model", "--precision", "--tencrop", "--views", "--backend", "--top-k", "--batch-size"):
        assert option in result.stdout
    for option in ("--threads", "--format", "--output", "--resume", "--quiet"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("inputs", "batch_size", "num_streams"),
    [
        (["images/0.jpg"], 1, 1),
        (["images/0.jpg", "images/1.jpg"], 8, None),
        (["images"], 8, None),
        (["@list.jpg"], 8, None),
        (["images/*.jpg"], 8, None),
        (["images/0.jpg", "--batch-size", "16"], 16, 1),
    ],
)
def test_one_image_file_is_a_batch_of_its_own_and_has_all_threads(
    run: Run,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[str],
    batch_size: int,
    num_streams: int | None,
) -> None:
    asked = []

    def spy(folder: ModelFolder, options: PredictOptions) -> Placed:
        asked.append((options.batch_size, options.num_streams))
        return place(folder, options)

    monkeypatch.setattr("alexdeploy.inference.predictor.place", spy)
    # The second is an image, but what is asked for is the list.
    (workplace / "list.jpg").write_text("images/0.jpg\nimages/1.jpg\n")
    shutil.copy(workplace / "images" / "0.jpg", workplace / "@list.jpg")
    assert run(*inputs).exit_code == 0
    assert asked == [(batch_size, num_streams)]


def test_a_page_and_pictures_come_with_the_rows_of_a_folder_and_an_archive(run: Run, workplace: Path) -> None:
    with zipfile.ZipFile("more.zip", "w") as archive:
        archive.write("images/0.jpg", "0.jpg")
        archive.writestr("1.jpg", "no image")
    words = ("images", "more.zip", "--tencrop", "-o", "rows.csv", "--sheet", "page.html", "--annotate", "marked")
    result = run(*words)
    assert result.exit_code == 3
    assert "wrote page.html\nwrote marked: 6 pictures" in result.stderr
    assert sorted(os.listdir("marked")) == [f"{index:06}-{index % 5}.jpg" for index in range(6)]
    assert Path("page.html").read_text().count("<figure") == 6
    again = run(*words, "--resume")
    assert (again.exit_code, "nothing to resume" in again.stderr) == (3, True)
    Path("page.html").unlink()
    refused = run(*words, "--resume")
    assert refused.exit_code == 2
    assert "rows.csv is complete, so no image is classified" in refused.stderr
    assert run(*words, "--overwrite").exit_code == 3
    assert Path("page.html").exists()


def test_a_cluster_makes_no_page(run: Run) -> None:
    refused = run("images", "--ray", "local", "-o", "rows", "--annotate", "marked")
    assert refused.exit_code == 2
    assert "--ray has no --sheet and no --annotate" in refused.stderr


@posix_only
def test_a_special_file_that_cannot_be_opened_is_an_output_error(run: Run, workplace: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("place")
        result = run("images", "-o", "place")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith("error: place could not be written")
