"""Training in MLflow's own file store. Skips where the extra mlflow is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexdeploy.core.errors import UsageError
from alexdeploy.core.events import Notice
from alexdeploy.training.events import EpochFinished, Event, Step
from alexdeploy.training.log import log_path, read_log
from alexdeploy.training.train import Trained, TrainOptions, train

mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

OPTIONS: dict[str, Any] = {
    "recipe": "alexnet-quarter",
    "overrides": (
        "architecture.input=67",
        "architecture.width=0.0625",
        "architecture.hidden=[64, 64]",
        "training.batch_size=8",
        "training.epochs=3",
    ),
    "val_fraction": 0.4,
    "name": "tiny",
    "device": "cpu",
    "num_threads": 1,
    "logger": "mlflow",
}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which MLflow keeps its runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path / "runs"


def run_training(data: Path, watch: Any = lambda event: None, **changes: Any) -> Trained:
    return train(data, TrainOptions(**OPTIONS, **changes), watch)


def the_run() -> Any:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("alexdeploy")
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def test_a_resumed_run_is_one_run_with_each_epoch_once(tiny_folder: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Step) and (event.epoch, event.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(tiny_folder, stop)
    assert the_run().info.status == "KILLED"
    trained = run_training(tiny_folder, resume=True)
    run, records = the_run(), read_log(log_path(trained.folder))
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == "8"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss.val")
    assert [(metric.step, metric.value) for metric in history] == [
        (record.epoch, pytest.approx(record.val_loss)) for record in records
    ]
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"log.csv", "steps.csv"} <= names


def test_a_store_that_goes_away_does_not_end_training(tiny_folder: Path, store: Path) -> None:
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochFinished) and event.record.epoch == 1:
            for folder in store.iterdir():
                folder.rename(folder.with_suffix(".gone"))

    run_training(tiny_folder, watch)
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert sum("training goes on" in message for message in notices) == 1
    assert sum(isinstance(event, EpochFinished) for event in events) == 3


def test_a_server_that_is_not_there_is_refused_before_the_first_step(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    events: list[Event] = []
    with pytest.raises(UsageError, match="MLflow at http://127") as caught:
        run_training(tiny_folder, events.append)
    assert "MLFLOW_TRACKING_URI" in (caught.value.hint or "")
    assert not any(isinstance(event, Step) for event in events)
