"""A breakdown of recorded steps in words."""

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


def table(found: Breakdown, memory: Mapping[str, Any], first: int | None = None) -> str:
    """Markdown.

    Args:
        memory: from `memory_timeline`.
        first: number of the first recorded step, if known.
    """
    if not found.steps:
        return "# Profile\n\nNo whole step was recorded.\n"
    sections = [_summary(found, first), _parts(found), _operators(found), *_products(found)]
    if found.on_device:
        sections.append(_launches(found))
    sections.append(_memory(memory))
    return "\n\n".join(sections) + "\n"


def _summary(found: Breakdown, first: int | None) -> str:
    which = f"{found.steps} {'step' if found.steps == 1 else 'steps'}"
    if first is not None:
        which += f", from step {first} on"
    shares = [(name, time / found.wall) for name, time in found.parts.items() if time / found.wall >= 0.01]
    listed = ", ".join(f"{_percent(share)} {name}" for name, share in shares)
    clock = "an accelerator: its kernels" if found.on_device else "the host: its operators, without what they call"
    return (
        f"# Where the time of a step goes\n\n"
        f"Recorded: {which}, {_ms(found.wall / found.steps)} ms each (recording slows a step down). Time is that of "
        f"{clock}.\n\nOf a step, {listed}."
    )


def _parts(found: Breakdown) -> str:
    rows = [
        (name, _percent(time / found.wall), _ms(time / found.steps), MEANING.get(name, ""))
        for name, time in found.parts.items()
    ]
    return _markdown(("part", "share", "ms a step", "what it is"), rows)


def _operators(found: Breakdown) -> str:
    what = "kernel" if found.on_device else "operator"
    rows = [
        (
            _short(operator.name),
            _number(operator.calls / found.steps),
            _ms(operator.time / found.steps),
            _percent(operator.time / found.wall),
            f"{operator.time / operator.calls:,.1f}",
        )
        for operator in found.operators[:ROWS]
    ]
    rest = len(found.operators) - ROWS
    more = f"\n\n{rest} more take {_percent(_time(found.operators[ROWS:]) / found.wall)}." if rest > 0 else ""
    headers = (what, "calls a step", "ms a step", "share", "us a call")
    return f"## By {what}\n\n{_markdown(headers, rows)}{more}"


def _products(found: Breakdown) -> list[str]:
    if not found.products:
        return []
    rows = [
        (
            product.name,
            _number(product.calls / found.steps),
            _ms(product.time / found.steps),
            f"{product.flops / max(product.time, 1e-9) / 1e3:,.0f}",
        )
        for product in found.products[:ROWS]
    ]
    headers = ("rows x inner x columns", "calls a step", "ms a step", "GFLOP/s")
    return [f"## Matrix products by shape\n\n{_markdown(headers, rows)}"]


def _launches(found: Breakdown) -> str:
    """What only an accelerator has: copies, small kernels, gaps."""
    lines = ["## Copies, small kernels and gaps", ""]
    for copy in found.copies:
        lines.append(
            f"- {copy.name}: {_number(copy.calls / found.steps)} a step, {copy.flops / found.steps / 1e6:,.2f} MB, "
            f"{_ms(copy.time / found.steps)} ms a step"
        )
    if not found.copies:
        lines.append("- no copy between host and device")
    small = found.small
    lines.append(
        f"- {_number(sum(k.calls for k in small) / found.steps)} kernels a step are shorter than 10 us and come at "
        f"least 10 times a step: {_percent(_time(small) / found.wall)} of the time"
        + (f"; most of it in {_short(small[0].name)}" if small else "")
    )
    lines.append(
        f"- {_number(len(found.gaps) / found.steps)} gaps a step of more than 10 us, "
        f"{_percent(sum(found.gaps) / found.wall)} of the time"
        + (f"; the longest {_ms(max(found.gaps))} ms" if found.gaps else "")
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
    """A table that is aligned as text too."""
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
