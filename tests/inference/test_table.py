"""The table for people: columns that stay in line whatever the names are."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from alexdeploy.core.printable import escape
from alexdeploy.inference.row import Choice, Row
from alexdeploy.inference.table import fit
from alexdeploy.inference.writers import Shape, text_format

CLASSES = ("tabby cat", "Egyptian cat", "fox")


def make_row(source: str = "a.jpg", *, label: str = "fox", error: str | None = None) -> Row:
    top = tuple(
        Choice(label=name, index=0, probability=probability)
        for name, probability in ((label, 0.75), ("tabby cat", 0.125), ("Egyptian cat", 0.0625))
    )
    return Row(
        index=0,
        source=source,
        top=() if error else top,
        views_agreeing=None if error else 9,
        num_views=10,
        backend="onnxruntime",
        precision="fp32",
        artifact="0" * 12,
        error=error,
    )


def table(row: Row, *, width: int = 100, num_views: int = 10) -> list[str]:
    form = text_format("table", Shape(classes=CLASSES, top_k=3, num_views=num_views, width=width))
    return (form.header + form.line(row)).splitlines()


def test_a_row_shows_source_label_probability_views_and_the_next_labels() -> None:
    header, line = table(make_row(), width=140)
    assert header.split() == ["source", "label", "prob", "views", "next"]
    assert line.split("  ")[0] == "a.jpg"
    assert line.endswith("fox           0.7500   9/10  tabby cat 0.1250, Egyptian cat 0.0625")
    assert header.index("label") == line.index("fox")


def test_views_are_not_shown_when_there_is_only_one() -> None:
    assert "views" not in table(make_row(), num_views=1)[0]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize(
    "row",
    [
        make_row("long/" * 60 + "name.jpg"),
        make_row("写真" * 60, label="とても長い名前の動物たち" * 3),
        make_row("long/" * 60, error="bad " * 90),
    ],
    ids=["long", "wide", "error"],
)
def test_no_line_is_wider_than_the_terminal(row: Row, width: int) -> None:
    assert max(cell_len(line) for line in table(row, width=width)) <= width


def test_the_end_of_a_long_path_is_what_is_shown() -> None:
    assert "/cats/1.jpg " in table(make_row("very/" * 60 + "/cats/1.jpg"))[1]


def test_an_error_takes_the_place_of_the_answer() -> None:
    line = table(make_row(error="the file is empty"))[1]
    assert line.split("  ", 1)[1].strip() == "error: the file is empty"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9bb", r"a\x9bb"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        ("[red]a[/red]", "[red]a[/red]"),
        ("写真", "写真"),
    ],
)
def test_what_could_command_the_terminal_is_escaped(name: str, shown: str) -> None:
    assert escape(name) == shown
    for row in (make_row(name), make_row(label=name), make_row(error=name)):
        lines = table(row, width=200)
        assert len(lines) == 2
        assert shown in lines[1]
        assert all(line.isprintable() for line in lines)


def test_text_is_cut_by_cells_and_not_by_characters() -> None:
    assert fit("写真写真写真", 8) == "写真... "
    assert fit("e\u0301" * 4, 4) == "e\u0301" * 4
    assert fit("abcdefgh", 6, keep_end=True) == "...fgh"
