"""A result file in a store: made as a local file, then written as one object, as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

from alexdeploy.core.cache import user_folder
from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.core.files import atomic_write, remove_file, sha256_bytes
from alexdeploy.core.stores.objects import check_url, has_object, object_size, read_range, write_object
from alexdeploy.core.stores.urls import is_http, path_of, printable_url

_PART_BYTES = 8 << 20


class StoredOutput:
    """The object `url`, which is not there before `publish`. Its journal lies beside the local file `path`.

    That file is in the user's state folder, the same for every run with this URL, so a run can be resumed on the
    machine on which it began.
    """

    def __init__(self, url: str) -> None:
        """Raises UsageError for a URL that cannot be written to."""
        check_url(url)
        name = path_of(url).rpartition("/")[2]
        if is_http(url) or not name:
            raise UsageError(
                f"--output {printable_url(url)}: expected an object in a bucket, as s3://bucket/rows.jsonl",
            )
        self._url = url
        self.name = printable_url(url)
        try:
            folder = user_folder("state") / "outputs" / sha256_bytes(url.encode("utf-8", "surrogateescape"))[:16]
        except RuntimeError as exc:
            raise OutputError(f"there is no folder for the rows of {self.name} until they are complete: {exc}") from exc
        self.path = folder / name

    def check_free(self) -> None:
        """Raise UsageError if the object exists, or if a complete file waits to be written. Asks the store."""
        replace = "Replace it: --overwrite\nOr name another one."
        if self._is_there():
            raise UsageError(f"--output {self.name} exists already", hint=replace)
        if self.path.exists():
            raise UsageError(
                f"the rows for {self.name} are complete in {self.path}, and could not be written there before",
                hint="Write them: --resume\nTo make them again: --overwrite",
            )

    def fetch(self) -> Path:
        """A local copy of the object, to be compared; a path without a file if there is none. Raises OutputError."""
        copy = self.path.parent / "copy" / self.path.name
        remove_file(copy)
        if self._is_there():
            try:
                size = object_size(self._url)
                with atomic_write(copy) as file:
                    for start in range(0, size, _PART_BYTES):
                        file.write(read_range(self._url, start, min(start + _PART_BYTES, size)))
            except OSError as exc:
                raise OutputError(f"{self.name} could not be read: {exc.strerror}") from exc
        return copy

    def publish(self) -> None:
        """Write the object, and remove the local file. Raises OutputError, and keeps the file."""
        try:
            write_object(self._url, self.path)
        except OSError as exc:
            raise OutputError(
                f"{self.name} could not be written: {_reason(exc)}",
                hint=f"All rows are in {self.path}. To write them to the store, add --resume.",
            ) from exc
        remove_file(self.path)

    def _is_there(self) -> bool:
        try:
            return has_object(self._url)
        except OSError as exc:
            raise OutputError(f"{self.name} cannot be written to: {_reason(exc)}") from exc


def _reason(exc: OSError) -> str:
    return "no such bucket" if isinstance(exc, FileNotFoundError) else exc.strerror or type(exc).__name__
