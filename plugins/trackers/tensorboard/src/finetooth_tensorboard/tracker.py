"""Scalars as TensorBoard's event files."""

from __future__ import annotations

import html
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetooth_hooks import Evaluation, Outcome, Run, StepReport, UserError
from finetooth_hooks.bases import TrackerBase
from finetooth_saving.runs.service import SampleOptions
from finetooth_saving.runs.values import COLUMNS, TABLE, sample_rows
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.text.summary_v2 import text_pb  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

FIRST = "events.out.tfevents."
"""How the name of every event file begins; what comes next is the time that readers order files by."""


class TensorboardOptions(SampleOptions):
    """Options of `tensorboard`."""

    folder: str | None = None
    """Folder for event files, with one folder for each run. Default: `tensorboard` in the run folder."""


class TensorboardTracker(TrackerBase):
    """`protocols.Tracker` that writes `train/...` for steps and `eval/...` for evaluations."""

    capabilities = frozenset({"resume"})

    def __init__(self, options: TensorboardOptions) -> None:
        self._options = options
        self._writer: Any = None
        self._now: float | None = None  # while the past is written

    def start(self, run: Run) -> None:
        """Open a new event file; what an interrupted run wrote past the step it resumes from is hidden.

        Raises:
            UserError: the folder cannot be written.
        """
        self._open(run)
        # always: readers drop something only from the second such event on
        self._hide_from(run.step + 1 if run.step else 0)

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Write the history into a new event file, and hide what earlier ones hold: nothing is there twice, nothing is
        missing. They are not removed, since a TensorBoard that is watching would wait for them.

        Times are those that the steps took, counted back from now.

        Raises:
            UserError: the folder cannot be written.
        """
        self._close()
        self._open(run)
        self._hide_from(0)
        self._now = time.time() - sum(report.seconds for report in history if isinstance(report, StepReport))
        for report in history:
            if isinstance(report, StepReport):
                self._now += report.seconds
                self.step(run, report)
            else:
                self._evaluation(report)
        self._now = None
        self._flush()

    def step(self, run: Run, report: StepReport) -> None:
        """The step's figures and every metric of its method."""
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "epoch": report.epoch,
            "tokens_per_second": report.tokens_per_second,
            "seconds": report.seconds,
            "memory_bytes": float(report.memory),
            "memory_now_bytes": float(report.memory_now),
            "flops_per_second": report.flops_per_second,
            "mfu": report.mfu,
            "padding": report.padding,
            "skipped": float(report.skipped),
            **report.metrics,
        }
        self._scalars(report.step, {f"train/{name}": value for name, value in values.items()})
        if samples := self._options.due(report):
            self._add(Event(step=report.step, summary=text_pb(TABLE, markdown_table([COLUMNS, *sample_rows(samples)]))))
        if self._now is None:
            self._flush()  # what was reported is seen at once, and survives the process

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """The evaluation's metrics, and its baselines under `baseline/`."""
        self._evaluation(evaluation)
        self._flush()

    def end(self, run: Run, outcome: Outcome) -> None:
        """Close the file."""
        self._close()

    def _open(self, run: Run) -> None:
        self._folder = Path(self._options.folder) / run.id if self._options.folder else run.folder / "tensorboard"
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(next_file(self._folder).open("xb"))
            self._add(Event(file_version="brain.Event:2"))
        self._flush()

    def _flush(self) -> None:
        with self._writing():
            self._writer.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """
        Raises:
            UserError: the disk is full, or does not let the folder be written.
        """
        try:
            yield
        except OSError as error:
            raise UserError(
                f"trackers.tensorboard.folder: {self._folder} cannot be written: {error.strerror}",
                action="make room, choose another folder, or leave the tracker out",
            ) from error

    def _close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._writing():
                writer.close()

    def _hide_from(self, step: int) -> None:
        """Tell readers that what they have read of this step and later ones does not count."""
        self._add(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def _evaluation(self, evaluation: Evaluation) -> None:
        values = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        values |= {f"baseline/{name.replace(' ', '_')}": value for name, value in evaluation.baselines.items()}
        self._scalars(evaluation.step, values)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._add(Event(step=step, summary=summary))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time() if self._now is None else self._now
        with self._writing():
            self._writer.write(event.SerializeToString())


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """Rows as a table in Markdown, which TensorBoard shows; the first row is its head. A cell is shown as it is: what
    means something in Markdown or HTML is escaped, and its lines are broken inside the cell."""

    def shown(cell: object) -> str:
        return _MARKUP.sub(r"\\\g<0>", html.escape(str(cell), quote=False)).replace("\n", "<br>")

    lines = [" | ".join(map(shown, row)) for row in rows]
    return "\n".join([lines[0], " | ".join(["---"] * len(rows[0])), *lines[1:]])


_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|-]")


def next_file(folder: Path) -> Path:
    """An event file that readers take for the newest of a folder.

    Readers go through files in the order of their names, and what one hides is what came before it. TensorBoard's own
    writer names two files of one second by counters that do not sort (`.9` comes after `.10`), and a resumed run may
    have another machine's clock. So the time in the name is at least a second later than the last file's.
    """
    seconds = int(time.time())
    for file in folder.glob(f"{FIRST}*"):
        number = file.name.removeprefix(FIRST).split(".")[0]
        seconds = max(seconds, int(number) + 1) if number.isdecimal() else seconds
    return folder / f"{FIRST}{seconds:010d}.{socket.gethostname()}.{os.getpid()}"
