"""metrics.jsonl: what happened, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from finetooth_hooks import EngineError, Evaluation, Outcome, Run, StepReport, UserError
from finetooth_hooks.bases import TrackerBase

FILE = "metrics.jsonl"


class JsonlTracker(TrackerBase):
    """`protocols.Tracker` that appends to `metrics.jsonl` in the run folder.

    Every line has `event` (`start`, `resume`, `step`, `evaluation`, `end`) and `step`; the rest is the report of
    that name.
    """

    capabilities = frozenset({"resume"})

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def start(self, run: Run) -> None:
        """Open the file.

        Raises:
            UserError: it cannot be written.
        """
        path = run.folder / FILE
        with _writing(path):
            torn = _ends_mid_line(path)
            self._file = path.open("a", encoding="utf-8", newline="\n")
        if torn:  # a killed run may have left half a line; what follows must not be glued to it
            self._file.write("\n")
        self._write(run, "start", {"step": run.step, "total_steps": run.total_steps, "run": run.id})

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Rewrite the file: `start`, then what the history says, then `resume`. Lines that an earlier process wrote
        beyond it are gone, and none is there twice.

        Raises:
            UserError: it cannot be written.
        """
        path, beside = run.folder / FILE, run.folder / f".{FILE}.tmp"
        if self._file is not None:
            self._file.close()
        with _writing(path):
            self._file = beside.open("w", encoding="utf-8", newline="\n")
            self._write(run, "start", {"step": 0, "total_steps": run.total_steps, "run": run.id})
            for report in history:
                self._write(run, "step" if isinstance(report, StepReport) else "evaluation", _values(report))
            self._write(run, "resume", {"step": run.step, "total_steps": run.total_steps, "run": run.id})
            os.fsync(self._file.fileno())
            beside.replace(path)  # the file that is open is the one in its place now

    def step(self, run: Run, report: StepReport) -> None:
        """One line for the step."""
        self._write(run, "step", _values(report))

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """One line for the evaluation."""
        self._write(run, "evaluation", asdict(evaluation))

    def end(self, run: Run, outcome: Outcome) -> None:
        """One line for the outcome; close the file."""
        content = asdict(replace(outcome, history=(), evaluations=(), data=()))
        del content["history"], content["evaluations"]  # each has a line of its own
        del content["data"], content["environment"]  # result.json has them
        self._write(run, "end", {"step": run.step, **content})
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, run: Run, event: str, values: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        not_finite: list[str] = []
        record = {"event": event, **_plain(values, "", not_finite)}
        if not_finite:
            record["not_finite"] = not_finite
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # what is still to be written cannot be
                self._file.close()
            self._file = None
            raise EngineError(
                f"trackers: {run.folder / FILE} cannot be written: {error.strerror}", action="make room"
            ) from error


def _values(report: StepReport | Evaluation) -> dict[str, Any]:
    """The fields of a report; a step that sampled nothing says nothing of samples."""
    values = asdict(report)
    if isinstance(report, StepReport):
        del values["rollouts"]
        if not report.samples:
            del values["samples"]
    return values


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """
    Raises:
        UserError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"trackers: {path} cannot be written: {error.strerror}", action="choose another output"
        ) from error


def _plain(value: Any, path: str, not_finite: list[str]) -> Any:
    """JSON-able, NaN and infinities as None with their path noted."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{path}.{k}" if path else str(k), not_finite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}.{i}", not_finite) for i, v in enumerate(value)]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    number = float(value)  # NumPy scalars too
    if math.isfinite(number):
        return number
    not_finite.append(path)
    return None


def _ends_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
