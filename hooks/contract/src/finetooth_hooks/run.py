"""The run as plugins see it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks.plan import Plan


class Run(Protocol):
    """One execution of a recipe. Every plugin gets its own view: `options` and `state` are its own.

    Attributes:
        id: name of the run, the last part of its folder.
        folder: the run folder.
        plan: the decided settings.
        step: optimizer steps done.
        total_steps: planned, None if unknown.
        metrics: the last value of every metric.
        options: the plugin's options (an instance of its `plugin_options` model), or None; None for a
            tracker, whose builder was given its own.
        state: the plugin's own dictionary, JSON-able; saved in every checkpoint. Each tracker of a recipe has a
            separate one, distinct from that of its plugin's event hooks.
    """

    @property
    def id(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int | None: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def options(self) -> Any: ...
    @property
    def state(self) -> MutableMapping[str, Any]: ...
