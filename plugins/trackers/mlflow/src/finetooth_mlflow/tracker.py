"""Runs in MLflow: a database in the folder of runs, or a tracking server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks import Context, Outcome, Run
from finetooth_saving.runs.service import SampleOptions, ServiceTracker, shown_recipe
from finetooth_saving.runs.values import COLUMNS, TABLE

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is away must not hold up what trains for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""What the client is told where the user says nothing; it has no other place for it."""

LONGEST_PARAM = 500
"""Characters of a setting's value that are kept; servers refuse longer ones."""
MOST_PARAMS = 100
"""Settings in one request; servers refuse more."""

ENDED = {"done": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowOptions(SampleOptions):
    """Options of `mlflow`."""

    uri: str | None = None
    """The tracking server, `http://HOST:PORT`, or a database, `sqlite:///FILE`. Default: MLFLOW_TRACKING_URI, or else
    `mlflow.db` next to the run folder. Put passwords into MLFLOW_TRACKING_PASSWORD."""
    experiment: str = "finetooth"
    """The run's experiment, created if needed."""
    run_name: str | None = None
    """The run's name there. Default: that of its folder."""


class MlflowTracker(ServiceTracker):
    """`train/...` for steps and `eval/...` for evaluations, each at its step, and the recipe as the run's parameters.

    A resumed run writes to the same run; steps that are there already are not written again.
    """

    service = "mlflow"

    def __init__(self, options: MlflowOptions, context: Context) -> None:
        super().__init__(context, options)
        self._options = options
        self._client: Any = None
        self._id = ""
        self._there: dict[str, int] = {}  # the last step of each metric that an earlier process wrote

    def open(self, run: Run, known: str | None) -> str:
        """Begin a run of the experiment, or open the known one again."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        database = f"sqlite:///{(run.folder.parent / 'mlflow.db').absolute()}"
        uri = self._options.uri or os.environ.get("MLFLOW_TRACKING_URI") or database
        self._client = MlflowClient(tracking_uri=uri)
        self._there = {}
        if known is not None:
            try:
                self._go_on(known)
                return known
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._context.note("tracker mlflow: the MLflow run that it continued is gone; it begins a new one")
        known_experiment = self._client.get_experiment_by_name(self._options.experiment)
        experiment = (
            known_experiment.experiment_id
            if known_experiment
            else self._client.create_experiment(self._options.experiment, artifact_location=_files(uri))
        )
        self._id = str(self._client.create_run(experiment, run_name=self._options.run_name or run.id).info.run_id)
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in shown_recipe(run.plan.recipe).items()]
        for begin in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._id, params=params[begin : begin + MOST_PARAMS])
        return self._id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items() if step > self._there.get(name, -1)]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def write_samples(self, step: int, rows: list[list[Any]]) -> None:
        """Keep answers of a step as an artifact of the run, a file in the shape that the service shows as a table."""
        self._client.log_dict(self._id, {"columns": COLUMNS, "data": rows}, f"{TABLE}/step_{step:08}.json")

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended."""
        self._client.set_tag(self._id, "finetooth.status", outcome.status)
        self._client.set_terminated(self._id, ENDED[outcome.status])

    def _go_on(self, known: str) -> None:
        data = self._client.get_run(known).data
        self._id = known
        for name in data.metrics:
            self._there[name] = max(metric.step for metric in self._client.get_metric_history(known, name))
        self._client.update_run(known, status="RUNNING")


def _files(uri: str) -> str | None:
    """Where an experiment keeps files: next to a database that is a file, since the client itself would take the
    folder that the run was started in; None leaves it to a server."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def build(options: MlflowOptions, context: Context) -> MlflowTracker:
    """Builder of the tracker `mlflow`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when the client is imported
    import mlflow  # noqa: F401  - that it is missing is found here, and not when the run has begun

    return MlflowTracker(options, context)
