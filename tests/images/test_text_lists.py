"""Lists as people save them: every encoding that has a byte-order mark, NULs between names, and what is neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alexdeploy.core.errors import DataError
from alexdeploy.images.text_lists import list_lines, split_names, text_lines

MARKED = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32-le": b"\xff\xfe\0\0",
    "utf-32-be": b"\0\0\xfe\xff",
}


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_the_mark_tells_the_encoding(tmp_path: Path, encoding: str, line_end: str) -> None:
    text = line_end.join(["a.jpg", "# comment", "", "größe 猫.jpg", "Ā.jpg", ""])
    data = MARKED[encoding] + text.encode(encoding)
    assert split_names(data, "list") == ["a.jpg", "größe 猫.jpg", "Ā.jpg"]
    (tmp_path / "list").write_bytes(data)
    assert list(list_lines(tmp_path / "list")) == [(1, "a.jpg"), (4, "größe 猫.jpg"), (5, "Ā.jpg")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["000.jpg\r\n", "a.jpg\nb.jpg\n", "猫" * 40 + "\n" + "犬" * 40 + "\n", "a"])
def test_wide_text_without_a_mark_is_refused_and_never_split_at_its_nuls(
    tmp_path: Path, encoding: str, text: str
) -> None:
    data = text.encode(encoding)
    with pytest.raises(DataError, match="looks like UTF-16 or UTF-32 without a byte-order mark") as caught:
        split_names(data, "list")
    assert caught.value.hint == "Save it as UTF-8."
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(DataError, match="without a byte-order mark"):
        list(text_lines(tmp_path / "list"))


@pytest.mark.parametrize(
    "names",
    [
        ["./a"],
        ["./a.jpg", "./b.jpg", "./c.jpg"],
        ["two\nlines.jpg", "#1.jpg", " ", "carriage\rreturn.jpg"],
        ["five5", "seven77", "odd\nlengths"],
        [os.fsdecode(b"caf\xe9\xff\xfe.jpg"), "猫.jpg"],
    ],
)
def test_names_between_nuls_stay_as_they_are(names: list[str]) -> None:
    data = b"".join(os.fsencode(f"{name}\0") for name in names)
    assert split_names(data, "list") == names
    assert split_names(data + b"\0", "list") == names


def test_names_between_nuls_may_be_in_wide_text_with_a_mark() -> None:
    assert split_names("a.jpg\0two\nlines.jpg\0".encode("utf-16"), "list") == ["a.jpg", "two\nlines.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("length", [30, 31])
def test_wide_lines_far_down_in_a_list_are_refused(encoding: str, line_end: str, length: int) -> None:
    data = b"a\n" * length + (b"b" * length + b".jpg\n") * 3000 + f"c.jpg{line_end}猫{line_end}".encode(encoding)
    with pytest.raises(DataError, match=r"^list mixes lines in UTF-16 or UTF-32") as caught:
        split_names(data, "list")
    assert caught.value.hint == "Save it as UTF-8."


@pytest.mark.parametrize("encoding", MARKED)
def test_marks_of_appended_lists_belong_to_no_name(tmp_path: Path, encoding: str) -> None:
    data = b"".join(MARKED[encoding] + text.encode(encoding) for text in ("a.jpg\n", "b.jpg\n", "# c\nd.jpg\n"))
    assert split_names(data, "list") == ["a.jpg", "b.jpg", "d.jpg"]
    (tmp_path / "list").write_bytes(data)
    assert list(list_lines(tmp_path / "list")) == [(1, "a.jpg"), (2, "b.jpg"), (4, "d.jpg")]


def test_wide_text_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    data = "a.jpg\n".encode("utf-16")[:-1]
    with pytest.raises(DataError, match=r"list is not valid UTF-16(-LE)?: truncated data"):
        split_names(data, "list")
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(DataError, match="is not valid UTF-16"):
        list(text_lines(tmp_path / "list"))


def test_bytes_that_are_not_utf8_come_as_in_file_names(tmp_path: Path) -> None:
    data = b"caf\xe9.jpg\n"
    assert split_names(data, "list") == [os.fsdecode(b"caf\xe9.jpg")]
    (tmp_path / "list").write_bytes(data)
    assert list(text_lines(tmp_path / "list")) == [(1, os.fsdecode(b"caf\xe9.jpg"))]


def test_a_nul_in_a_list_of_labels_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a.jpg daisy\nb.jpg\0 roses\n")
    with pytest.raises(DataError, match="list:2: NUL character found; the file is not text"):
        list(text_lines(tmp_path / "list"))
