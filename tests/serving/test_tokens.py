"""Who may use a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexdeploy.core.errors import UsageError
from alexdeploy.serving.errors import UnauthorizedError
from alexdeploy.serving.tokens import Tokens

FIRST, SECOND = "first-token-of-two", "second-token-of-two"


def test_without_tokens_everybody_is_let_in() -> None:
    assert Tokens().client_of(None, "10.0.0.1") == "10.0.0.1"


def test_several_tokens_tell_clients_apart_and_one_does_not() -> None:
    assert Tokens([FIRST, SECOND]).client_of(f"Bearer {SECOND}", "10.0.0.1") == "token 2"
    assert Tokens([FIRST]).client_of(f"bearer  {FIRST}", "10.0.0.1") == "10.0.0.1"


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", f"Basic {FIRST}", FIRST, f"Bearer {FIRST}x", "Bearer \udcff"]
)
def test_all_others_are_not(sent: str | None) -> None:
    with pytest.raises(UnauthorizedError, match="Bearer TOKEN"):
        Tokens([FIRST, SECOND]).client_of(sent, "10.0.0.1")


def test_a_file_has_one_token_a_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# of the tests\n{FIRST}\n\n  {SECOND}  \n")
    assert len(Tokens.from_file(path)) == 2
    assert Tokens.from_file(path).client_of(f"Bearer {FIRST}", "") == "token 1"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "short\n", "a token with spaces in it\n", "é" * 20])
def test_a_file_without_good_tokens_is_refused_and_no_token_is_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        Tokens.from_file(path)
    assert not text.strip("#\n ") or text.strip() not in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_bad_token_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# of the tests\n\n{FIRST}\nshort\n")
    with pytest.raises(UsageError, match=r"tokens: the token in line 4 is not 16 or more visible"):
        Tokens.from_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nosuch"):
        Tokens.from_file(tmp_path / "nosuch")
