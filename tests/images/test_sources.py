"""What the user names comes out as images, one by one, in order, and nothing is lost on the way."""

from __future__ import annotations

import io
import os
import struct
import sys
import tarfile
import tracemalloc
import types
import zipfile
from pathlib import Path

import pytest

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.images import archives
from alexdeploy.images.listing import MAX_FILE_BYTES, walk_images
from alexdeploy.images.sources import Source, iter_sources, read_file, read_inputs


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names_in(folder: Path, *inputs: str) -> list[str]:
    return [source.name.removeprefix(f"{folder}/") for source in iter_sources(inputs or [str(folder)])]


def problem(source: Source) -> str:
    with pytest.raises(ImageError) as caught:
        source.read()
    return caught.value.message


def outcome(source: Source) -> bytes | str:
    """What reading gives: bytes, or the message of the error."""
    try:
        return source.read()
    except ImageError as exc:
        return exc.message


def test_a_file_keeps_the_name_the_user_gave_it(tmp_path, monkeypatch):
    fill(tmp_path, "a/b.jpg")
    monkeypatch.chdir(tmp_path)
    (source,) = iter_sources(["./a/../a/b.jpg"])
    assert (source.name, source.read()) == ("./a/../a/b.jpg", b"a/b.jpg")


def test_a_path_object_is_as_good_as_its_text(tmp_path):
    fill(tmp_path, "b.jpg")
    assert [source.read() for source in iter_sources([tmp_path / "b.jpg"])] == [b"b.jpg"]


def test_a_named_file_counts_whatever_its_suffix(tmp_path):
    fill(tmp_path, "picture.dat", ".hidden")
    assert names_in(tmp_path, f"{tmp_path}/picture.dat", f"{tmp_path}/.hidden") == ["picture.dat", ".hidden"]


@pytest.mark.parametrize(
    "name",
    [
        "a.heic",
        "b.HEIF",
        "c.avif",
        "d.jp2",
        "e.jxl",
        "f.dng",
        "g.CR2",
        "h.nef",
        "i.arw",
        "a.qoi",
        "b.tga",
        "c.dib",
        "d.apng",
    ],
)
def test_photographs_of_a_kind_that_is_not_read_are_listed_all_the_same(tmp_path, name):
    fill(tmp_path / "photographs", name, "j.jpg", "notes.txt", "video.mp4")
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as archive:
        for listed in (name, "notes.txt"):
            archive.writestr(listed, b"x")
    assert names_in(tmp_path / "photographs") == [name, "j.jpg"]
    assert names_in(tmp_path, f"{tmp_path}/photographs.zip") == [f"photographs.zip!{name}"]


def test_a_raw_file_is_refused_by_its_name_since_many_are_tiff_files_with_a_thumbnail(tmp_path):
    fill(tmp_path, "in/a.NEF")
    with zipfile.ZipFile(tmp_path / "in" / "b.zip", "w") as archive:
        archive.writestr("b.NEF", b"II*\0")
    with tarfile.open(tmp_path / "in" / "c.tar", "w") as tar:
        tar.add(tmp_path / "in" / "a.NEF", "c.NEF")
        tar.add(tmp_path / "in" / "a.NEF", "after.jpg")
    found = iter_sources([tmp_path / "in" / name for name in ("a.NEF", "b.zip", "c.tar")])
    message = "is a camera raw file (.NEF), not read here; convert it to JPEG"
    assert [outcome(source) for source in found] == [message, message, message, b"in/a.NEF"]


