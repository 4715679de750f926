"""Text in pictures: what the font lacks is visible."""

from __future__ import annotations

import pytest

from alexdeploy.reports.lettering import fit, font, legible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("golden retriever, 97.3 %", "golden retriever, 97.3 %"),
        ("piñata, Żółw", "pinata, Z\\u0142w".replace("Z\\u0142", "Zo\\u0142")),
        ("中", "\\u4e2d"),
        ("🐕", "\\U0001f415"),
        ("line\nend\x1b[31m\u202e", "line\\nend\\x1b[31m\\u202e"),
    ],
)
def test_letters_that_the_font_lacks_become_plain_ones_or_escapes(text: str, shown: str) -> None:
    assert legible(text) == shown


@pytest.mark.parametrize("keep_end", [False, True])
def test_a_long_text_is_cut_to_its_room(keep_end: bool) -> None:
    name = "a very long name " * 200 + "end"
    cut = fit(name, 14, 150, keep_end=keep_end)
    assert 130 < font(14).getlength(cut) <= 150
    assert cut.startswith("...") == keep_end
    assert cut.endswith("end" if keep_end else "...")
    assert fit("short", 14, 150) == "short"
