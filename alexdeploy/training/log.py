"""The training log: one line for each epoch, as JSON and as CSV, one for each step, and curves for TensorBoard."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.csv_text import csv_line
from alexdeploy.core.files import atomic_write, output_error
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, open_regular, read_regular
from alexdeploy.training.events import EpochRecord, StepRecord
from alexdeploy.training.statistics import Statistics, color_axes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def log_path(folder: ModelFolder) -> Path:
    return folder.checkpoints / "log.jsonl"


def steps_path(folder: ModelFolder) -> Path:
    return folder.checkpoints / "steps.csv"


def read_log(path: Path) -> tuple[EpochRecord, ...]:
    """The records of a log, without a last line that was truncated by a kill."""
    if not path.is_file():
        return ()
    records = []
    for line in read_regular(path, MAX_TEXT_BYTES).splitlines():
        try:
            records.append(decode_json(line, EpochRecord))
        except msgspec.DecodeError:
            continue
    return tuple(records)


def read_steps(path: Path) -> Iterator[StepRecord]:
    """The steps of a log, without a last line that was truncated by a kill."""
    if not path.is_file():
        return
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
        for line in lines:
            epoch, _, rest = line.rstrip("\r\n").partition(",")
            cells = rest.split(",")
            if line.endswith("\n") and epoch.isdecimal() and len(cells) == 3:
                with suppress(ValueError):
                    yield StepRecord(
                        epoch=int(epoch), step=int(cells[0]), loss=float(cells[1]), learning_rate=float(cells[2])
                    )


def curves_of(record: EpochRecord) -> dict[str, float | None]:
    """The values of an epoch by the names of their curves; None where they are unknown."""
    return {
        "loss/train": record.loss,
        "loss/val": record.val_loss,
        "error/train_top1": record.train_top1_error,
        "error/val_top1": record.val_top1_error,
        "error/val_top5": record.val_top5_error,
        "learning_rate": record.learning_rate,
        "images_per_second": record.images_per_second,
        "images_per_second/steps_alone": record.step_images_per_second,
        "images_per_second/loader_alone": record.loader_images_per_second,
    }


class TrainingLog:
    """A context manager that writes the log of one run. `tensorboard` is false if TensorBoard is not installed.

    The CSV files are not synced to the disk: after a power cut, lines of them may be missing.
    """

    def __init__(self, folder: ModelFolder, *, num_epochs: int, num_steps: int = 0) -> None:
        """Keep the first `num_epochs` epochs of an existing log, and `num_steps` steps of the next.

        A resumed run writes the others again.
        """
        self._path = log_path(folder)
        records = [record for record in read_log(self._path) if record.epoch <= num_epochs]
        with atomic_write(self._path) as file:
            file.writelines(map(_line, records))
        last = (num_epochs + 1, num_steps)
        steps = [step for step in read_steps(steps_path(folder)) if (step.epoch, step.step) <= last]
        self._table = _Table(self._path.with_suffix(".csv"), EpochRecord, records)
        self._steps = _Table(steps_path(folder), StepRecord, steps)
        self._curves_path = folder.checkpoints / "tensorboard"
        with _translated(self._curves_path):
            self._writer = _open_writer(self._curves_path, num_epochs)
        self.tensorboard = self._writer is not None

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as exc:
            # The earlier exception is more useful and is already being raised.
            if error is None:
                raise output_error(self._curves_path, exc) from exc

    def describe_data(self, statistics: Statistics, skipped: tuple[str, ...]) -> None:
        """Log the mean, the colour axes and the skipped images. Raises OutputError."""
        if self._writer is None:
            return
        axes = color_axes(statistics.covariance)
        text = (
            f"{statistics.num_images:,} images; mean RGB {_numbers(statistics.mean)}\n\n"
            f"standard deviation along the colour axes {_numbers(axes.std)}\n\n"
            f"axes, one in each row: {'; '.join(_numbers(axis) for axis in axes.vectors.T)}"
        )
        if skipped:
            text += f"\n\nimages left out, {len(skipped):,}:\n\n" + "\n".join(f"- {path}" for path in skipped)
        with _translated(self._curves_path):
            self._writer.add_text("data", text, 0)

    def show_picture(self, name: str, pixels: NDArray[np.uint8], epoch: int) -> None:
        """Show uint8 [H, W, 3] in TensorBoard. Raises OutputError."""
        if self._writer is not None:
            with _translated(self._curves_path):
                self._writer.add_image(name, pixels, epoch, dataformats="HWC")

    def append(self, record: EpochRecord) -> None:
        """Append one epoch and flush it to the disk. Raises OutputError."""
        with _translated(self._path), self._path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self._table.append([record])
        if self._writer is None:
            return
        with _translated(self._curves_path):
            for name, value in curves_of(record).items():
                if value is not None:
                    self._writer.add_scalar(name, value, record.epoch)
            self._writer.flush()

    def append_steps(self, records: Sequence[StepRecord]) -> None:
        """Append steps. Raises OutputError."""
        self._steps.append(records)


class _Table:
    """A CSV file of records of one kind."""

    def __init__(self, path: Path, kind: type, records: Sequence[object]) -> None:
        """Replace the file by one with `records`. Raises OutputError."""
        self._path = path
        self._names = tuple(kind.__annotations__)
        with atomic_write(path) as written:
            written.write((csv_line(self._names) + self._lines(records)).encode())

    def append(self, records: Sequence[object]) -> None:
        """Append. Raises OutputError."""
        with _translated(self._path), self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._lines(records))

    def _lines(self, records: Sequence[object]) -> str:
        return "".join(csv_line(getattr(record, name) for name in self._names) for record in records)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Convert an OSError in the block to an OutputError for `path`."""
    try:
        yield
    except OSError as exc:
        raise output_error(path, exc) from exc


def _open_writer(folder: Path, num_epochs: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Purge the curves of a killed run from the next epoch on.
    return SummaryWriter(str(folder), purge_step=num_epochs + 1 if num_epochs else None)


def _line(record: EpochRecord) -> bytes:
    return msgspec.json.encode(record) + b"\n"


def _numbers(values: object) -> str:
    return " ".join(f"{value:.4g}" for value in np.asarray(values))
