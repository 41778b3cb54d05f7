"""The part of the page that says why a workload is not faster: the floor of each, and recordings of warm work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import figures
from harness.floors import GOALS, Floor, floors
from harness.results import Results
from harness.workloads import WORKLOADS

TITLE = "Where the time goes, and what the floor is"
ANCHOR = "where-the-time-goes-and-what-the-floor-is"
ROWS = 8
"""Lines of a recorded table that the page shows; `ft profile` shows all."""
LEFT_OUT = ("Memory",)
"""Sections of a recording that say nothing about time."""

STEP = {
    "scoring": "Here a step is one pass over 64 rows.",
    "generation": "Here a step is one call: 32 prompts, 32 tokens.",
}
"""What stands for a step where nothing is trained."""

ABOUT = """\
The floor is what a workload could reach at most if nothing took time but the FLOPs that finetooth executes, all at the
GEMM rate of the same run. A goal above it cannot be reached by faster code, only by fewer FLOPs. The recordings below
are of warm work, by finetooth's own profile mode, and say what the rest of the time is."""


def section(results: Results) -> str:
    """The whole part; empty while nothing of it was measured."""
    found, recordings = floors(results), recorded(results.get("profile"))
    if not found and not recordings:
        return ""
    lines = [f"## {TITLE}", "", ABOUT, "", *table(found)]
    for name in GOALS:
        if name in found or name in recordings:
            lines += [f"### {title(name)}", ""]
            lines += [sentence(found[name], GOALS[name][0]), ""] if name in found else []
            if name in recordings:
                lines += [STEP[name], ""] if name in STEP else []
                lines += [*shortened(recordings[name]), ""]
    return "\n".join(lines)


def title(name: str) -> str:
    """A workload's title on the page."""
    return next(workload.title for workload in WORKLOADS if workload.name == name)


def recorded(file: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The tables of the recordings as lines, by the workload's name."""
    runs = (file or {}).get("runs", [])
    found = {name: next(iter(figures.of(runs, name).values()), None) for name in GOALS}
    return {name: run["table"].strip().splitlines() for name, run in found.items() if run is not None}


def table(found: Mapping[str, Floor]) -> list[str]:
    """One line for each workload."""
    if not found:
        return []
    lines = [
        "| Workload | GFLOP a token | GEMM rate, GFLOP/s | Floor, tokens/s | Reached | Share of the floor | Goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        goal = "not measured" if one.goal is None else f"{one.goal:,.0f}"
        goal += " (**above the floor**)" if one.goal is not None and one.goal > one.limit else ""
        cells = [title(name), f"{one.flops / 1e9:.3f}", f"{one.rate / 1e9:,.0f}", f"{one.limit:,.0f}"]
        cells += [f"{one.reached:,.0f}", f"{100 * one.reached / one.limit:.0f} %", goal]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def sentence(one: Floor, peer: str) -> str:
    """The floor against the goal, in words."""
    if one.peer is None or one.goal is None:
        return f"{peer} did not run beside it, or trained other tokens: the goal in tokens/s is not known."
    text = f"{peer} does {one.peer:,.0f} tokens/s, so the goal is {one.goal:,.0f} and the floor is "
    text += f"{one.limit / one.peer:.1f}x {peer}. "
    if one.reached >= one.goal:
        return f"{text}The goal is reached."
    if one.goal > one.limit:
        return f"{text}No code that executes these FLOPs reaches the goal at this GEMM rate."
    return f"{text}The goal asks for {100 * one.goal / one.limit:.0f} % of the floor."


def shortened(lines: Sequence[str]) -> list[str]:
    """A recorded table with headings three levels down, its tables cut to `ROWS` lines, sections in `LEFT_OUT` left
    out."""
    kept: list[str] = []
    rows, leaving = 0, False
    for line in lines:
        if line.startswith("#"):
            leaving = line.lstrip("# ") in LEFT_OUT
            line = f"###{line}"
        rows = rows + 1 if line.startswith("|") else 0
        if not leaving and rows <= ROWS + 2:  # the head and the rule are no rows
            kept.append(line)
    return "\n".join(kept).strip().splitlines()
