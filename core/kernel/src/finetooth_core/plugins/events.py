"""Event hooks: each plugin is called separately with its own options and state, and a failure counts only if the user
named the plugin."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.errors import FinetoothError, StopRun
from finetooth_hooks.plan import Plan
from finetooth_toolbox.blame import error_line, shown

if TYPE_CHECKING:
    from finetooth_hooks.checkpoints import Candidate

    from finetooth_core.plugins.manager import EventPlugin


class PluginFailed(FinetoothError):
    """A plugin that the user named raised in an event hook, or as a tracker; exit code 1."""


@dataclass
class Progress:
    """State that all views of a run share; the run loop writes it."""

    id: str
    folder: Path
    plan: Plan
    total_steps: int | None
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunView:
    """A run as one plugin sees it (`finetooth_hooks.Run`)."""

    progress: Progress
    options: Any
    state: MutableMapping[str, Any]

    @property
    def id(self) -> str:
        return self.progress.id

    @property
    def folder(self) -> Path:
        return self.progress.folder

    @property
    def plan(self) -> Plan:
        return self.progress.plan

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def total_steps(self) -> int | None:
        return self.progress.total_steps

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.progress.metrics


def kept_states(views: Mapping[str, RunView], whose: str) -> dict[str, Any]:
    """The states of plugins by name, for checkpoints; empty ones are left out.

    Args:
        whose: the kind of the named objects, for messages.

    Raises:
        PluginFailed: a state has a value that JSON cannot represent, so it could not be restored.
    """
    for name, view in views.items():
        for key, value in view.state.items():
            try:
                same = json.loads(json.dumps(value)) == value
            except (TypeError, ValueError):
                same = False
            if not same:
                problem = f"{whose} {name}: run.state[{key!r}] is {value!r}, which JSON cannot keep"
                raise PluginFailed(problem, action="keep numbers, text, lists and dictionaries with text keys")
    return {name: dict(view.state) for name, view in views.items() if view.state}


def take_states(views: Mapping[str, RunView], states: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore states by name; other values of a view stay."""
    for name in views.keys() & states.keys():
        views[name].state.update(json.loads(json.dumps(states[name])))  # a copy, since the plugin continues to write


class Events:
    """Calls event hooks in the order of the plugins' names.

    Args:
        plugins: those with event hooks.
        progress: of the run.
        warn: receives a line about a failing plugin that the user did not name; that plugin is not called again.
    """

    def __init__(self, plugins: tuple[EventPlugin, ...], progress: Progress, warn: Callable[[str], None]) -> None:
        self.views: dict[str, RunView] = {}
        self.warn = warn
        for plugin in plugins:
            try:
                self.views[plugin.name] = RunView(progress, plugin.options, {})
            except FinetoothError as error:
                if plugin.named_by_user:
                    raise
                warn(f"{error_line(error)}; its event hooks are not called in this run")
        plugins = tuple(plugin for plugin in plugins if plugin.name in self.views)
        self._plugins = plugins
        self._silenced: set[str] = set()

    def fire(self, hook: str, **arguments: Any) -> None:
        """Call one hook of every plugin.

        Raises:
            StopRun: a plugin requests the end; the others are still called, and the first request counts.
            PluginFailed: a plugin that the user named raised anything else.
        """
        stop: StopRun | None = None
        for plugin in self._plugins:
            if plugin.name in self._silenced:
                continue
            try:
                plugin.call(hook, run=self.views[plugin.name], **arguments)
            except StopRun as request:
                stop = stop or request
            except Exception as error:
                problem = f"plugin {plugin.name} failed in {hook}: {error_line(error)}"
                if plugin.named_by_user:
                    raise PluginFailed(problem, action="fix the plugin, or take it out of plugins:") from error
                self._silenced.add(plugin.name)
                self.warn(f"{problem}; it is not called again in this run")
        if stop is not None:
            raise stop

    def state(self) -> dict[str, Any]:
        """Every plugin's state, for checkpoints.

        Raises:
            PluginFailed: a state has a value that JSON cannot represent, so it could not be restored.
        """
        return kept_states(self.views, "plugin")

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore every plugin's state; its other values stay."""
        take_states(self.views, states)

    def objection(self, candidate: Candidate) -> str:
        """The reason of a plugin that refuses a checkpoint (`ft_promote`); empty if none does. A failing plugin that
        the user named refuses; any other only causes a warning."""
        for plugin in self._plugins:
            if plugin.name in self._silenced:
                continue
            try:
                reason = plugin.call("ft_promote", run=self.views[plugin.name], candidate=candidate)
            except Exception as error:
                reason = f"it failed in ft_promote: {error_line(error)}"
                if not plugin.named_by_user:
                    self._silenced.add(plugin.name)
                    self.warn(f"plugin {plugin.name}: {reason}; it is not called again in this run")
                    continue
            if reason is not None and not isinstance(reason, str):
                reason = f"ft_promote returned {shown(reason)} not a reason: return text, or None to let it pass"
            if reason:
                return f"plugin {plugin.name}: {reason}"
        return ""
