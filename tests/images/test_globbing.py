"""Glob patterns: what Python's own glob finds, and an end where that one finds none."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexdeploy.images.globbing import expand
from alexdeploy.images.sources import iter_sources

FILES = (
    *("a.jpg", "B.JPG", ".hidden.jpg", "x/b.jpg", "x/.git/c.jpg", "x/y/d.jpg", "x/y/z/a.jpg", "[1].jpg"),
    *("y/x/e.jpg", "y/.hidden.jpg", "empty dir/.keep"),
)
PATTERNS = (
    *("*", "*.jpg", "?.jpg", "[ab].jpg", "[!a].jpg", "[[]1].jpg", ".*", "*/*", "*/b.jpg", "x/*/d.jpg", "*/../a.jpg"),
    *("./*.jpg", "x//*.jpg", "*/", "x/*/", "**", "**/", "**/*.jpg", "**/x", "**/y/**", "x/**/z/*.jpg", "**/.git/*"),
    *("**/**/a.jpg", "x**/*.jpg", "none/*", "a.jpg/*", "no*/**/*"),
)


def found(pattern: str) -> list[str]:
    return sorted({path for path, problem in expand(pattern) if problem is None})


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_without_links_it_finds_what_python_finds(tree: Path, pattern: str, is_absolute: bool) -> None:
    pattern = f"{glob.escape(str(tree))}/{pattern}" if is_absolute else pattern
    # Python says `x/` for the folder from which ** begins, and `x` for those below it.
    expected = {os.path.join(name, "") if os.path.isdir(name) else name for name in glob.glob(pattern, recursive=True)}
    actual = {os.path.join(name, "") if os.path.isdir(name) else name for name in found(pattern)}
    assert actual == expected - {""}


def bounded(code: str, *arguments: str, folder: Path) -> list[str]:
    """The lines that `code` prints in a process of its own, which has 60 seconds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LIST_SOURCES = """
import sys
from alexdeploy.images.sources import iter_sources
for source in iter_sources(sys.argv[1:]):
    print(source.name if source.problem is None else f"{source.name}: {source.problem}")
"""


@pytest.mark.parametrize("pattern", ["x/**/*.jpg", "x/**", "x/**/**/*", "**/*.jpg", "x/*/**/*.jpg"])
def test_links_in_a_circle_end(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("x/a.jpg", "x/y/b.jpg"):
        (tmp_path / name).touch()
    for name in ("l1", "l2", "y/up", "y/l3"):
        (tmp_path / "x" / name).symlink_to(tmp_path / "x")
    names = bounded(LIST_SOURCES, pattern, folder=tmp_path)
    assert {os.path.realpath(tmp_path / name) for name in names} == {
        str(tmp_path / "x/a.jpg"),
        str(tmp_path / "x/y/b.jpg"),
    }
    assert len(names) == 2


def test_a_folder_has_its_own_name_and_not_that_of_a_link_before_it(tree: Path) -> None:
    (tree / "x" / "a-link").symlink_to("y")
    assert found("x/**/d.jpg") == ["x/y/d.jpg"]
    assert found("*/a-link/d.jpg") == ["x/a-link/d.jpg"]


def test_folders_that_all_lead_to_each_other_are_entered_once_each(tmp_path: Path) -> None:
    """Of 12 such folders there are 12! paths."""
    for number in range(12):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / "a.jpg").touch()
        for other in range(12):
            (tmp_path / f"{number:02}" / f"to-{other}").symlink_to(tmp_path / f"{other:02}")
    real = [f"{number:02}/a.jpg" for number in range(12)]
    assert bounded(LIST_SOURCES, "**/*.jpg", folder=tmp_path) == real
    # A folder that is named is walked: each once by its own name, and once by the first link to it.
    names = bounded(LIST_SOURCES, ".", folder=tmp_path)
    assert {f"./{name}" for name in real} <= set(names)
    assert len(names) == len(set(names)) <= 2 * len(real)


def test_a_tree_of_1500_folders_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = 1500
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").touch()
    os.chdir(tmp_path)
    try:
        expected = ["d/" * depth + "a.jpg"]
        for pattern in ("**/*.jpg", "d/**", "*/" * depth + "*.jpg", "d/" * depth + "*"):
            assert bounded(LIST_SOURCES, pattern, folder=tmp_path) == expected
    finally:
        # pytest's own removal of old folders recurses.
        subprocess.run(["rm", "-r", "d"], check=True)


def test_a_folder_below_the_longest_path_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "n" * 250
    for _ in range(20):
        os.mkdir(name)
        os.chdir(name)
    os.chdir(tmp_path)
    try:
        (source,) = iter_sources(["**/*.jpg"])
        assert source.problem == "cannot list the folder: file name too long"
    finally:
        subprocess.run(["rm", "-r", name], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_one_error_among_the_images(tree: Path) -> None:
    (tree / "x" / "y").chmod(0)
    sources = list(iter_sources(["**/*.jpg"]))
    (tree / "x" / "y").chmod(0o700)
    assert [source.name for source in sources if source.problem is not None] == ["x/y"]