def test_inputs_come_in_the_order_they_were_given_and_as_often(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg")
    given = [f"{tmp_path}/b.jpg", f"{tmp_path}/missing.jpg", f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert names_in(tmp_path, *given) == ["b.jpg", "missing.jpg", "a.jpg", "b.jpg"]


def test_a_missing_file_says_so_when_it_is_read(tmp_path):
    (source,) = iter_sources([str(tmp_path / "no.jpg")])
    assert problem(source) == "not found: no such file"


def test_a_path_through_a_file_is_not_found(tmp_path):
    fill(tmp_path, "a.jpg")
    (source,) = iter_sources([str(tmp_path / "a.jpg" / "b.jpg")])
    assert problem(source) == "not found: no such file"


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "a.jpg").touch()
    (source,) = iter_sources([str(tmp_path / "a.jpg")])
    assert problem(source) == "the file is empty"


def test_a_broken_link_says_where_it_led(tmp_path):
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (source,) = iter_sources([str(tmp_path)])
    assert problem(source) == "broken symbolic link to gone.jpg"


def test_a_link_to_itself_is_an_error_of_its_own(tmp_path):
    (tmp_path / "a.jpg").symlink_to("a.jpg")
    (source,) = iter_sources([str(tmp_path)])
    assert "symbolic links" in problem(source)


def test_a_file_that_went_away_after_it_was_listed_has_vanished(tmp_path):
    fill(tmp_path, "a.jpg")
    (source,) = iter_sources([str(tmp_path)])
    (tmp_path / "a.jpg").unlink()
    assert problem(source).startswith("vanished")


def test_a_file_that_became_a_folder_is_a_directory(tmp_path):
    fill(tmp_path, "a.jpg")
    (source,) = iter_sources([str(tmp_path)])
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").mkdir()
    assert problem(source) == "is a directory"


@pytest.mark.parametrize("name", ["a.jpg", "a.zip", "a.tar"])
def test_a_fifo_is_refused_without_waiting_for_it(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (source,) = iter_sources([str(tmp_path / name)])
    assert problem(source) == "is not a regular file"


def test_a_file_is_read_by_its_path_and_a_fifo_never_waited_for(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    os.mkfifo(tmp_path / "fifo")
    assert read_file(str(tmp_path / "a")) == b"abc"
    for name, listed, problem in (
        ("fifo", False, "is not a regular file"),
        ("gone", False, "not found: no such file"),
        ("gone", True, "vanished after the folder was listed"),
    ):
        with pytest.raises(ImageError) as caught:
            read_file(str(tmp_path / name), listed)
        assert caught.value.message == problem


def test_a_device_is_refused():
    (source,) = iter_sources(["/dev/zero"])
    assert problem(source) == "is not a regular file"


def test_a_file_above_the_limit_is_refused_by_its_size(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    (source,) = iter_sources([str(tmp_path)])
    assert problem(source) == "has 268,435,457 bytes; the limit is 268,435,456"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    fill(tmp_path, "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    (source,) = iter_sources([str(tmp_path)])
    assert problem(source) == "permission denied"


def test_a_path_that_is_too_long_or_holds_a_nul_is_an_error_not_a_crash():
    too_long, with_nul = iter_sources(["x" * 5000 + ".jpg", "a\0b.jpg"])
    assert "too long" in problem(too_long)
    assert "not a path" in problem(with_nul)


def test_names_that_are_not_utf8_can_be_printed_and_read(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(b"pixels")
    (source,) = iter_sources([str(tmp_path)])
    assert source.name.encode("utf-8").endswith(rb"/caf\xe9.jpg")
    assert source.read() == b"pixels"


def test_a_surrogate_that_stands_for_no_byte_can_be_printed():
    (source,) = iter_sources(["\ud800.jpg"])
    assert source.name == r"\ud800.jpg"
    assert isinstance(outcome(source), str)


def test_newlines_in_names_are_kept(tmp_path):
    fill(tmp_path, "two\nlines.jpg")
    (source,) = iter_sources([str(tmp_path)])
    assert source.name.endswith("/two\nlines.jpg")
    assert source.read() == b"two\nlines.jpg"


def test_a_folder_is_walked_depth_first_in_the_order_of_bytes(tmp_path):
    fill(tmp_path, "b.jpg", "a/2.png", "a/10.png", "a.jpg", "B.JPG", "é.jpg", "c/d/e.webp", "c.tiff")
    assert names_in(tmp_path) == [
        "B.JPG",
        "a/10.png",
        "a/2.png",
        "a.jpg",
        "b.jpg",
        "c/d/e.webp",
        "c.tiff",
        "é.jpg",
    ]


def test_only_visible_files_with_an_image_suffix_count_in_a_folder(tmp_path):
    fill(tmp_path, "a.jpg", "notes.txt", "jpg", "._a.jpg", ".thumbs/b.jpg", "__MACOSX/c.jpg", "d.zip")
    assert names_in(tmp_path) == ["a.jpg"]


def test_a_folder_named_like_an_image_is_walked(tmp_path):
    fill(tmp_path, "x.jpg/a.png", "y.zip/b.png")
    assert names_in(tmp_path) == ["x.jpg/a.png", "y.zip/b.png"]
    assert names_in(tmp_path, f"{tmp_path}/x.jpg", f"{tmp_path}/y.zip") == ["x.jpg/a.png", "y.zip/b.png"]


def test_a_folder_without_images_is_an_error(tmp_path):
    fill(tmp_path, "notes.txt")
    (source,) = iter_sources([str(tmp_path)])
    assert source.name == str(tmp_path)
    assert problem(source).startswith("no images in folder")


def test_linked_folders_are_followed(tmp_path):
    fill(tmp_path, "far/a.jpg")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    assert names_in(tmp_path, str(tmp_path / "near")) == ["near/link/a.jpg"]


def test_linked_folders_in_a_circle_are_walked_once(tmp_path):
    fill(tmp_path, "one/a.jpg", "two/b.jpg")
    (tmp_path / "one" / "up").symlink_to("..")
    (tmp_path / "one" / "self").symlink_to(".")
    (tmp_path / "two" / "one").symlink_to("../one")
    assert names_in(tmp_path) == ["one/a.jpg", "two/b.jpg", "two/one/a.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_subfolder_that_may_not_be_listed_is_one_error_among_the_images(tmp_path):
    fill(tmp_path, "a.jpg", "b/c.jpg", "d.jpg")
    (tmp_path / "b").chmod(0)
    found = list(iter_sources([str(tmp_path)]))
    (tmp_path / "b").chmod(0o700)
    assert [source.name for source in found] == [str(tmp_path / name) for name in ("a.jpg", "b", "d.jpg")]
    assert problem(found[1]) == "cannot list the folder: permission denied"


def test_a_subfolder_that_goes_away_during_the_walk_is_one_error_among_the_images(tmp_path):
    fill(tmp_path, "a.jpg", "b/c.jpg", "d.jpg")
    found = iter_sources([str(tmp_path)])
    first = next(found)
    (tmp_path / "b" / "c.jpg").unlink()
    (tmp_path / "b").rmdir()
    second, third = found
    assert (first.read(), third.read()) == (b"a.jpg", b"d.jpg")
    assert problem(second).startswith("cannot list the folder")


def test_a_tree_deeper_than_pythons_frames_is_walked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    depth = 1200
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").write_bytes(b"deep")
    os.chdir(tmp_path)
    assert [found.path for found in walk_images(".")] == ["./" + "d/" * depth + "a.jpg"]
    # pytest's own removal of old folders recurses.
    for level in range(depth, 0, -1):
        os.chdir(tmp_path / "/".join("d" * (level - 1)))
        (Path("d") / "a.jpg").unlink(missing_ok=True)
        os.rmdir("d")


def test_a_large_folder_is_not_held_as_sources(tmp_path):
    for n in range(2000):
        (tmp_path / f"{n}.jpg").touch()
    tracemalloc.start()
    try:
        num_found = sum(1 for _ in iter_sources([str(tmp_path)]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_found == 2000
    assert peak / 2000 < 700


def test_nothing_is_looked_at_before_it_is_asked_for(tmp_path):
    fill(tmp_path, "a.jpg")
    found = iter_sources([str(tmp_path / "a.jpg"), str(tmp_path / "later")])
    assert next(found).read() == b"a.jpg"
    fill(tmp_path, "later/b.jpg")
    assert next(found).read() == b"later/b.jpg"


def test_a_pattern_is_expanded_in_the_order_of_bytes(tmp_path):
    fill(tmp_path, "b.jpg", "a.jpg", "C.jpg", "d.png")
    assert names_in(tmp_path, f"{tmp_path}/*.jpg") == ["C.jpg", "a.jpg", "b.jpg"]


def test_a_pattern_takes_what_it_matches_whatever_the_suffix(tmp_path):
    fill(tmp_path, "a.jpg", "b.txt", "folder/c.jpg")
    assert names_in(tmp_path, f"{tmp_path}/*") == ["a.jpg", "b.txt", "folder/c.jpg"]


def test_two_stars_go_into_folders_and_give_each_file_once(tmp_path):
    fill(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg")
    assert names_in(tmp_path, f"{tmp_path}/**/*") == ["a.jpg", "x/b.jpg", "x/y/c.jpg"]


def test_two_stars_that_match_folders_alone_walk_them(tmp_path):
    fill(tmp_path, "x/cats/b.jpg", "y/z/cats/c.jpg", "y/d.jpg")
    assert names_in(tmp_path, f"{tmp_path}/**/cats") == ["x/cats/b.jpg", "y/z/cats/c.jpg"]


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path):
    (source,) = iter_sources([f"{tmp_path}/*.jpg"])
    assert source.name == f"{tmp_path}/*.jpg"
    assert "no file matches the pattern" in problem(source)


def test_a_file_with_a_bracket_in_its_name_is_that_file(tmp_path):
    fill(tmp_path, "a[1].jpg", "a1.jpg")
    assert names_in(tmp_path, f"{tmp_path}/a[1].jpg") == ["a[1].jpg"]


def test_a_list_names_files_relative_to_itself(tmp_path):
    fill(tmp_path, "lists/a.jpg", "b.jpg")
    (tmp_path / "lists" / "list.txt").write_text(f"# photographs\n\n  \na.jpg\r\n../b.jpg\n{tmp_path}/b.jpg\nno.jpg")
    found = list(iter_sources([f"@{tmp_path}/lists/list.txt"]))
    assert [outcome(source) for source in found] == [
        b"lists/a.jpg",
        b"b.jpg",
        b"b.jpg",
        "not found: no such file",
    ]
    assert found[1].name == f"{tmp_path}/lists/../b.jpg"


def test_the_mark_that_editors_on_windows_begin_a_list_with_is_not_of_the_first_name(tmp_path, monkeypatch):
    fill(tmp_path, "a.jpg", "b.jpg")
    text = b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n"
    (tmp_path / "list").write_bytes(text)
    assert [outcome(source) for source in iter_sources([f"@{tmp_path}/list"])] == [b"a.jpg", b"b.jpg"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(text)))
    assert [outcome(source) for source in iter_sources(["-"])] == [b"a.jpg", b"b.jpg"]


def test_a_list_with_nul_bytes_holds_names_of_any_kind(tmp_path):
    fill(tmp_path, "two\nlines.jpg", "#1.jpg", " ")
    (tmp_path / "list").write_bytes(b"two\nlines.jpg\0#1.jpg\0 \0")
    assert [source.read() for source in iter_sources([f"@{tmp_path}/list"])] == [
        b"two\nlines.jpg",
        b"#1.jpg",
        b" ",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_list_in_utf_16_never_becomes_single_characters(tmp_path, encoding):
    fill(tmp_path, "000.jpg", "0/a.jpg")
    (tmp_path / "list").write_bytes("000.jpg\r\n".encode(encoding))
    (source,) = iter_sources([f"@{tmp_path}/list"])
    if encoding == "utf-16":
        assert (source.name, source.read()) == (f"{tmp_path}/000.jpg", b"000.jpg")
    else:
        assert source.name == f"@{tmp_path}/list"
        assert "without a byte-order mark. Save it as UTF-8." in problem(source)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", ["/", "//", "/.", "/tmp/..", ".", "./", "..", "../../", "a/.."])
@pytest.mark.parametrize("end", ["\n", "\0"])
def test_an_entry_of_a_list_that_is_a_folder_without_a_name_is_an_error_and_not_a_walk(tmp_path, entry, end):
    fill(tmp_path, "a/b.jpg", "c.jpg")
    (tmp_path / "list").write_text(f"a/b.jpg{end}{entry}{end}c.jpg{end}")
    first, bad, last = iter_sources([f"@{tmp_path}/list"])
    assert (first.read(), last.read()) == (b"a/b.jpg", b"c.jpg")
    assert bad.name == entry
    assert problem(bad).startswith("is the root folder or a folder above the list")


def test_names_in_a_list_are_bytes_and_not_patterns(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"\xff*.jpg"), "wb") as file:
        file.write(b"pixels")
    (tmp_path / "list").write_bytes(b"\xff*.jpg\n*.jpg\n")
    first, second = iter_sources([f"@{tmp_path}/list"])
    assert first.read() == b"pixels"
    assert problem(second) == "not found: no such file"


def test_a_list_may_name_folders_and_archives(tmp_path):
    fill(tmp_path, "folder/a.jpg")
    write_zip(tmp_path / "b.zip", "c.jpg")
    (tmp_path / "list").write_text("folder\nb.zip\n")
    assert names_in(tmp_path, f"@{tmp_path}/list") == ["folder/a.jpg", "b.zip!c.jpg"]


def test_a_list_that_is_missing_or_empty_is_an_error(tmp_path):
    (tmp_path / "empty").write_text("# nothing\n")
    missing, empty = iter_sources([f"@{tmp_path}/no", f"@{tmp_path}/empty"])
    assert (missing.name, empty.name) == (f"@{tmp_path}/no", f"@{tmp_path}/empty")
    assert problem(missing) == "the list cannot be read: not found: no such file"
    assert problem(empty) == "the list names no images"


def test_a_list_on_standard_input_is_relative_to_the_working_folder(tmp_path, monkeypatch):
    fill(tmp_path, "a.jpg", "b/c.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a.jpg\nb/c.jpg\n")))
    assert [(source.name, source.read()) for source in iter_sources(["-"])] == [
        ("a.jpg", b"a.jpg"),
        ("b/c.jpg", b"b/c.jpg"),
    ]


def write_zip(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, name.encode())


def write_tar(path: Path, *names: str, mode: str = "w", num_bytes: int = 0) -> None:
    with tarfile.open(path, mode) as archive:
        for name in names:
            data = os.urandom(num_bytes) or name.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


KINDS = {
    "a.zip": "",
    "a.ZIP": "",
    "a.tar": "w",
    "a.tar.gz": "w:gz",
    "a.tgz": "w:gz",
    "a.tar.bz2": "w:bz2",
    "a.tbz2": "w:bz2",
    "a.tar.xz": "w:xz",
    "a.txz": "w:xz",
}


def write_archive(path: Path, *names: str) -> None:
    if KINDS[path.name]:
        write_tar(path, *names, mode=KINDS[path.name])
    else:
        write_zip(path, *names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_an_archive_come_in_its_order(tmp_path, kind):
    names = ("z.jpg", "notes.txt", "x/y/a.PNG", ".b.jpg", "__MACOSX/c.jpg", "./e.jpg", ".git/f.jpg", "a/")
    path = tmp_path / kind
    write_archive(path, *names)
    before = sorted(tmp_path.rglob("*"))
    found = [(source.name, source.read()) for source in iter_sources([str(path)])]
    assert found == [(f"{path}!{name}", name.encode()) for name in ("z.jpg", "x/y/a.PNG", "./e.jpg")]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_an_archive_without_images_is_an_error(tmp_path, kind):
    path = tmp_path / kind
    write_archive(path, "notes.txt")
    (source,) = iter_sources([str(path)])
    assert (source.name, problem(source)) == (str(path), "no images in archive")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(600)])
def test_a_file_that_is_no_archive_is_one_error(tmp_path, kind, content):
    (tmp_path / kind).write_bytes(content)
    (source,) = iter_sources([str(tmp_path / kind)])
    assert source.name == str(tmp_path / kind)
    assert problem(source)


def test_an_archive_that_is_missing_is_not_found(tmp_path):
    (source,) = iter_sources([str(tmp_path / "a.zip")])
    assert problem(source) == "not found: no such file"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind]])
@pytest.mark.parametrize("share", [0.35, 0.6, 0.95])
def test_a_truncated_tar_gives_what_is_there_and_one_error(tmp_path, kind, share):
    path = tmp_path / kind
    names = [f"{n}.jpg" for n in range(6)]
    write_tar(path, *names, mode=KINDS[kind], num_bytes=30_000)
    whole = [source.read() for source in iter_sources([str(path)])]
    size = path.stat().st_size - (6144 if kind == "a.tar" else 0)
    os.truncate(path, int(size * share))
    *good, bad = iter_sources([str(path)])
    assert len(good) < 6
    assert [source.read() for source in good] == whole[: len(good)]
    assert "truncated" in problem(bad)
    if kind == "a.tar":
        assert len(good) == int(6 * share)


@pytest.mark.parametrize("num_blocks", [2, 3, 4])
def test_a_tar_cut_between_members_is_noticed(tmp_path, num_blocks):
    path = tmp_path / "a.tar"
    write_tar(path, "1.jpg", "2.jpg", "3.jpg")
    os.truncate(path, num_blocks * 512)
    *good, bad = iter_sources([str(path)])
    assert len(good) == num_blocks // 2
    assert "truncated or damaged" in problem(bad)


def test_a_tar_with_a_damaged_header_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, "1.jpg", "2.jpg", "3.jpg")
    data = bytearray(path.read_bytes())
    data[1024:1030] = b"damage"
    path.write_bytes(data)
    good, bad = iter_sources([str(path)])
    assert good.read() == b"1.jpg"
    assert "truncated or damaged" in problem(bad)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_zip_is_one_error(tmp_path, share):
    path = tmp_path / "a.zip"
    write_zip(path, "1.jpg", "2.jpg")
    os.truncate(path, int(path.stat().st_size * share))
    (source,) = iter_sources([str(path)])
    assert "truncated" in problem(source)


def test_a_zip_member_with_damaged_bytes_is_an_error_between_good_ones(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, "1.jpg", "2.jpg", "3.jpg", method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"2.jpg2.jpg", b"2.jpgX.jpg"))
    found = list(iter_sources([str(path)]))
    assert [isinstance(outcome(source), bytes) for source in found] == [True, False, True]
    assert found[1].name == f"{path}!2.jpg"
    assert "cannot be read from the archive" in problem(found[1])


