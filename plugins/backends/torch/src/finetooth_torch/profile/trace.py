"""Reads the time of each part from a Chrome trace of training steps. Pure; no framework.

On a host, time is the operators' own time, without the operators they call; the rest is Python. With an accelerator,
time is that of its kernels; the rest is idle.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN

PRODUCTS = "matrix products"
ATTENTION = "attention"
ELEMENTWISE = "element-wise and other operators"
OPTIMIZER = "optimizer"
LAYOUT = "data layout"
OBSERVERS = "trackers and hooks"
COPIES = "copies between host and device"
IDLE = "no operator running"
DEVICE_IDLE = "device idle"

OPTIMIZER_SPAN, LAYOUT_SPAN = "optimizer", "data layout"
"""Names of the spans that the engine puts around its own work."""

KERNEL = "finetooth::"
"""Prefix of spans around compiled kernels (`finetooth_native.library.KERNEL_SPAN`), which count as operators."""

SMALL = 10.0
"""Microseconds below which a kernel is small: its launch takes as long."""

_PRODUCT = re.compile(
    r"^aten::(mm|addmm|bmm|baddbmm|matmul|linear|mv|addmv|dot|einsum|_scaled_mm|_grouped_mm)$|^mkldnn::|_linear"
    r"|^finetooth::(mm|few_rows)|gemm|cutlass|cublas|nvjet|wgmma|xmma|matmul|_mm_",
    re.IGNORECASE,
)
_ATTENTION = re.compile(r"scaled_dot_product|flash|fmha|attention|aten::_?(safe_)?softmax", re.IGNORECASE)
_SPANS = {OBSERVERS_SPAN: OBSERVERS, OPTIMIZER_SPAN: OPTIMIZER, LAYOUT_SPAN: LAYOUT}
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass
class Event:
    """A timed event, in microseconds."""

    name: str
    category: str
    start: float
    duration: float
    thread: tuple[Any, Any]
    args: Mapping[str, Any]
    alone: float = 0.0  # without its callees
    part: str = ""

    @property
    def end(self) -> float:
        return self.start + self.duration


@dataclass(frozen=True)
class Calls:
    """The cost of one operator, kernel or shape: calls, and total microseconds."""

    name: str
    calls: int
    time: float
    flops: float = 0.0


@dataclass(frozen=True)
class Breakdown:
    """Where the time of the recorded steps went; microseconds over all of them.

    Attributes:
        steps: number of complete steps.
        wall: of the steps, with their observers.
        parts: by name, largest first.
        operators: own time of operators, or time of kernels on an accelerator.
        products: matrix products by shape, on a host.
        copies: between host and device, by kind; `flops` holds the bytes.
        gaps: times without a running kernel, more than 10 us each.
        on_device: the trace has kernels.
    """

    steps: int
    wall: float
    parts: Mapping[str, float]
    operators: tuple[Calls, ...]
    products: tuple[Calls, ...] = ()
    copies: tuple[Calls, ...] = ()
    gaps: tuple[float, ...] = field(default=())
    on_device: bool = False

    @property
    def small(self) -> tuple[Calls, ...]:
        """Kernels or operators that are short and frequent: at least 10 times a step."""
        times = max(1, self.steps)
        return tuple(c for c in self.operators if c.time / c.calls < SMALL and c.calls >= 10 * times)


def events_of(trace: Mapping[str, Any]) -> list[Event]:
    """The complete events of a trace."""
    return [
        Event(
            str(e.get("name", "")),
            str(e.get("cat", "")),
            float(e["ts"]),
            float(e.get("dur", 0.0)),
            (e.get("pid"), e.get("tid")),
            e.get("args") or {},
        )
        for e in trace.get("traceEvents", ())
        if e.get("ph") == "X"
    ]


def break_down(trace: Mapping[str, Any]) -> Breakdown:
    """The time between the first span `step` and the last observers' span, by part."""
    events = events_of(trace)
    spans = _whole_steps(events)
    steps = len(spans) // 2
    wall = sum(e.duration for e in spans)
    windows = [(e.start, e.end) for e in spans]
    host = [e for e in events if e.category in ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")]
    for thread in {e.thread for e in host}:
        _nest([e for e in host if e.thread == thread])
    host = [e for e in host if _inside(e, windows)]
    device = [e for e in events if e.category in _DEVICE and windows and e.start >= windows[0][0]]
    if device:
        return _on_device(device, host, steps, wall)
    parts: dict[str, float] = defaultdict(float)
    for event in host:
        parts[event.part or IDLE] += event.alone
    parts[IDLE] += wall - sum(parts.values())
    operators = [e for e in host if e.category == "cpu_op" or e.name.startswith(KERNEL)]
    return Breakdown(
        steps=steps,
        wall=wall,
        parts=_largest_first(parts),
        operators=_tally((e.name.partition(" ")[0], e.alone, 0.0) for e in operators),
        products=_tally((shape, e.duration, flops) for e in operators for shape, flops in _product(e)),
    )


def _whole_steps(events: Iterable[Event]) -> list[Event]:
    """The spans of each completed step and of the observers after it. A failed step has no observers after it."""
    spans = [e for e in events if e.category == "user_annotation" and e.name in (STEP_SPAN, OBSERVERS_SPAN)]
    spans.sort(key=lambda e: e.start)
    whole = [(a, b) for a, b in pairwise(spans) if a.name == STEP_SPAN and b.name == OBSERVERS_SPAN]
    return [span for pair in whole for span in pair]


def _nest(events: list[Event]) -> None:
    """Own time and part of each event of one thread."""
    events.sort(key=lambda e: (e.start, -e.duration))
    stack: list[Event] = []
    for event in events:
        while stack and event.start >= stack[-1].end:
            stack.pop()
        event.alone = event.duration
        parent = stack[-1].part if stack else ""
        if stack:
            stack[-1].alone -= min(event.duration, stack[-1].end - event.start)
        event.part = _part(event, parent)
        stack.append(event)


def _part(event: Event, parent: str) -> str:
    if parent in (OBSERVERS, OPTIMIZER, LAYOUT):
        return parent
    if event.name.startswith(KERNEL):
        return _by_name(event.name) or ELEMENTWISE
    if event.category == "user_annotation":
        return OPTIMIZER if event.name.startswith("Optimizer.step") else _SPANS.get(event.name, "")
    if event.category != "cpu_op" or parent == ATTENTION:
        return parent
    named = _by_name(event.name)
    if named:
        return named
    if event.name.startswith("autograd::") or "::" not in event.name:
        return ""  # the framework's bookkeeping around an operator
    return parent if parent == PRODUCTS else ELEMENTWISE


def _by_name(name: str) -> str:
    if _ATTENTION.search(name):
        return ATTENTION
    return PRODUCTS if _PRODUCT.search(name) else ""


def _inside(event: Event, windows: Sequence[tuple[float, float]]) -> bool:
    return any(start <= event.start <= end for start, end in windows)


def _on_device(device: list[Event], host: Iterable[Event], steps: int, wall: float) -> Breakdown:
    """Time by kernel; a kernel belongs to the part that launched it, else to the part that its name says."""
    launched = {e.args["correlation"]: e.part for e in host if "correlation" in e.args}
    device.sort(key=lambda e: e.start)
    parts: dict[str, float] = defaultdict(float)
    busy, reached, gaps = 0.0, device[0].start, []
    for event in device:
        if event.category == "gpu_memcpy" and ("HtoD" in event.name or "DtoH" in event.name):
            part = COPIES
        else:
            part = launched.get(event.args.get("correlation"), "") or _by_name(event.name) or ELEMENTWISE
        parts[part] += event.duration
        if event.start - reached > SMALL:
            gaps.append(event.start - reached)
        busy += max(0.0, event.end - max(reached, event.start))
        reached = max(reached, event.end)
    parts[DEVICE_IDLE] = max(0.0, wall - busy)
    copies = [e for e in device if e.category == "gpu_memcpy"]
    return Breakdown(
        steps=steps,
        wall=wall,
        parts=_largest_first(parts),
        operators=_tally((e.name, e.duration, 0.0) for e in device),
        copies=_tally((e.name, e.duration, float(e.args.get("bytes", 0))) for e in copies),
        gaps=tuple(gaps),
        on_device=True,
    )


def _largest_first(parts: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _product(event: Event) -> list[tuple[str, float]]:
    """Shape and FLOPs of a matrix product of its last two inputs; empty for other operators."""
    if event.name.startswith(f"{KERNEL}mm "):
        label = event.name.partition(" ")[2]
        return [(label, 2.0 * math.prod(int(size) for size in label.split(" x ")))]
    if event.name not in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
        return []
    first = 1 if "add" in event.name else 0
    shapes = [tuple(shape) for shape in event.args.get("Input Dims", ())][first : first + 2]
    if len(shapes) < 2 or any(len(shape) not in (2, 3) for shape in shapes):
        return []
    (*batch, m, k), n = shapes[0], shapes[1][-1]
    count = batch[0] if batch else 1
    label = f"{m} x {k} x {n}" + (f", {count} times" if batch else "")
    return [(label, 2.0 * count * m * k * n)]


def _tally(events: Iterable[tuple[str, float, float]]) -> tuple[Calls, ...]:
    """Calls by name, the longest time first."""
    calls: Counter[str] = Counter()
    time: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    for name, took, operations in events:
        calls[name] += 1
        time[name] += took
        flops[name] += operations
    return tuple(Calls(name, calls[name], time[name], flops[name]) for name in sorted(time, key=lambda n: -time[n]))


def memory_timeline(trace: Mapping[str, Any], *, on_device: bool) -> dict[str, Any]:
    """Allocated and reserved bytes over time, since the recording began; JSON-able.

    Points that differ by less than a thousandth of the peak are left out, but never the peak itself.
    """
    kind = 0 if not on_device else 1
    points = []
    for event in trace.get("traceEvents", ()):
        args = event.get("args") or {}
        if event.get("name") == "[memory]" and int(args.get("Device Type", 0)) == kind:
            points.append((float(event["ts"]), int(args["Total Allocated"]), int(args.get("Total Reserved", 0))))
    points.sort()
    peak = max((allocated for _, allocated, _ in points), default=0)
    curve: list[list[float]] = []
    for at, allocated, reserved in points:
        if not curve or abs(allocated - curve[-1][1]) > peak / 1000 or allocated == peak:
            curve.append([round(at - points[0][0], 1), allocated, reserved])
    return {
        "device": "accelerator" if on_device else "host",
        "unit": "bytes",
        "columns": ["microseconds", "allocated", "reserved"],
        "peak": peak,
        "points": curve,
    }
