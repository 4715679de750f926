"""Numbered parts of rows in a folder or under the prefix of a bucket, and the manifest of those that are complete."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec

from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.core.files import atomic_write, remove_file
from alexdeploy.core.stores.objects import check_url, has_object, list_folder, object_size, read_object, write_object
from alexdeploy.core.stores.urls import is_http, is_url, local_path, printable_url
from alexdeploy.inference.journal import check_setting

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 30
_PART = re.compile(r"part-\d{6,}\.(parquet|jsonl)")
_TEMPORARY = re.compile(rf"\.({_PART.pattern}|{re.escape(MANIFEST)})\..*\.tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A complete part. `inputs` identifies the names of its images: the first digits of a SHA-256.

    `artifact` has answered, by `backend` on `processor`, with the `versions` of alexdeploy and libraries; `node` is the
    host that wrote the part, in `seconds`.
    """

    number: int
    inputs: str
    num_rows: int
    num_errors: int
    backend: str
    artifact: str
    processor: str
    versions: dict[str, str]
    node: str
    seconds: float


class Answers:
    """What has answered in the parts so far."""

    def __init__(self) -> None:
        self._num_rows: dict[str, Counter[str]] = {}

    def add(self, part: Part) -> bool:
        """Whether something in the part is other than in those before."""
        origin = {"artifact": part.artifact, "backend": part.backend, "processor": part.processor, **part.versions}
        is_first = not self._num_rows
        is_new = False
        for name, value in origin.items():
            counts = self._num_rows.setdefault(name, Counter())
            is_new |= value not in counts
            counts[value] += part.num_rows
        return is_new and not is_first

    def mixture(self) -> str | None:
        """The warning of parts that were not all answered by the same; None if they were."""
        mixed = [
            f"{name} {', '.join(f'{value} ({count:,})' for value, count in counts.items())}"
            for name, counts in self._num_rows.items()
            if len(counts) > 1
        ]
        if not mixed:
            return None
        return (
            f"the images were not all answered by the same: {'; '.join(mixed)}. The bits of their probabilities may "
            f"differ; {MANIFEST} says which part is whose"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """`settings` fix the rows. A part that is not in `parts` is not complete, whether or not its file is there."""

    manifest: Literal[1] = 1
    is_complete: bool
    settings: dict[str, str | int]
    parts: list[Part]


class Output:
    """A folder for parts. `name` is how messages call it. Raises UsageError for a URL that cannot be written to."""

    def __init__(self, place: str | os.PathLike[str], kind: Literal["parquet", "jsonl"]) -> None:
        text = local_path(os.fspath(place))
        self.is_stored = is_url(text)
        self.kind = kind
        if self.is_stored:
            check_url(text)
            if is_http(text):
                raise UsageError(f"{printable_url(text)}: expected a folder, or a prefix as in s3://bucket/rows/")
        # Other processes have other working folders.
        self._folder = text.rstrip("/") if self.is_stored else os.path.abspath(text)
        self.name = printable_url(self._folder)

    def path_of(self, name: str) -> str:
        return f"{self._folder}/{name}" if self.is_stored else os.path.join(self._folder, name)

    def part_name(self, number: int) -> str:
        return f"part-{number:06d}.{self.kind}"

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        """A file that appears under `name`, as a whole, when the block succeeds. Raises OutputError."""
        if not self.is_stored:
            with atomic_write(Path(self.path_of(name))) as file:
                yield file
            return
        with tempfile.TemporaryDirectory(prefix="alexdeploy-") as folder:
            local = Path(folder) / name
            with atomic_write(local) as file:
                yield file
            try:
                write_object(self.path_of(name), local)
            except OSError as exc:
                raise OutputError(f"{self.name}/{name} could not be written: {exc.strerror or exc}") from exc

    def begin(self, settings: dict[str, str | int], *, resume: bool, overwrite: bool) -> list[Part]:
        """The complete parts of an earlier run, none of a new one, whose manifest this writes.

        Raises UsageError for a folder with parts unless it is asked for, and if other settings made them.
        """
        names = self._names()
        before = sorted(name for name in names if _PART.fullmatch(name))
        if before and overwrite and not resume:
            if self.is_stored:
                raise UsageError(f"{self.name} has parts, and objects are not removed", hint="Name another prefix.")
            remove_file(Path(self.path_of(MANIFEST)))
            for name in before:
                remove_file(Path(self.path_of(name)))
        elif MANIFEST in names and resume:
            manifest = self._read()
            for name, expected in settings.items():
                remedy = "name another folder"
                check_setting(Path(self.path_of(MANIFEST)), name, manifest.settings.get(name), expected, remedy)
            return [part for part in manifest.parts if self.part_name(part.number) in names]
        elif before or (MANIFEST in names and not overwrite):
            raise UsageError(
                f"{self.name} has rows of an earlier run" + ("" if MANIFEST in names else ", but no manifest"),
                hint="Go on with them: --resume\nReplace them: --overwrite\nOr name another folder.",
            )
        self.save(settings, [], is_complete=False)
        return []

    def save(self, settings: dict[str, str | int], parts: list[Part], *, is_complete: bool) -> None:
        """Write the manifest. Raises OutputError."""
        ordered = sorted(parts, key=lambda part: part.number)
        content = msgspec.json.encode(Manifest(is_complete=is_complete, settings=settings, parts=ordered))
        with self.write(MANIFEST) as file:
            file.write(msgspec.json.format(content, indent=1))

    def tidy(self) -> None:
        """Remove the temporary files of processes that were killed. Raises OutputError."""
        if not self.is_stored:
            for name in self._names():
                if _TEMPORARY.fullmatch(name):
                    remove_file(Path(self.path_of(name)))

    def has(self, name: str) -> bool:
        """Whether this process sees the file."""
        return has_object(self.path_of(name)) if self.is_stored else os.path.isfile(self.path_of(name))

    def _names(self) -> set[str]:
        try:
            if self.is_stored:
                return {entry.url.rpartition("/")[2] for entry in list_folder(self._folder) if not entry.is_folder}
            return set(os.listdir(self._folder))
        except FileNotFoundError:
            return set()
        except OSError as exc:
            raise OutputError(f"{self.name} cannot be listed: {exc.strerror or exc}") from exc

    def _read(self) -> Manifest:
        path = self.path_of(MANIFEST)
        try:
            size = object_size(path) if self.is_stored else 0
            data = read_object(path, _MAX_MANIFEST_BYTES, size) if self.is_stored else Path(path).read_bytes()
            return msgspec.json.decode(data, type=Manifest)
        except (OSError, ValueError) as exc:
            raise UsageError(
                f"{printable_url(path)} cannot be read: {exc}", hint="Name another folder, or start over: --overwrite"
            ) from exc
