"""One run in progress: its state, and what happens in a step, in an epoch and between epochs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexdeploy.core.errors import DivergedError
from alexdeploy.core.events import Notice
from alexdeploy.core.interrupts import be_patient, deferred_interrupts
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe
from alexdeploy.core.spec import ModelSpec
from alexdeploy.reports.tiles import tile
from alexdeploy.training.augment import (
    make_normalization,
    random_views,
    to_device,
)
from alexdeploy.training.checkpoint import Best, Checkpoint, Identity, Progress, keep_kernels, write_checkpoint
from alexdeploy.training.events import CheckpointSaved, EpochFinished, EpochRecord, Event, Step, StepRecord
from alexdeploy.training.learner import Learner, StepSums
from alexdeploy.training.log import TrainingLog
from alexdeploy.training.parallel import ALONE, ProcessGroup
from alexdeploy.training.pixels import Pixels
from alexdeploy.training.publish import (
    Contract,
    best_spec,
    encode_weights,
    publish_best,
    read_weights,
)
from alexdeploy.training.report import RunSummary, draw_kernels, write_report
from alexdeploy.training.schedule import advance, learning_rate
from alexdeploy.training.statistics import Statistics, color_axes
from alexdeploy.training.steps import Steps
from alexdeploy.training.throughput import Speed, SpeedMeter, loader_speed
from alexdeploy.training.towers import TowerLearner
from alexdeploy.training.validation import Validation, ValidationErrors

# Reading the loss waits for the GPU, so on a GPU it is read only occasionally.
_GPU_STEPS_PER_LOOK = 20
_NUM_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Constants of a run. Indices are those of the images that can be decoded."""

    recipe: Recipe
    folder: ModelFolder
    identity: Identity
    statistics: Statistics
    contract: Contract
    train: Pixels
    train_indices: NDArray[np.int64]
    val: Pixels
    val_indices: NDArray[np.int64]
    checkpoint_seconds: float
    data_path: str | None


