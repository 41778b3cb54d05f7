"""Records where the time and the memory of steps go.

MLX computes a whole graph at once, so Python cannot time operators. The record has the parts of a step, each up to the
end of its work on the device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN
from finetooth_toolbox.text.measures import size

LAYOUT, GRAPH, COMPUTE, OPTIMIZER = "data layout", "graph", "computing", "optimizer"
MEANING = {
    LAYOUT: "cutting the step into micro-batches",
    GRAPH: "Python: model, loss and their gradients become a graph",
    COMPUTE: "the device computes the graph",
    OPTIMIZER: "gradient norm, clipping, update",
    OBSERVERS_SPAN: "trackers and plugins, after the step",
}


@dataclass
class Recording:
    """`finetooth_hooks.engine.Spans`.

    Attributes:
        spans: name, begin and length of each, in microseconds.
        memory: time in microseconds, bytes in use, and bytes in use or kept by the allocator.
    """

    begun: float = field(default_factory=time.perf_counter)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A `with` block that is recorded as part of `name`."""
        begin = self._now()
        try:
            yield
        finally:
            end = self._now()
            self.spans.append((name, begin, end - begin))
            used = int(mx.get_active_memory())
            self.memory.append((end, used, used + int(mx.get_cache_memory())))

    def _now(self) -> float:
        return (time.perf_counter() - self.begun) * 1e6


_under_way: list[Recording] = []


def span(name: str) -> AbstractContextManager[None]:
    """A span of the engine's own work, if a record is being made."""
    return _under_way[-1].span(name) if _under_way else nullcontext()


@contextmanager
def record(folder: Path) -> Iterator[Recording]:
    """A `with` block that is recorded. At its end, also after an error, write `trace.json`, `memory.json` and
    `table.md`."""
    recording = Recording()
    _under_way.append(recording)
    try:
        yield recording
    finally:
        _under_way.remove(recording)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("trace.json", json.dumps(_trace(recording))),
            ("memory.json", json.dumps(_memory(recording))),
            ("table.md", table(recording)),
        ):
            (folder / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _trace(recording: Recording) -> dict[str, Any]:
    """The trace in the format of Chrome and Perfetto."""
    spans = sorted(recording.spans, key=lambda of: (of[1], -of[2]))
    events = [{"ph": "X", "name": n, "ts": begin, "dur": length, "pid": 0, "tid": 0} for n, begin, length in spans]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _memory(recording: Recording) -> dict[str, Any]:
    points = recording.memory
    peak = max((used for _, used, _ in points), default=0)
    return {"columns": ["microseconds", "allocated", "reserved"], "points": points, "peak": peak, "device": "mlx"}


def table(recording: Recording) -> str:
    """A Markdown table of the parts of a step, with their shares of its time."""
    steps = [length for name, _, length in recording.spans if name == STEP_SPAN]
    if not steps:
        return "# Profile\n\nNo whole step was recorded.\n"
    wall = sum(steps)
    parts = {name: sum(length for n, _, length in recording.spans if n == name) for name in MEANING}
    inside = sum(time for name, time in parts.items() if name != OBSERVERS_SPAN)
    rows = [(name, parts[name], meaning) for name, meaning in MEANING.items()]
    rows.append(("the rest", wall - inside, "Python: method, rows, reports"))
    lines = ["| part | share | ms a step | what it is |", "|---|---|---|---|"]
    for name, time_, meaning in rows:
        lines.append(f"| {name} | {100 * time_ / wall:.1f} % | {time_ / len(steps) / 1e3:,.2f} | {meaning} |")
    return (
        "# Where the time of a step goes\n\n"
        f"Recorded: {len(steps)} {'step' if len(steps) == 1 else 'steps'}, {wall / len(steps) / 1e3:,.2f} ms each. MLX "
        "computes whole graphs, so operators have no times of their own.\n\n" + "\n".join(lines) + "\n\n## Memory\n\n"
        f"Between parts, at most {size(_memory(recording)['peak'])} were in use; the peak within them, since the "
        f"process began, is {size(int(mx.get_peak_memory()))}. memory.json has the timeline.\n"
    )
