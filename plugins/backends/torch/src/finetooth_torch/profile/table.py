"""Writes the breakdown of recorded steps as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetooth_toolbox.text.measures import size

from finetooth_torch.profile.trace import (
    ATTENTION,
    COPIES,
    DEVICE_IDLE,
    ELEMENTWISE,
    IDLE,
    LAYOUT,
    OBSERVERS,
    OPTIMIZER,
    PRODUCTS,
    Breakdown,
    Calls,
)

ROWS = 15
"""Operators, kernels or shapes shown."""

MEANING = {
    PRODUCTS: "linear layers, the head and their gradients",
    ATTENTION: "scores, softmax and values",
    ELEMENTWISE: "norms, activations, rotations, casts, copies, losses",
    OPTIMIZER: "gradient norm, clipping, update",
    LAYOUT: "cutting the step into micro-batches, making tensors of them",
    OBSERVERS: "trackers and plugins, after the step",
    COPIES: "of tensors, not of kernels' arguments",
    IDLE: "Python: method, loss, autograd's bookkeeping",
    DEVICE_IDLE: "waiting for the host",
}


def table(breakdown: Breakdown, memory: Mapping[str, Any], first: int | None = None) -> str:
    """Markdown.

    Args:
        memory: from `memory_timeline`.
        first: number of the first recorded step, if known.
    """
    if not breakdown.steps:
        return "# Profile\n\nNo whole step was recorded.\n"
    sections = [_summary(breakdown, first), _parts(breakdown), _operators(breakdown), *_products(breakdown)]
    if breakdown.on_device:
        sections.append(_launches(breakdown))
    sections.append(_memory(memory))
    return "\n\n".join(sections) + "\n"


def _summary(breakdown: Breakdown, first: int | None) -> str:
    which = f"{breakdown.steps} {'step' if breakdown.steps == 1 else 'steps'}"
    if first is not None:
        which += f", from step {first} on"
    shares = [(name, time / breakdown.wall) for name, time in breakdown.parts.items() if time / breakdown.wall >= 0.01]
    listed = ", ".join(f"{_percent(share)} {name}" for name, share in shares)
    clock = "an accelerator: its kernels" if breakdown.on_device else "the host: its operators, without what they call"
    return (
        f"# Where the time of a step goes\n\n"
        f"Recorded: {which}, {_ms(breakdown.wall / breakdown.steps)} ms each (recording slows a step down). "
        f"Time is that of {clock}.\n\nOf a step, {listed}."
    )


def _parts(breakdown: Breakdown) -> str:
    rows = [
        (name, _percent(time / breakdown.wall), _ms(time / breakdown.steps), MEANING.get(name, ""))
        for name, time in breakdown.parts.items()
    ]
    return _markdown(("part", "share", "ms a step", "what it is"), rows)


def _operators(breakdown: Breakdown) -> str:
    what = "kernel" if breakdown.on_device else "operator"
    rows = [
        (
            _short(operator.name),
            _number(operator.calls / breakdown.steps),
            _ms(operator.time / breakdown.steps),
            _percent(operator.time / breakdown.wall),
            f"{operator.time / operator.calls:,.1f}",
        )
        for operator in breakdown.operators[:ROWS]
    ]
    rest = len(breakdown.operators) - ROWS
    more = f"\n\n{rest} more take {_percent(_time(breakdown.operators[ROWS:]) / breakdown.wall)}." if rest > 0 else ""
    headers = (what, "calls a step", "ms a step", "share", "us a call")
    return f"## By {what}\n\n{_markdown(headers, rows)}{more}"


def _products(breakdown: Breakdown) -> list[str]:
    if not breakdown.products:
        return []
    rows = [
        (
            product.name,
            _number(product.calls / breakdown.steps),
            _ms(product.time / breakdown.steps),
            f"{product.flops / max(product.time, 1e-9) / 1e3:,.0f}",
        )
        for product in breakdown.products[:ROWS]
    ]
    headers = ("rows x inner x columns", "calls a step", "ms a step", "GFLOP/s")
    return [f"## Matrix products by shape\n\n{_markdown(headers, rows)}"]


def _launches(breakdown: Breakdown) -> str:
    """The parts for accelerators: copies, small kernels, gaps."""
    lines = ["## Copies, small kernels and gaps", ""]
    for copy in breakdown.copies:
        lines.append(
            f"- {copy.name}: {_number(copy.calls / breakdown.steps)} a step, "
            f"{copy.flops / breakdown.steps / 1e6:,.2f} MB, {_ms(copy.time / breakdown.steps)} ms a step"
        )
    if not breakdown.copies:
        lines.append("- no copy between host and device")
    small = breakdown.small
    lines.append(
        f"- {_number(sum(k.calls for k in small) / breakdown.steps)} kernels a step are shorter than 10 us and come at "
        f"least 10 times a step: {_percent(_time(small) / breakdown.wall)} of the time"
        + (f"; most of it in {_short(small[0].name)}" if small else "")
    )
    lines.append(
        f"- {_number(len(breakdown.gaps) / breakdown.steps)} gaps a step of more than 10 us, "
        f"{_percent(sum(breakdown.gaps) / breakdown.wall)} of the time"
        + (f"; the longest {_ms(max(breakdown.gaps))} ms" if breakdown.gaps else "")
    )
    return "\n".join(lines)


def _memory(memory: Mapping[str, Any]) -> str:
    peak, points = memory["peak"], memory["points"]
    text = f"At the peak, {size(peak)} were allocated on the {memory['device']}"
    if memory["device"] == "host":
        text += " since the recording began"
    at = next((point[0] for point in points if point[1] == peak), None)
    when = "" if at is None else f", {at / 1e3:,.1f} ms after its start"
    which = (
        "A snapshot of what allocated each block exists on accelerators alone."
        if memory["device"] == "host"
        else "snapshot.pickle says what allocated each block: open it at pytorch.org/memory_viz."
    )
    return f"## Memory\n\n{text}{when}; memory.json has the timeline.\n{which}"


def _time(calls: Iterable[Calls]) -> float:
    return sum(call.time for call in calls)


def _markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    cells = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {cells[0]} |", f"|{rule}|", *(f"| {line} |" for line in cells[1:])])


def _short(name: str) -> str:
    name = name.replace("|", "/")
    return name if len(name) <= 60 else f"{name[:57]}..."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1e3:,.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
