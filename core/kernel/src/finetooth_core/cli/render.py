"""How a plan and the data of a run look: rows and lines as plain text, and as a rich table on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from finetooth_hooks.plan import Decision, MemoryEstimate, Plan
from finetooth_hooks.reports import DataReport, Outcome
from finetooth_rows.report_table import data_table
from finetooth_saving.runs.summary import steps_text
from finetooth_toolbox.cli.tables import Row, table, value
from finetooth_toolbox.text.controls import escape_controls
from finetooth_toolbox.text.measures import size
from rich.console import Console, RenderableType
from rich.text import Text

from finetooth_core.cli.detail import Detail

CHOICES = re.compile(
    r"model|model\.(head|added_tokens|parent)|quantization|adapter|method|method\..+|optimizer|schedule|"
    r"data\.(format|renderer)|data\.(train|eval)(\.\d+)?\.(format|rows)|hardware|"
    r"train\.(precision|micro_batch_tokens|gradient_checkpointing)|backend\.packing"
)
"""Decisions that most change what is trained, how fast, and in how much memory."""

LARGEST = 3
"""Parts of the memory that are named where it is a line."""


def plan_parts(
    console: Console,
    plan: Plan,
    reports: Sequence[DataReport] = (),
    detail: Detail = "choices",
    *,
    every: Sequence[DataReport] = (),
) -> list[RenderableType]:
    """The plan: decisions with reasons, memory, the usage of rows, and notes.

    Args:
        reports: of the rows; empty if not read.
        detail: one line, the choices that matter most, or everything.
        every: see `data_table`.
    """
    steps = (
        steps_text(plan.total_steps, "optimizer step")
        if plan.total_steps is not None
        else "the number of steps is open"
    )
    if detail == "line":
        # more than the rows are windows of documents, or several answers to a prompt
        rows = ", ".join(f"{r.used:,}{' data' * (r.used > r.rows)} of {r.rows:,} rows of {r.split}" for r in reports)
        parts = (rows, steps, f"{size(plan.memory.total)} at the peak, estimated", f"plan {plan.hash[:12]}")
        return [Text(" · ".join(filter(None, parts)))]
    shown = [decision for decision in plan.decisions if detail == "all" or CHOICES.fullmatch(decision.setting)]
    made = [table(console, "Plan", ("setting", "value", "because"), [_decided(decision) for decision in shown])]
    if hidden := len(plan.decisions) - len(shown):
        made.append(Text(f"{hidden} more {'decision' if hidden == 1 else 'decisions'}: -v shows all"))
    made.append(memory_table(console, plan.memory) if detail == "all" else memory_line(plan.memory))
    notes = [f"note: {escape_controls(note)}" for note in plan.notes]
    made.append(Text("\n".join([f"{steps} · plan {plan.hash[:12]}", *notes])))
    return [*made, data_table(console, reports, every)] if reports else made


def _decided(decision: Decision) -> Row:
    return decision.setting, value(decision.value), decision.reason


def memory_line(memory: MemoryEstimate) -> RenderableType:
    """The estimated peak, with its largest parts."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])[:LARGEST]
    largest = ", ".join(f"{part} {size(taken)}" for part, taken in parts if taken)
    device = _of(memory.total, memory.device_has) + (f" ({largest})" if largest else "")
    host = f"; of the host {_of(memory.host_total, memory.host_has)}" if memory.host else ""
    disk = f"; of a disk {size(memory.disk_total)}" if memory.disk else ""
    return Text(f"memory at the peak, estimated: {device}{host}{disk}")


def memory_table(console: Console, memory: MemoryEstimate) -> RenderableType:
    """The estimated peak, by part, of the device and, where that has memory of its own, of the host."""
    rows = [(part, size(taken)) for part, taken in memory.parts.items() if taken]
    rows.append(("total", _of(memory.total, memory.device_has)))
    if memory.host:
        rows += [(f"host: {part}", size(taken)) for part, taken in memory.host.items() if taken]
        rows.append(("host: total", _of(memory.host_total, memory.host_has)))
    rows += [(f"disk: {part}", size(taken)) for part, taken in memory.disk.items() if taken]
    return table(console, "Memory at the peak, estimated", ("part", "takes"), rows, numbers=1)


def _of(taken: int, has: int) -> str:
    return f"{size(taken)} of {size(has)}" if has else size(taken)


def next_steps(outcome: Outcome, folder: Path, commands: Sequence[str]) -> RenderableType:
    """The run's folder, and next commands."""
    lines = [f"run folder  {folder}"]
    if outcome.artifact is not None:
        lines.append(f"artifact    {outcome.artifact}")
    lines += [f"{'try next' if index == 0 else '':<12}{line}" for index, line in enumerate(commands)]
    return Text("\n".join(lines))