class Run:
    """The state of a run. An interrupt never leaves `progress` and the learner at different steps."""

    def __init__(
        self,
        setting: Setting,
        learner: Learner | TowerLearner,
        log: TrainingLog | None,
        progress: Progress,
        on_event: Callable[[Event], None],
        group: ProcessGroup = ALONE,
    ) -> None:
        """In a `group`, all processes call the same methods; only rank 0 has a log and writes files."""
        self._setting = setting
        self._learner = learner
        self._log = log
        self._progress = progress
        self._on_event = on_event
        self._group = group
        self._split = learner.split
        self._training = setting.recipe.training
        self._crop = setting.recipe.architecture.input
        self._steps = Steps(
            setting.train,
            setting.train_indices,
            self._training,
            crop=self._crop,
            axes=color_axes(setting.statistics.covariance),
        )
        self._normalization = make_normalization(
            setting.contract.spec.preprocessing, setting.contract.mean_image, learner.device
        )
        self._validation = Validation(
            setting.val,
            setting.val_indices,
            learner,
            self._normalization,
            crop=self._crop,
            batch_size=self._training.batch_size,
            num_classes=setting.contract.spec.num_classes,
            group=group,
        )
        # Of the steps since the last look, on the device: reading them in each step would wait for a GPU.
        self._pending: list[StepSums] = []
        self._saved_at = time.monotonic()
        self._loader_speed: float | None = None

    def finish(self) -> None:
        """Run all remaining epochs. On KeyboardInterrupt, write a checkpoint and re-raise."""
        be_patient()
        if self._log is not None and self._progress == Progress():
            self._log.show_picture("views/first_step", tile(self._steps.first_views(_NUM_SAMPLES)), 0)
        try:
            while not self._progress.is_over(self._training):
                rate = learning_rate(self._progress.schedule, self._training)
                self._finish_epoch(self._validate(rate, self._train_epoch(rate)))
            num_epochs = self._progress.schedule.num_epochs
            if num_epochs < self._training.epochs:
                waited = self._training.stop_after
                note = f"no better validation error in {waited} epochs: training ends after {num_epochs}"
                self._on_event(Notice(message=note))
        except KeyboardInterrupt:
            self._save_within_epoch()
            raise

    def _train_epoch(self, rate: float) -> Speed:
        """Run the remaining steps of this epoch; returns their speed."""
        epoch = self._progress.schedule.num_epochs + 1
        first = self._progress.step
        self._learner.begin_epoch(epoch)
        batches = self._steps.batches(epoch)[first:]
        mine = [batch[self._split.rows(len(batch))] for batch in batches]
        every = 1 if self._learner.device.type == "cpu" else _GPU_STEPS_PER_LOOK
        if self._loader_speed is None:
            alone = loader_speed(self._setting.train, mine)
            self._loader_speed = float(self._split.sum(np.array([alone]))[0]) or None
        meter = SpeedMeter(self._learner.device)
        for step, (indices, pixels) in enumerate(
            zip(batches, self._setting.train.batches(mine), strict=True), start=first + 1
        ):
            with meter.step(len(indices)):
                self._take_step(epoch, step, indices, pixels, rate)
            if step % every == 0 or step == self._steps.num_steps:
                loss, speed = self._mean_loss(epoch, step, rate), meter.images_per_second
                self._on_event(
                    Step(
                        epoch=epoch,
                        step=step,
                        num_steps=self._steps.num_steps,
                        loss=loss,
                        learning_rate=rate,
                        images_per_second=speed,
                        seconds_left=self._images_left(epoch, step) / speed,
                    )
                )
                self._stop_or_save()
        return meter.stop()

    def _images_left(self, epoch: int, step: int) -> float:
        """Approximate number of training images left after `step` of `epoch`, over all epochs."""
        num_epochs = self._training.epochs - epoch + 1 - step / self._steps.num_steps
        return num_epochs * len(self._setting.train_indices)

    def _stop_or_save(self) -> None:
        """Stop or save if it is time to. All processes do the same: any of them may have been interrupted."""
        is_due = time.monotonic() - self._saved_at >= self._setting.checkpoint_seconds
        num_stopped, num_due = self._group.sum(np.array([bool(self._group.interrupts.arrived), is_due], np.int64))
        if num_stopped:
            raise KeyboardInterrupt
        if num_due:
            self._save_within_epoch()

    def _take_step(
        self, epoch: int, step: int, indices: NDArray[np.int64], pixels: NDArray[np.uint8], rate: float
    ) -> None:
        draws = self._steps.draws(epoch, step, len(indices))
        rows = self._split.rows(len(indices))
        views = random_views(to_device(pixels, self._learner.device), draws.part(rows), self._normalization, self._crop)
        labels = to_device(self._setting.train.labels[indices[rows]], self._learner.device)
        dropout_seed = self._steps.dropout_seed(epoch, step)
        sums = self._learner.compute_gradients(views, labels, dropout_seed, len(indices))
        with deferred_interrupts():
            self._learner.update(rate)
            self._pending.append(sums)
            self._progress = dataclasses.replace(self._progress, step=step)

    def _validate(self, rate: float, speed: Speed) -> EpochRecord:
        """Loss and errors on the centre views of the validation images."""
        epoch = self._progress.schedule.num_epochs + 1
        found = self._validation.centre_view()
        if not math.isfinite(found.loss):
            raise self._diverged("validation loss", found.loss, epoch, rate)
        record = EpochRecord(
            epoch=epoch,
            loss=self._mean_loss(epoch, self._steps.num_steps, rate),
            train_top1_error=self._train_error(),
            val_loss=found.loss,
            val_top1_error=found.top1,
            val_top5_error=found.top5,
            learning_rate=rate,
            num_skipped=len(self._progress.broken_train) + len(self._progress.broken_val),
            images_per_second=speed.all_in_all,
            step_images_per_second=speed.steps_alone,
            loader_images_per_second=self._loader_speed,
        )
        # Decisions depend on it, so it must be bit-identical in all processes.
        return self._group.on_main(lambda: record)

    def ten_view_errors(self) -> ValidationErrors:
        """Validation errors of the best epoch with ten views."""
        self._learner.load_weights(self._group.on_main(lambda: read_weights(self._setting.folder, self._best())))
        return self._validation.ten_views()

    def _finish_epoch(self, record: EpochRecord) -> None:
        """Log, checkpoint, publish, in this order: after a kill in between, resuming repeats the rest.

        The log drops lines that are ahead of the checkpoint, and a checkpoint of the best epoch contains the weights to
        publish. So the published model is never ahead of the checkpoint.
        """
        is_best = self._progress.is_improved_by(record)
        with deferred_interrupts():
            best, weights_file = self._progress.best, b""
            if is_best:
                weights_file = encode_weights(self._learner.weights(), self._setting.contract)
                best = Best(record=record, weights_sha256=sha256(weights_file).hexdigest())
            schedule = advance(self._progress.schedule, self._training, record.val_top1_error)
            self._progress = dataclasses.replace(
                self._progress, schedule=schedule, step=0, loss_sum=0.0, num_right=0, best=best
            )
            if self._log is not None:
                self._log.append(record)
            self._save()
            if is_best and self._group.is_main:
                publish_best(self._setting.folder, self._setting.contract, self.spec(), weights_file)
        self._on_event(EpochFinished(record=record, is_best=is_best))

    def write_report(self, errors: ValidationErrors) -> None:
        """Write the report of the run, with the `errors` of ten views, after which the learner has the best weights.

        For rank 0; the weights of two towers are those of both. Raises OutputError.
        """
        weights = read_weights(self._setting.folder, self._best())
        summary = RunSummary(
            spec=self.spec(errors),
            samples=self._steps.first_views(_NUM_SAMPLES),
            kernels=weights["conv1.weight"].numpy(),
            num_images=errors.num_images,
            num_errors=errors.num_errors,
        )
        write_report(self._setting.folder, summary)

    def spec(self, ten_views: ValidationErrors | None = None) -> ModelSpec:
        """The spec of the best epoch so far."""
        setting = self._setting
        return best_spec(
            setting.contract, setting.recipe, setting.identity, self._progress, setting.data_path, ten_views
        )

    def _best(self) -> Best:
        assert self._progress.best is not None
        return self._progress.best

    def _save_within_epoch(self) -> None:
        """Write a checkpoint if there was any progress since the last one."""
        step, epoch = self._progress.step, self._progress.schedule.num_epochs + 1
        if step == 0:
            return
        self._mean_loss(epoch, step, learning_rate(self._progress.schedule, self._training))
        self._save()
        path = self._setting.folder.checkpoint_path
        self._on_event(CheckpointSaved(path=path, epoch=epoch, step=step))

    def _save(self) -> None:
        # Joining the states of two towers needs both. In data parallel, rank 0 has the whole state and copies it alone.
        if self._split.is_main:
            checkpoint = Checkpoint(
                identity=self._setting.identity,
                progress=self._progress,
                statistics=self._setting.statistics,
                learner=self._learner.state(),
            )
            if self._group.is_main:
                keep_kernels(self._setting.folder, self._progress, checkpoint.published)
                self._show_kernels(checkpoint.published)
                write_checkpoint(self._setting.folder.checkpoint_path, checkpoint)
        self._saved_at = time.monotonic()

    def _show_kernels(self, weights: Mapping[str, Tensor]) -> None:
        """At the end of an epoch, in TensorBoard."""
        if self._log is not None and self._progress.step == 0:
            drawn = draw_kernels(weights["conv1.weight"].numpy(), self._setting.recipe.architecture.towers)
            self._log.show_picture("kernels/conv1", drawn, self._progress.schedule.num_epochs)

    def _mean_loss(self, epoch: int, step: int, rate: float) -> float:
        """The mean over the epoch's images so far. Raises DivergedError if it, or a weight, is not finite."""
        with deferred_interrupts():
            self._look(epoch, rate)
        loss = self._progress.loss_sum / self._steps.num_images(step)
        if not (math.isfinite(loss) and self._learner.is_finite()):
            raise self._diverged("loss", loss, epoch, rate)
        return loss

    def _look(self, epoch: int, rate: float) -> None:
        """Add the steps since the last look to progress and log. All processes do so after the same steps."""
        if not self._pending:
            return
        progress = self._progress
        sums = torch.stack([torch.stack((sums.loss, sums.num_right.double())) for sums in self._pending])
        records = []
        loss_sum = progress.loss_sum
        first = progress.step - len(self._pending) + 1
        losses, rights = self._split.sum(sums.cpu().numpy()).T
        # One by one, so that a resumed run, which looks after other steps, has the same bits.
        for step, loss in enumerate(losses.tolist(), start=first):
            loss_sum += loss
            mean = loss / (self._steps.num_images(step) - self._steps.num_images(step - 1))
            records.append(StepRecord(epoch=epoch, step=step, loss=mean, learning_rate=rate))
        before = 0 if first == 1 else progress.num_right
        num_right = None if before is None else before + int(rights.sum())
        self._progress = dataclasses.replace(progress, loss_sum=loss_sum, num_right=num_right)
        self._pending.clear()
        if self._log is not None:
            self._log.append_steps(records)

    def _train_error(self) -> float | None:
        """The top-1 error of the epoch's training views, if it was counted from the first step."""
        num_right = self._progress.num_right
        return None if num_right is None else 1.0 - num_right / len(self._setting.train_indices)

    def _diverged(self, what: str, value: float, epoch: int, rate: float) -> DivergedError:
        number = f"{value:.4g}" if not math.isfinite(value) else f"{value:.4g}, its weights are not finite"
        hint = f"Try a lower rate: --set training.learning_rate={rate / 3:.2g} --overwrite"
        if self._training.precision != "fp32":
            hint += "\nor more precision: --set training.precision=fp32 --overwrite"
        path = self._setting.folder.checkpoint_path
        if path.is_file():
            hint += f"\n{path} is from before it happened."
        return DivergedError(f"the {what} is {number} in epoch {epoch} at learning rate {rate:g}", hint=hint)
