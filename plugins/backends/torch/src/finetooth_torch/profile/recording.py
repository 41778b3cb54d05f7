"""Records steps with torch's profiler and writes the results into a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from finetooth_torch.profile.table import table
from finetooth_torch.profile.trace import break_down, memory_timeline

P = ParamSpec("P")
R = TypeVar("R")
TRACE, MEMORY, TABLE, SNAPSHOT = "trace.json", "memory.json", "table.md", "snapshot.pickle"
ALLOCATIONS = 1 << 20
"""Most allocations and frees that a snapshot holds: the newest ones."""

_DROPPED = ("Ev Idx", "Record function id", "Concrete Inputs", "Input Strides", "Sequence number", "Fwd thread id")
"""Unused arguments of events, which are most of a trace."""


class Recording:
    """`finetooth_hooks.engine.Spans`. `span` costs nothing while none is recorded."""

    under_way = 0

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Inside the `with` block, time is recorded as part of `name`."""
        return record_function(name)


def span(name: str) -> AbstractContextManager[Any]:
    """For the engine's own work (`LAYOUT_SPAN` of `finetooth_torch.profile.trace`, ...): a span, if a recording
    runs."""
    return record_function(name) if Recording.under_way else nullcontext()


def spanned(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose calls are recorded as part of `name`, if a recording runs."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return called

    return around


@contextmanager
def record(folder: Path, device: torch.device) -> Iterator[Recording]:
    """Inside the `with` block, record; at its end, also after an error, write `trace.json`, `memory.json` and
    `table.md`, and on an accelerator a memory snapshot for pytorch.org/memory_viz."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces its start and end on stderr
    recorded = profile(activities=activities, record_shapes=True, profile_memory=True)
    folder.mkdir(parents=True, exist_ok=True)
    recorded.start()
    if device.type == "cuda":
        torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS, stacks="python", device=device)
    Recording.under_way += 1
    try:
        yield Recording()
    finally:
        Recording.under_way -= 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.memory._dump_snapshot(str(folder / SNAPSHOT))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None, device=device)
        recorded.stop()
        recorded.export_chrome_trace(str(folder / TRACE))
        write_findings(folder)


def write_findings(folder: Path) -> None:
    """Write `memory.json` and `table.md` from the profiler's trace, and `trace.json` without their data: a third of its
    size."""
    trace = json.loads((folder / TRACE).read_text(encoding="utf-8"))
    breakdown = break_down(trace)
    memory = memory_timeline(trace, on_device=breakdown.on_device)
    events = [_lean(event) for event in trace["traceEvents"] if event.get("name") != "[memory]"]
    content = {"displayTimeUnit": "ms", "deviceProperties": trace.get("deviceProperties", []), "traceEvents": events}
    (folder / TRACE).write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    (folder / MEMORY).write_text(json.dumps(memory) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(table(breakdown, memory), encoding="utf-8")


def _lean(event: Mapping[str, Any]) -> dict[str, Any]:
    args = event.get("args")
    if not isinstance(args, dict):
        return dict(event)
    return {**event, "args": {name: value for name, value in args.items() if name not in _DROPPED}}
