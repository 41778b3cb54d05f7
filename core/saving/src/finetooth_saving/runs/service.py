"""Trackers that write to an external service; its absence or refusal never ends a run.

Training is worth more than its record. So the first error of a service is reported in one line, without values of
secrets, and the tracker then stops writing; `metrics.jsonl` in the run folder has everything.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from finetooth_hooks.bases import TrackerBase
from finetooth_hooks.context import Context
from finetooth_hooks.errors import UserError
from finetooth_hooks.options import Options
from finetooth_hooks.reports import Evaluation, Outcome, Sample, StepReport
from finetooth_hooks.run import Run
from finetooth_toolbox.text.controls import escape_controls
from pydantic import Field

from finetooth_saving.runs.values import evaluation_values, sample_rows, step_values

SECRET = re.compile(r"(?i)(secret|token|password|passwd|api_?key|credential)")
"""Words in the name of an environment variable or a setting whose value is never shown or sent."""

LONGEST = 300
"""Number of shown characters of a service's error."""

STATE = "run"
"""Key in a tracker's state for the id of the service's run."""


class SampleOptions(Options):
    """Options of trackers that can show a step's sampled answers."""

    samples_every: int = Field(default=0, ge=0)
    """Steps from one recorded table of answers (question, answer, reward) to the next; 0 records none."""
    samples: int = Field(default=3, ge=1)
    """At most this many answers of a step are recorded; a step reports a few."""

    def due(self, report: StepReport) -> tuple[Sample, ...]:
        """The answers of a step to record."""
        return report.samples[: self.samples] if self.samples_every and report.step % self.samples_every == 0 else ()


class ServiceTracker(TrackerBase):
    """A tracker over a service's client: a subclass defines `open`, `write` and `close`.

    Args:
        context: the builder's; receives the error line.
        samples: options for recording answers; None: records none.
    """

    service: ClassVar[str]
    """Its name in messages."""

    def __init__(self, context: Context, samples: SampleOptions | None = None) -> None:
        self._context, self._samples = context, samples
        self._open = False

    # --- what a service's client does ---------------------------------------------------------------------------------

    @abstractmethod
    def open(self, run: Run, known: str | None) -> str:
        """Start a run of the service, or continue a known one.

        Args:
            known: the result of an earlier call for this run; None: start a new one.

        Returns:
            The id that identifies the service's run.
        """

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""

    def write_samples(self, step: int, rows: list[list[Any]]) -> None:
        """Record answers of a step as a table with `COLUMNS`. Called before `write` of the same step."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """End the service's run."""

    # --- what a tracker does ------------------------------------------------------------------------------------------

    def start(self, run: Run) -> None:
        """Open the service's run; continue that of an earlier process of the same run."""

        def opened() -> None:
            run.state[STATE] = self.open(run, run.state.get(STATE))
            self._open = True

        self._try("cannot be opened", opened)

    def step(self, run: Run, report: StepReport) -> None:
        """Write the step's figures as `train/NAME`, and its answers as a table."""
        if self._open and self._samples is not None and (samples := self._samples.due(report)):
            self._try("took no more", lambda: self.write_samples(report.step, sample_rows(samples)))
        self._write(report.step, step_values(report))

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """The evaluation's metrics as `eval/NAME`, its baselines as `baseline/NAME`."""
        self._write(evaluation.step, evaluation_values(evaluation))

    def end(self, run: Run, outcome: Outcome) -> None:
        """Close the service's run."""
        if self._open:
            self._try("could not be closed", lambda: self.close(outcome))
        self._open = False

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self._open:
            self._try("took no more", lambda: self.write(step, values))

    def _try(self, problem: str, call: Callable[[], None]) -> None:
        try:
            call()
        except UserError:
            raise  # a wrong setting, which the user can fix before training
        except Exception as error:
            self._open = False
            self._context.note(
                f"tracker {self.service} {problem}: {plain(error)}; training continues without it, and the tracker "
                "jsonl keeps every step in the run folder"
            )


def plain(error: BaseException) -> str:
    """The message of an error in one line, without control characters and without secret values of the environment."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    text = escape_controls(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def shown_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for a service: nested settings as `section.key`, without values of settings with secret names and
    without passwords in addresses."""
    shown: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                walk(item, f"{path}.{index}")
        elif SECRET.search(path.rpartition(".")[2]) and isinstance(value, str):
            shown[path] = "***"
        else:
            shown[path] = _PASSWORD.sub(r"\1***@", value) if isinstance(value, str) else value

    walk(recipe, "")
    return shown


_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]*@")
