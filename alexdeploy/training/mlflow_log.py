"""A run in MLflow: recipe, curves and report. The tracking server is the one that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy.core.errors import UsageError, first_line
from alexdeploy.core.events import Notice
from alexdeploy.core.files import atomic_write
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import missing_package
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.core.recipe import Recipe, flatten
from alexdeploy.training.events import EpochFinished, EpochRecord, Event, Planned, Started
from alexdeploy.training.log import curves_of, log_path, read_log

EXPERIMENT = "alexdeploy"
"""The name of the experiment, unless MLFLOW_EXPERIMENT_NAME has another."""

_ARTIFACTS = ("report.html", "curves.png", "log.csv", "steps.csv")
_MAX_PARAM = 500


@contextmanager
def logging_to_mlflow(on_event: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Log the training whose events the yielded function gets, and pass them on.

    A run that is resumed continues in MLflow too. If the server cannot be reached at the beginning, that is a
    UsageError; later, training goes on without it and says so.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise missing_package("mlflow", "--logger mlflow", "mlflow")
    log = _MlflowLog(on_event)
    try:
        yield log.show
    except BaseException as exc:
        log.end("KILLED" if isinstance(exc, KeyboardInterrupt) else "FAILED")
        raise
    log.end("FINISHED")


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """Which run of which server belongs to a model folder."""

    tracking_uri: str
    run_id: str


class _MlflowLog:
    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._plan: Planned | None = None
        self._client: Any = None
        self._run_id = ""

    def show(self, event: Event) -> None:
        self._on_event(event)
        if isinstance(event, Planned):
            self._plan = event
        elif isinstance(event, Started):
            assert self._plan is not None, "Planned is the first event of training"
            self._begin(self._plan)
        elif isinstance(event, EpochFinished):
            self._or_go_on(lambda: self._log(event.record))

    def end(self, status: str) -> None:
        """Send the report and close the run."""
        self._or_go_on(lambda: self._send_files(status))

    def _begin(self, plan: Planned) -> None:
        import mlflow
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        uri = mlflow.get_tracking_uri()
        try:
            client = mlflow.MlflowClient()
            known = _read_run(plan.folder)
            if known is not None and known.tracking_uri == uri:
                self._run_id = known.run_id
                client.update_run(self._run_id, status="RUNNING")
            else:
                name = MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT
                found = client.get_experiment_by_name(name)
                experiment = client.create_experiment(name) if found is None else found.experiment_id
                self._run_id = client.create_run(experiment, run_name=plan.folder.path.name).info.run_id
                for key, value in _params(plan.recipe).items():
                    client.log_param(self._run_id, key, value)
                with atomic_write(_run_path(plan.folder)) as file:
                    file.write(msgspec.json.encode(_Run(tracking_uri=uri, run_id=self._run_id)))
            self._client = client
            # What a killed run had finished but not sent.
            sent = {metric.step for metric in client.get_metric_history(self._run_id, "loss.val")}
            for record in read_log(log_path(plan.folder)):
                if record.epoch not in sent:
                    self._log(record)
        # Requests, MlflowException and OSError have no common base below it.
        except Exception as exc:
            raise UsageError(
                f"MLflow at {uri} cannot be used: {first_line(exc)}",
                hint="Set MLFLOW_TRACKING_URI to a server, or leave out --logger mlflow.",
            ) from exc

    def _log(self, record: EpochRecord) -> None:
        for key, value in curves_of(record).items():
            if value is not None:
                # In a store of files, a name with a slash is a folder, and no metric can have the folder's name.
                self._client.log_metric(self._run_id, key.replace("/", "."), value, step=record.epoch)

    def _send_files(self, status: str) -> None:
        assert self._plan is not None, "Planned is the first event of training"
        for name in _ARTIFACTS:
            path = self._plan.folder.checkpoints / name
            if path.is_file():
                self._client.log_artifact(self._run_id, str(path))
        self._client.set_terminated(self._run_id, status)

    def _or_go_on(self, step: Callable[[], None]) -> None:
        """Say what failed, and log no more."""
        if self._client is None:
            return
        try:
            step()
        # Requests, MlflowException and OSError have no common base below it.
        except Exception as exc:
            self._client = None
            self._on_event(Notice(message=f"MLflow: {first_line(exc)}; training goes on, and log.csv has every epoch"))


def _params(recipe: Recipe) -> dict[str, str]:
    values = {key: str(value)[:_MAX_PARAM] for key, value in flatten(msgspec.to_builtins(recipe)).items()}
    return {key: value for key, value in values.items() if value}


def _run_path(folder: ModelFolder) -> Path:
    return folder.checkpoints / "mlflow.json"


def _read_run(folder: ModelFolder) -> _Run | None:
    if not _run_path(folder).is_file():
        return None
    try:
        return decode_json(read_regular(_run_path(folder), MAX_TEXT_BYTES), _Run)
    except (OSError, msgspec.DecodeError):
        return None
