"""Two tables in the run folder: a row per step, a row per metric of an evaluation."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from finetooth_hooks import Evaluation, Outcome, Run, StepReport, UserError
from finetooth_hooks.bases import TrackerBase

STEP_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "targets",
    "seconds",
    "tokens_per_second",
    "memory",
    "skipped",
)
EVALUATION_COLUMNS = ("step", "evaluator", "metric", "value", "rows")


class Table:
    """A CSV file that is flushed row by row; its header is written when it is new.

    Args:
        rows: rewrite the table with these, to a temporary file that is moved into place. None appends to the table.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]] | None = None) -> None:
        try:
            beside = path.with_name(f".{path.name}.tmp")
            target, mode = (path, "a") if rows is None else (beside, "w")
            self._file: IO[str] = target.open(mode, encoding="utf-8", newline="")
            self._rows = csv.writer(self._file)
            if self._file.tell() == 0:
                self.add(columns)
            if rows is not None:
                self._rows.writerows(rows)
                self._file.flush()
                os.fsync(self._file.fileno())
                beside.replace(path)  # the file that is open is the one in its place now
        except OSError as error:
            raise UserError(
                f"tracker csv: {path} cannot be written: {error.strerror}", action="choose another output"
            ) from error

    def add(self, values: Sequence[Any]) -> None:
        """One row."""
        self._rows.writerow(values)
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()


class CsvTracker(TrackerBase):
    """`finetooth_hooks.protocols.Tracker` over two tables."""

    capabilities = frozenset({"resume"})

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def start(self, run: Run) -> None:
        """Open both tables."""
        self._tables["steps"] = Table(run.folder / "metrics.csv", STEP_COLUMNS)
        self._tables["evaluations"] = Table(run.folder / "evaluations.csv", EVALUATION_COLUMNS)

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Rewrite both tables, as the history says: rows of steps that do not count are gone, missing ones are
        there."""
        self._close()
        steps = [_step_row(report) for report in history if isinstance(report, StepReport)]
        metrics = [row for report in history if isinstance(report, Evaluation) for row in _metric_rows(report)]
        self._tables["steps"] = Table(run.folder / "metrics.csv", STEP_COLUMNS, steps)
        self._tables["evaluations"] = Table(run.folder / "evaluations.csv", EVALUATION_COLUMNS, metrics)

    def step(self, run: Run, report: StepReport) -> None:
        """A row for the step."""
        self._tables["steps"].add(_step_row(report))

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """A row for each metric."""
        for row in _metric_rows(evaluation):
            self._tables["evaluations"].add(row)

    def end(self, run: Run, outcome: Outcome) -> None:
        """Close both tables."""
        self._close()

    def _close(self) -> None:
        for table in self._tables.values():
            table.close()
        self._tables.clear()


def _step_row(report: StepReport) -> list[Any]:
    return [getattr(report, column) for column in STEP_COLUMNS]


def _metric_rows(evaluation: Evaluation) -> list[list[Any]]:
    return [
        [evaluation.step, evaluation.name, metric, value, evaluation.rows]
        for metric, value in evaluation.metrics.items()
    ]
