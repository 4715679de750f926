"""The blocks of the pages: README.md and docs/*.md, parsed by Sybil, with the comments that say how to run each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sybil import Document, Region, Sybil
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[2]
GENERATED = ("api.md", "cli.md", "options.md", "performance.md")
"""Written by `make docs`, whose examples other tests parse, and by `python -m benchmarks --docs`, for half an hour."""

PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]

RUN = ("sh", "console", "python")
SHOWN = ("text", "toml", "json", "yaml", "dockerfile", "html", "xml", "ini", "sql", "c", "cpp", "java", "javascript")
"""Languages of blocks that are run, and of those that are only shown."""

SKIP_REASONS = {
    "needs a GPU": "TensorRT, CUDA or several devices",
    "needs a cluster": "Ray on several machines, Kubernetes",
    "needs containers": "docker, buildah, compose",
    "needs a network": "downloads, buckets, web servers, other machines",
    "needs files from elsewhere": "published weights and data sets that are not shipped",
    "needs another program": "what the tests do not install",
    "takes minutes": "training or measuring at the size that the page shows; the command is tested elsewhere",
    "is an outline": "a form to fill in, or a part of a program",
}
"""Why a block is not run: `<!-- skip: REASON -->`, `<!-- skip: REASON, and more words -->`."""

FOLDERS = ("empty", "without models")
"""What a page may begin with, other than all that the reader has: `<!-- folder: empty -->`."""

_MARKS = ("skip", "output", "file", "exit code", "with", "folder", "setup")


class BlockError(Exception):
    """A block or a comment before it breaks a rule of CONTRIBUTING.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One fenced block. `marks` are the comments right before it: mark -> its argument, "" without one."""

    page: Path
    line: int
    language: str
    source: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def skip_reason(self) -> str | None:
        """The key of SKIP_REASONS; None if the block is run or shown."""
        return None if "skip" not in self.marks else self.marks["skip"].partition(",")[0]

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not self.marks.keys() & {"skip", "file"}


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page from top to bottom. Raises BlockError with the line of what breaks a rule."""
    parsed = list(_SYBIL.parse(page).examples())
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    end_of_marks = 0
    for example in parsed:
        kind, text = example.parsed
        place = f"{page.relative_to(ROOT)}:{example.line}"
        between = example.document.text[end_of_marks : example.start]
        if marks and between.strip():
            raise BlockError(f"{place}: text between {', '.join(marks)} and the block; comments stand right before it")
        end_of_marks = example.end
        if kind in _MARKS:
            # The region of a comment ends before its "-->".
            end_of_marks = example.document.text.index("-->", example.end) + 3
            marks[kind] = text
            continue
        block = Block(page=page, line=example.line, language=kind, source=text, marks=marks)
        _check(block, blocks)
        blocks.append(block)
        marks = {}
    if marks:
        raise BlockError(f"{page.relative_to(ROOT)}: {', '.join(marks)} at the end, with no block after it")
    return blocks


def indented_blocks(page: Path) -> list[int]:
    """The first lines of blocks that are indented by four spaces, outside of lists and fences."""
    lines = page.read_text(encoding="utf-8").split("\n")
    fence, in_list, found = "", False, list[int]()
    for number, line in enumerate(lines, 1):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
        elif fence:
            continue
        elif re.match(r"([-*+]|\d+\.) ", line):
            in_list = True
        elif line and not line.startswith(" "):
            in_list = False
        elif line.startswith("    ") and not in_list and not lines[number - 2].strip():
            found.append(number)
    return found


def _check(block: Block, before: list[Block]) -> None:
    if not block.language:
        raise BlockError(f"{block.place}: a block without a language")
    if block.language not in (*RUN, *SHOWN):
        raise BlockError(f"{block.place}: {block.language}; expected one of {', '.join((*RUN, *SHOWN))}")
    reason = block.skip_reason
    if reason is not None and reason not in SKIP_REASONS:
        raise BlockError(f"{block.place}: skip: {reason or 'no reason'}; expected one of {', '.join(SKIP_REASONS)}")
    if "output" in block.marks and (block.language != "text" or not before or not before[-1].is_run):
        raise BlockError(f"{block.place}: an output is a text block after one that is run")
    if block.language == "console" and not block.source.startswith("$ "):
        raise BlockError(f"{block.place}: a console block begins with $")
    if "folder" in block.marks and (block.marks["folder"] not in FOLDERS or before):
        raise BlockError(f"{block.place}: folder is one of {', '.join(FOLDERS)}, before the first block of a page")


def _comments(document: Document) -> Iterable[Region]:
    """Comments whose first word is one of _MARKS; all others are the page's own."""
    for lexed in DirectiveInHTMLCommentLexer("|".join(_MARKS))(document):
        yield Region(lexed.start, lexed.end, (lexed.lexemes["directive"], lexed.lexemes["arguments"]))


def _fences(document: Document) -> Iterator[Region]:
    lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[\w+-]*)[^\n]*\n"))
    for lexed in lexer(document):
        yield Region(lexed.start, lexed.end, (lexed.lexemes["language"], str(lexed.lexemes["source"])))


_PARSERS: list[Callable[[Document], Iterable[Region]]] = [_comments, _fences]
_SYBIL = Sybil(parsers=_PARSERS)
