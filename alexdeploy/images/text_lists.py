"""Text files with one entry per line: inputs, labels and class names, in the encodings of editors and shells."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator

from alexdeploy.core.errors import DataError
from alexdeploy.core.reading import missing_path, open_regular
from alexdeploy.images.listing import describe

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16: UTF-32's little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = ("utf-8", "utf-8-sig")
_MAX_LINE = 8192
"""Most characters in a line: twice the longest path. A line of only blanks would use memory of their number squared."""

_MARK = "\ufeff"
"""The decoded byte-order mark. It also appears at the start of a line where one list was appended to another."""

_SAMPLE_BYTES = 1 << 16
_SAVE_AS_UTF8 = "Save it as UTF-8."


def split_names(data: bytes, name: str) -> list[str]:
    """The entries of a list of paths: separated by NULs if the text has any, else its lines.

    NUL-separated entries are taken literally, as `find -print0` writes names. Lines that are blank or begin with # are
    skipped. Without a byte-order mark, names are decoded as Python decodes file names. Raises DataError for text that
    cannot be decoded.
    """
    encoding = _encoding(data[:_SAMPLE_BYTES], name)
    if encoding in _UTF8 and _has_wide_lines(data):
        raise DataError(f"{name} mixes lines in UTF-16 or UTF-32 with other encodings.", hint=_SAVE_AS_UTF8)
    try:
        text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8)) if encoding in _UTF8 else data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise _not_decodable(name, exc) from exc
    if "\0" in text:
        return [entry for entry in text.split("\0") if entry]
    lines = (line.rstrip("\n").removeprefix(_MARK) for line in io.StringIO(text, newline=None))
    return [line for line in lines if line.strip() and not line.startswith("#")]


def text_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """All lines of a file, stripped, with their numbers from 1; non-UTF-8 bytes are decoded as in Python's file names.

    Raises UsageError for a file that does not exist; DataError for a file that cannot be read or decoded, for a NUL,
    and for a line of more than 8,192 characters.
    """
    name = os.fspath(path)
    try:
        with open_regular(path, own_pipe=True) as file, _decoded(file, name) as text:
            for number, line in enumerate(iter(lambda: text.readline(_MAX_LINE + 1), ""), start=1):
                if "\0" in line:
                    raise DataError(f"{name}:{number}: NUL character found; the file is not text.", hint=_SAVE_AS_UTF8)
                if len(line) > _MAX_LINE:
                    raise DataError(
                        f"{name}:{number}: a line of more than {_MAX_LINE:,} characters",
                        hint="Write one entry per line.",
                    )
                yield number, line.removeprefix(_MARK).strip()
    except FileNotFoundError as exc:
        raise missing_path(name) from exc
    except OSError as exc:
        raise DataError(f"{name} cannot be read: {describe(exc)}.", hint="Give a text file.") from exc
    except UnicodeDecodeError as exc:
        raise _not_decodable(name, exc) from exc


def list_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of `text_lines`, without blank lines and those that begin with #."""
    return ((number, line) for number, line in text_lines(path) if line and not line.startswith("#"))


def _decoded(file: io.BufferedReader, name: str) -> io.TextIOWrapper:
    """`file`, which may be a pipe, as text with \\n line ends."""
    encoding = _encoding(file.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES], name)
    return io.TextIOWrapper(file, encoding, "surrogateescape" if encoding in _UTF8 else "strict")


def _encoding(beginning: bytes, name: str) -> str:
    """The encoding of the byte-order mark, else UTF-8. Raises DataError for UTF-16 without a mark."""
    encoding = next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), "utf-8")
    if encoding == "utf-8" and _looks_wide(beginning):
        raise DataError(f"{name} looks like UTF-16 or UTF-32 without a byte-order mark.", hint=_SAVE_AS_UTF8)
    return encoding


def _looks_wide(sample: bytes) -> bool:
    """Whether NULs are halves of UTF-16 characters, not separators between names.

    In text of Latin letters, every second byte is NUL. In other text, line ends and dots have NULs, all at odd or all
    at even positions. As a separator, a NUL next to a line end would mean a name that begins or ends with a line end.
    """
    sample = sample[: len(sample) // 2 * 2]
    if sample.count(0) * 3 >= len(sample) > 0:
        return True
    low, high = sample[::2], sample[1::2]
    for characters, zeros in ((low, high), (high, low)):
        if 0 in zeros and 0 not in characters:
            return any(char == 0x0A and zero == 0 for char, zero in zip(characters, zeros, strict=True))
    return False


def _has_wide_lines(data: bytes) -> bool:
    """Whether a line end is a multi-byte character, as when Windows PowerShell appends to a list.

    With NULs as separators, this would be a name that consists of a line end only.
    """
    return b"\0\n\0" in data or data.endswith(b"\0\n")


def _not_decodable(name: str, exc: UnicodeDecodeError) -> DataError:
    return DataError(f"{name} is not valid {exc.encoding.upper()}: {exc.reason}.", hint=_SAVE_AS_UTF8)
