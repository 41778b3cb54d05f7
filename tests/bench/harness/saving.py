"""What saving costs, and how fast states are written and read: the figures, their tables, their goal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness import figures
from harness.goals import NOT_MEASURED, Goal

SAVES, NONE, STATES = "every 20 steps", "none", "states"
"""Contenders of the workload."""
MOST = 0.03
"""Share of the throughput that saving in the background may cost."""


def cost(file: Mapping[str, Any] | None) -> list[float]:
    """The share of the throughput that saving takes, one figure for each round."""
    ratios = figures.ratios((file or {}).get("runs", []), SAVES, NONE, "tokens_per_second")
    return [1.0 - ratio for ratio in ratios]


def goals(file: Mapping[str, Any] | None) -> list[Goal]:
    """Its line of the table of goals."""
    workload, goal = "Saving in the background", "< 3 % of tokens/s"
    found = cost(file)
    if not found:
        return [Goal(workload, goal, NOT_MEASURED, None)]
    middle = statistics.median(found)
    text = f"{100 * middle:.1f} %"
    if len(found) > 1:
        text += f" ({100 * min(found):.1f} to {100 * max(found):.1f})"
    return [Goal(workload, goal, text, middle < MOST)]


def table(file: Mapping[str, Any]) -> list[str]:
    """Runs with and without saving, then states."""
    lines = ["| Saving | Tokens/s | Steps | Checkpoints | One takes, MB |", "|---|---|---|---|---|"]
    for name in (SAVES, NONE):
        runs = list(figures.of(file["runs"], name).values())
        if runs:
            speed = statistics.median(run["tokens_per_second"] for run in runs)
            one = runs[0]
            size = f"{one['checkpoint_bytes'] / 1e6:,.0f}" if one["saves"] else "-"
            lines.append(f"| {name} | {speed:,.1f} | {one['steps']} | {one['saves']} | {size} |")
    runs = list(figures.of(file["runs"], STATES).values())
    if not runs:
        return lines
    lines += ["", "| Way | Saving, MB/s | Loading, MB/s |", "|---|---|---|"]
    for way in runs[0]["save_s"]:
        lines.append(f"| {way} | {_speed(runs, 'save_s', way)} | {_speed(runs, 'load_s', way)} |")
    return [*lines, "", f"The state has {runs[0]['state_bytes'] / 1e6:,.0f} MB."]


def _speed(runs: Sequence[Mapping[str, Any]], field: str, way: str) -> str:
    """Median over all turns of all rounds, with the range."""
    found = [run["state_bytes"] / 1e6 / seconds for run in runs for seconds in run[field][way]]
    return f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"
