"""Recording the steps that a recipe's `profile` section names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from finetooth_hooks.engine import Engine, Spans
from finetooth_toolbox.blame import error_line

FOLDER = "profile"
"""Inside the run folder."""


class Recorder:
    """Switches the engine's recording on and off between two steps.

    Args:
        engine: what records; one that cannot is left alone.
        start: the first step to record.
        steps: how many; 0 is none.
        folder: the run folder.
        say: tells the user one line.
    """

    def __init__(self, engine: Engine, start: int, steps: int, folder: Path, say: Callable[[str], None]) -> None:
        self._engine = engine if steps and "profile" in engine.capabilities else None
        self._start, self._last = start, start + steps - 1
        self._folder, self._say = folder / FOLDER, say
        self._open: ExitStack | None = None
        self._spans: Spans | None = None
        self._begun = False

    def before(self, step: int) -> None:
        """Begin to record if `step` is the first to be recorded."""
        if self._engine is None or self._begun or step < self._start:
            return
        self._begun, self._start, self._last = True, step, self._last + step - self._start
        self._open = ExitStack()
        self._spans = self._open.enter_context(self._engine.profile(self._folder))

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Inside the `with` block, what happens is recorded under `name`; nothing while nothing is recorded."""
        return nullcontext() if self._spans is None else self._spans.span(name)

    def after(self, step: int) -> None:
        """Write the recording if `step` was the last to be recorded."""
        if self._spans is not None and step >= self._last:
            self._write(step)

    def close(self, done: int) -> None:
        """Write the recording of a run that ended after `done` steps, and report missing steps.

        A recording that cannot be written is only reported.
        """
        if self._spans is not None:
            self._write(done)
        elif self._engine is not None and not self._begun:
            self._say(f"profile: nothing was recorded, the run ended after step {done}, before step {self._start}")

    def _write(self, done: int) -> None:
        assert self._open is not None
        recording, self._open, self._spans = self._open, None, None
        try:
            recording.close()
        except Exception as error:
            self._say(f"profile: it could not be written: {error_line(error)}")
            return
        if done < self._start:
            self._say(f"profile: step {self._start} did not end; {self._folder} holds what was recorded of it")
            return
        steps = f"step {self._start}" if done == self._start else f"steps {self._start} to {done}"
        short = f", not {self._start} to {self._last}: the run ended" if done < self._last else ""
        self._say(f"profile: {steps} recorded{short}; see {self._folder / 'table.md'}")