def test_an_encrypted_zip_member_is_an_error(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, "1.jpg")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    (source,) = iter_sources([str(path)])
    assert problem(source) == "is encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_cannot_be_bounded_are_refused(tmp_path, method):
    write_zip(tmp_path / "a.zip", "1.jpg", method=method)
    (source,) = iter_sources([str(tmp_path / "a.zip")])
    assert f"compression method {method}" in problem(source)


def test_links_in_a_zip_are_errors(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    (source,) = iter_sources([str(tmp_path / "a.zip")])
    assert "is a symbolic link" in problem(source)


def test_links_and_fifos_in_a_tar_are_errors_between_good_ones(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        kinds = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE)
        for number, kind in enumerate(kinds, start=1):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "1.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(info.name) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(info.name.encode()))
    assert [outcome(source) for source in iter_sources([str(tmp_path / "a.tar")])] == [
        b"1.jpg",
        "is a link; links in archives are not followed",
        "is a link; links in archives are not followed",
        "is not a regular file",
        b"5.jpg",
    ]


def test_members_above_the_limit_are_refused_by_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.jpg", bytes(1001))
        archive.writestr("2.jpg", b"2")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name, size in (("1.jpg", 1001), ("2.jpg", 1)):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(b"2" * size))
    for kind in ("a.zip", "a.tgz"):
        found = [outcome(source) for source in iter_sources([str(tmp_path / kind)])]
        assert found == ["has 1,001 bytes; the limit is 1,000", b"2"]


