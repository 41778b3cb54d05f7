"""The trackers of a run: each is called by itself, sees a state of its own, and is judged by who named it."""

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
"""Before a tracker's name among the states of plugins."""


@dataclass(frozen=True)
class PickedTracker:
    """A tracker of a run.

    Attributes:
        name: full name of its entry; with `#2` behind where a recipe lists it a second time.
        tracker: built.
        named_by_user: the recipe lists it, or the user named its plugin; else it is there by default.
    """

    name: str
    tracker: Tracker
    named_by_user: bool


class Trackers:
    """Tells trackers in the recipe's order.

    One that fails ends the run if the user named it. Any other fails with one warning and is not called again: nobody
    asked for it, and what trains is worth more than a record of it.

    Args:
        picked: in the recipe's order.
        progress: of the run.
        warn: told about a failing tracker that the user did not name.
    """

    def __init__(self, picked: Sequence[PickedTracker], progress: Progress, warn: Callable[[str], None]) -> None:
        self._picked, self._warn = tuple(picked), warn
        self._views = {tracker.name: RunView(progress, None, {}) for tracker in self._picked}
        self._silenced: set[str] = set()

    def begin(self, history: Sequence[StepReport | Evaluation] | None) -> None:
        """Tell that the run begins, or that it resumes after what the history holds. What a tracker puts into its state
        as it begins does not undo what it had there.

        Args:
            history: None: it begins.
        """
        before = self.state()
        for picked in self._picked:
            if history is None:
                self._tell(picked, "start", picked.tracker.start)
            else:
                self._tell(picked, "resume", picked.tracker.resume, tuple(history))
        self.restore(before)

    def step(self, report: StepReport) -> None:
        """After every step."""
        for picked in self._picked:
            self._tell(picked, "step", picked.tracker.step, report)

    def evaluated(self, evaluation: Evaluation) -> None:
        """After every evaluation."""
        for picked in self._picked:
            self._tell(picked, "evaluated", picked.tracker.evaluated, evaluation)

    def go_back(self, history: Sequence[StepReport | Evaluation]) -> None:
        """Tell those that can take steps back that the run has gone back to the end of the history."""
        for picked in self._picked:
            if "resume" in picked.tracker.capabilities:
                self._tell(picked, "resume", picked.tracker.resume, tuple(history))

    def end(self, outcome: Outcome) -> None:
        """Tell all of them how it ended, also after one has failed.

        Raises:
            StopRun, FinetoothError: what the first that the user named raised.
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
            PluginFailed: that of one that the user named holds what JSON does not have.
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
        """Give every tracker its state back; what it keeps besides stays."""
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
            FinetoothError: the user named the tracker; its own error if it is one a user can act on.
        """
        if not picked.named_by_user:
            self._silenced.add(picked.name)
            self._warn(f"{problem}; it is not called again in this run")
        elif isinstance(error, FinetoothError):
            raise error
        else:
            raise PluginFailed(problem, action="fix it, or take it out of trackers") from error
