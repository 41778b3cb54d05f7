"""The trackers of a run: each is called separately with its own state, and a failure counts only if the user named the
tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.errors import FinetoothError, StopRun
from finetooth_hooks.protocols import Tracker
from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_toolbox.blame import error_line

from finetooth_core.plugins.events import PluginFailed, Progress, RunView, kept_states, take_states

PREFIX = "tracker:"
"""Prefix of a tracker's name among the states of plugins."""


@dataclass(frozen=True)
class PickedTracker:
    """A tracker of a run.

    Attributes:
        name: full name of its entry, with `#2` for the second in the same recipe.
        tracker: the built tracker.
        named_by_user: the recipe lists it, or the user named its plugin; else it is a default.
    """

    name: str
    tracker: Tracker
    named_by_user: bool


class Trackers:
    """Calls trackers in the recipe's order.

    A failing tracker ends the run if the user named it. Any other causes one warning and is not called again: nobody
    requested it, and training is worth more than its record.

    Args:
        picked: in the recipe's order.
        progress: of the run.
        warn: receives a line about a failing tracker that the user did not name.
    """

    def __init__(self, picked: Sequence[PickedTracker], progress: Progress, warn: Callable[[str], None]) -> None:
        self._picked, self._warn = tuple(picked), warn
        self._views = {tracker.name: RunView(progress, None, {}) for tracker in self._picked}
        self._silenced: set[str] = set()

    def begin(self, history: Sequence[StepReport | Evaluation] | None) -> None:
        """Announce that the run begins, or that it resumes after the end of the history. Values that a tracker sets in
        its state at this point do not replace its restored ones.

        Args:
            history: reports so far; None: the run begins.
        """
        before = self.state()
        for picked in self._picked:
            if history is None:
                self._tell(picked, "start", picked.tracker.start)
            else:
                self._tell(picked, "resume", picked.tracker.resume, tuple(history))
        self.restore(before)

    def step(self, report: StepReport) -> None:
        """Report a step to all trackers."""
        for picked in self._picked:
            self._tell(picked, "step", picked.tracker.step, report)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Report an evaluation to all trackers."""
        for picked in self._picked:
            self._tell(picked, "evaluated", picked.tracker.evaluated, evaluation)

    def go_back(self, history: Sequence[StepReport | Evaluation]) -> None:
        """Announce to trackers that can remove steps that the run has returned to the end of the history."""
        for picked in self._picked:
            if "resume" in picked.tracker.capabilities:
                self._tell(picked, "resume", picked.tracker.resume, tuple(history))

    def end(self, outcome: Outcome) -> None:
        """Report the outcome to all trackers, even after a failure of one.

        Raises:
            StopRun, FinetoothError: the exception of the first failing tracker that the user named.
        """
        first: Exception | None = None
        for picked in self._picked:
            try:
                self._tell(picked, "end", picked.tracker.end, outcome)
            except (StopRun, FinetoothError) as error:
                first = first or error
        if first is not None:
            raise first

    def state(self) -> dict[str, Any]:
        """The state of every tracker, for checkpoints, by its name with a prefix.

        Raises:
            PluginFailed: the state of a tracker that the user named has a value that JSON cannot represent.
        """
        states: dict[str, Any] = {}
        for tracker in self._picked:
            if tracker.name in self._silenced:
                continue
            try:
                states |= kept_states({tracker.name: self._views[tracker.name]}, "tracker")
            except PluginFailed as error:
                self._judge(tracker, str(error), error)
        return {PREFIX + name: state for name, state in states.items()}

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore every tracker's state; its other values stay."""
        take_states({PREFIX + name: view for name, view in self._views.items()}, states)

    def _tell(self, picked: PickedTracker, name: str, method: Callable[..., None], *what: Any) -> None:
        if picked.name in self._silenced:
            return
        try:
            method(self._views[picked.name], *what)
        except StopRun:
            raise
        except Exception as error:
            self._judge(picked, f"tracker {picked.name} failed in {name}: {error_line(error)}", error)

    def _judge(self, picked: PickedTracker, problem: str, error: Exception) -> None:
        """
        Raises:
            FinetoothError: the user named the tracker; its own error if that is for the user.
        """
        if not picked.named_by_user:
            self._silenced.add(picked.name)
            self._warn(f"{problem}; it is not called again in this run")
        elif isinstance(error, FinetoothError):
            raise error
        else:
            raise PluginFailed(problem, action="fix it, or take it out of trackers") from error