def test_a_zip_member_larger_than_it_says_is_not_inflated(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.jpg", bytes(64 << 20))
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2") + 24
    data[start : start + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        (source,) = iter_sources([str(path)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "cannot be read from the archive" in problem(source)
    assert peak < 2 << 20


def test_an_extended_tar_header_may_not_fill_the_memory(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.jpg")
        info.pax_headers = {"comment": "x" * (2 << 20)}
        archive.addfile(info)
    (source,) = iter_sources([str(tmp_path / "a.tar.gz")])
    assert "an extended header of" in problem(source)


def test_long_and_foreign_names_in_a_tar_are_kept(tmp_path):
    names = ["d/" * 120 + "a.jpg", "größe.jpg", "two\nlines.jpg"]
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{tar_format}.tar"
        with tarfile.open(path, "w", format=tar_format) as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
        assert names_in(tmp_path, str(path)) == [f"{path.name}!{name}" for name in names]


def test_names_in_an_archive_that_are_not_utf8_can_be_printed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("caf\udce9.jpg"))
    (source,) = iter_sources([str(tmp_path / "a.tar")])
    assert source.name == rf"{tmp_path}/a.tar!caf\xe9.jpg"


def test_members_leading_out_of_the_archive_are_only_names(tmp_path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", "../out.jpg", "/abs.jpg")
    assert [source.read() for source in iter_sources([str(tmp_path / "in" / "a.tar")])] == [
        b"../out.jpg",
        b"/abs.jpg",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_empty_member_is_an_empty_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"")
    (source,) = iter_sources([str(tmp_path / "a.zip")])
    assert problem(source) == "the file is empty"


def test_members_are_read_one_at_a_time(tmp_path):
    write_tar(tmp_path / "a.tar", *(f"{n}.jpg" for n in range(50)), num_bytes=100_000)
    tracemalloc.start()
    try:
        assert sum(len(source.read()) for source in iter_sources([str(tmp_path / "a.tar")])) == 5_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_a_caller_that_stops_early_leaves_no_open_file(tmp_path, kind):
    path = tmp_path / kind
    write_zip(path, "1.jpg", "2.jpg") if kind == "a.zip" else write_tar(path, "1.jpg", "2.jpg", mode=KINDS[kind])
    num_open = len(os.listdir("/proc/self/fd"))
    found = iter_sources([str(path)])
    assert next(found).read() == b"1.jpg"
    found.close()
    assert len(os.listdir("/proc/self/fd")) == num_open


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_damage_anywhere_in_an_archive_raises_nothing(tmp_path, kind):
    path = tmp_path / kind
    write_zip(path, "1.jpg", "2.jpg") if kind == "a.zip" else write_tar(path, "1.jpg", "2.jpg", mode=KINDS[kind])
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        assert [outcome(source) for source in iter_sources([str(path)])]


def test_a_tar_member_of_a_negative_size_ends_the_archive_and_not_the_time(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(10240))
    (source,) = iter_sources([str(tmp_path / "a.tar")])
    assert "a member of -512 bytes" in problem(source)


def test_inputs_are_counted_without_being_used_up(tmp_path, monkeypatch):
    fill(tmp_path, "a/1.jpg", "a/2.heic", "a/no.txt", "b.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a\nb.jpg\n")))
    inputs = read_inputs(["a", "-", "*.jpg", "missing.jpg"])
    assert inputs.count() == inputs.count() == len(list(inputs)) == 2 + 3 + 1 + 1


def test_images_in_archives_are_not_counted_since_they_would_have_to_be_read(tmp_path):
    fill(tmp_path, "a.jpg")
    write_zip(tmp_path / "b.zip", "c.jpg")
    assert read_inputs([str(tmp_path / "a.jpg"), str(tmp_path / "b.zip")]).count() is None


def test_counting_ends_where_nobody_wants_to_know_any_more(tmp_path):
    fill(tmp_path, *(f"{index}.jpg" for index in range(9)))
    answers = iter([True, True, False])
    assert read_inputs([str(tmp_path)]).count(lambda: next(answers)) is None


def test_members_of_a_zip_archive_with_backslashes_are_found(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (".\\a.jpg", "cats\\b.jpg", "cats\\.hidden\\c.jpg", "cats\\d.txt", "cats\\", "__MACOSX\\._b.jpg"):
            info = zipfile.ZipInfo("x")
            # Past the constructor, which replaces them on Windows.
            info.filename = name
            archive.writestr(info, name.encode())
    inputs = read_inputs([str(tmp_path / "a.zip")])
    assert [(source.name.partition("!")[2], source.read()) for source in inputs] == [
        ("./a.jpg", b".\\a.jpg"),
        ("cats/b.jpg", b"cats\\b.jpg"),
    ]
    assert str(inputs.skipped) == "1 file that is not an image (.txt 1) and 2 hidden or system names"


def test_what_a_walk_passes_over_is_counted_by_suffix(tmp_path):
    fill(
        tmp_path,
        "a.jpg",
        "x/b.txt",
        "x/c.TXT",
        "x/README",
        "d.xml",
        ".hidden.jpg",
        ".git/e.jpg",
        "@eaDir/a.jpg",
        "f.zip",
    )
    write_tar(tmp_path / "g.tar", "a.jpg", "notes.txt", "._a.jpg")
    inputs = read_inputs([str(tmp_path), str(tmp_path / "g.tar")])
    assert inputs.count() is None
    assert str(inputs.skipped) == ""
    for _ in range(2):
        assert sum(1 for _ in inputs) == 2
        assert inputs.skipped.suffixes == {".txt": 3, "no suffix": 1, ".xml": 1, ".zip": 1, ".tar": 1}
        assert inputs.skipped.num_hidden == 4
    fill(tmp_path, *(f"many/{number}.{number}" for number in range(300)))
    assert sum(1 for _ in inputs) == 2
    assert len(inputs.skipped.suffixes) == 101
    assert str(inputs.skipped).startswith("307 files that are not images (others ")


@pytest.mark.parametrize("inputs", [None, 5, [None], [5], [b"a.jpg"], [["a.jpg"]], "a.jpg", b"a.jpg", Path("a.jpg")])
def test_what_is_no_list_of_paths_is_a_usage_error(inputs):
    with pytest.raises(UsageError, match=r"inputs is .*; expected a list of paths"):
        iter_sources(inputs)


def test_paths_may_come_from_an_iterator_and_hold_bytes_that_are_no_text():
    assert read_inputs(iter([Path("a.jpg"), "b\udcff.jpg"])).texts == ("a.jpg", "b\udcff.jpg")
