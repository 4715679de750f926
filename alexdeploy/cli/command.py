"""The layout of commands in Typer's help and in docs/cli.md: examples first, plain values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

_FENCE = re.compile(r"```console\n(.*?)\n```", re.DOTALL)


def help_text(examples: Sequence[str], text: str) -> str:
    """Examples as a block of Markdown, then the paragraphs of a docstring, each in one line for any width."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))
    return "\n\n".join(("```console\n" + "\n".join(examples) + "\n```", *paragraphs))


def summary(function: Callable[..., object]) -> str:
    """The first paragraph of its docstring, in one line."""
    return " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())


def _for_terminal(markdown: str | None) -> str | None:
    # A paragraph that begins with \b keeps its lines; rich removes the character itself.
    return None if markdown is None else _FENCE.sub(lambda found: "\b" + found[1], markdown).replace("`", "")


def _use_plain_values(params: Sequence[Any]) -> None:
    """Show no value for flags, and arguments by name only, without Python types."""
    for param in params:
        if param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: None
        elif param.is_flag:
            param.metavar = ""


class Command(TyperCommand):
    """A command; `help` is Markdown."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)
        _use_plain_values(params)
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`INPUT...` and `[MODEL]`, without the braces that Typer adds around required arguments."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        markdown, self.help = self.help, _for_terminal(self.help)
        super().format_help(ctx, formatter)
        self.help = markdown


class Group(TyperGroup):
    """The program; `help` and `epilog` are Markdown."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)
        _use_plain_values(params)
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        markdown = self.help, self.epilog
        self.help, self.epilog = _for_terminal(self.help), _for_terminal(self.epilog)
        super().format_help(ctx, formatter)
        self.help, self.epilog = markdown
