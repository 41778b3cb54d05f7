"""Two tables in the run folder: a row per step, a row per metric of an evaluation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from finetooth_hooks import Context, Evaluation, NoOptions, Outcome, Run, StepReport, UserError

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

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            self._file: TextIO = path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise UserError(
                f"tracker csv: {path} cannot be written: {error.strerror}", action="choose another output"
            ) from error
        self._rows = csv.writer(self._file)
        if self._file.tell() == 0:
            self.add(columns)

    def add(self, values: Sequence[Any]) -> None:
        """One row."""
        self._rows.writerow(values)
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()


class CsvTracker:
    """`finetooth_hooks.protocols.Tracker` over two tables."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def start(self, run: Run) -> None:
        """Open both tables."""
        self._tables["steps"] = Table(run.folder / "metrics.csv", STEP_COLUMNS)
        self._tables["evaluations"] = Table(run.folder / "evaluations.csv", EVALUATION_COLUMNS)

    def step(self, run: Run, report: StepReport) -> None:
        """A row for the step."""
        self._tables["steps"].add([getattr(report, column) for column in STEP_COLUMNS])

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """A row for each metric."""
        for metric, value in evaluation.metrics.items():
            self._tables["evaluations"].add([evaluation.step, evaluation.name, metric, value, evaluation.rows])

    def end(self, run: Run, outcome: Outcome) -> None:
        """Close both tables."""
        for table in self._tables.values():
            table.close()
        self._tables.clear()


def build(options: NoOptions, context: Context) -> CsvTracker:
    """Builder of the tracker `csv`."""
    return CsvTracker()
